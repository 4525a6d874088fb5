"""Answers the vectors' questions with this project's own code.

python protocol/vectors/run.py -- python -m tests.protocol.vectors.answer
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from fedmq_coordinator.core.devices import Device
from fedmq_coordinator.core.inbox import hear
from fedmq_edge_agent.core.inbox import Inbox
from fedmq_protocol.chunks import NO_HASH, Assembly, blob_ref, chain_hash, split
from fedmq_protocol.codecs import (
    CodecSpec,
    DecodedUpdate,
    Sparse,
    apply_delta,
    decode,
    decode_snapshot,
    decode_update,
    encode_update,
    randk,
    replica_sha256,
    requantise,
    seeded,
)
from fedmq_protocol.codecs.grid_model import LOGS, POWERS
from fedmq_protocol.envelope import COORDINATOR, Envelope, Reader, open_envelope
from fedmq_protocol.errors import RemoteError, UsageError
from fedmq_protocol.messages import BlobRef, Turn
from fedmq_protocol.replays import ReplayError, ReplayGuard
from fedmq_protocol.sampling import has_turn, place, sample
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.signing import SigningKey, key_id
from fedmq_protocol.topics import Topics, check_id
from tests.protocol.vectors.device import VectorDevice
from tests.protocol.vectors.form import Plain, floats, raised, vector, whole_body
from tests.protocol.vectors.grid_cases import indices
from tests.protocol.vectors.sign_cases import values


def _schema(given: Plain) -> TensorSchema:
    entries = [{**entry, "shape": tuple(entry["shape"])} for entry in given["entries"]]
    return TensorSchema.model_validate({"entries": tuple(entries)})


def _topic(given: Plain) -> Plain:
    topics, topic = Topics(given["federation"]), given["topic"]
    if topic == topics.coordinator_status:
        return {"what": "status"}
    if topic == topics.announcement:
        return {"what": "announcement"}
    if topic == topics.turn:
        return {"what": "turn"}
    if topic.startswith(f"{topics.root}/model/"):
        chunk = topics.parse_chunk(topic)
        return {
            "what": "chunk",
            "run": chunk.run,
            "version": chunk.version,
            "blob": chunk.blob,
            "index": chunk.index,
        }
    parsed = topics.parse_device(topic)
    if parsed.direction == "presence":
        return {"what": "presence", "device": parsed.device}
    return {"what": parsed.direction, "device": parsed.device, "kind": parsed.kind}


def _chunk_topic(given: Plain) -> Plain:
    topics = Topics(given["federation"])
    return {"topic": topics.chunk(given["run"], given["version"], given["blob"], given["index"])}


def _name(given: Plain) -> Plain:
    try:
        check_id(given["name"], what="a name")
    except UsageError:
        return {"usable": False}
    return {"usable": True}


def _key(given: Plain) -> Plain:
    key = SigningKey(bytes.fromhex(given["private"]))
    return {"public": key.public_key.hex(), "key_id": key_id(key.public_key).hex()}


def _sign(given: Plain) -> Plain:
    signed = given["topic"].encode() + b"\0" + bytes.fromhex(given["content"])
    return {"signature": SigningKey(bytes.fromhex(given["private"])).sign(signed).hex()}


def _open(given: Plain) -> Plain:
    topics, topic, packet = Topics(given["federation"]), given["topic"], bytes.fromhex(given["packet"])
    keys = {sender: bytes.fromhex(key) for sender, key in given["keys"].items()}
    envelope: Envelope
    if given["as"] == "device":
        inbox = Inbox(topics=topics, device=given["device"], coordinator_key=keys[COORDINATOR], epoch=0)
        inbox.open(topic, packet)
        envelope = open_envelope(topic, packet)
    else:
        known = {device: Device(device, key) for device, key in keys.items()}
        envelope = hear(topics, known, Reader(), topic, packet).envelope
    return {
        "kind": envelope.kind,
        "sender": envelope.sender,
        "epoch": envelope.epoch,
        "sequence": envelope.sequence,
        "body": whole_body(envelope.body),
    }


def _replays(given: Plain) -> Plain:
    guard = ReplayGuard(given["window"])

    def takes(epoch: int, sequence: int) -> bool:
        try:
            guard.check(epoch, sequence)
        except ReplayError:
            return False
        return True

    return {"taken": [takes(*packet) for packet in given["packets"]]}


def _describe(given: Plain) -> Plain:
    schema = _schema(given)
    return {
        "hash": schema.hash,
        "parameters": schema.num_parameters,
        "frozen": schema.num_frozen,
        "buffers": schema.num_buffers,
    }


def _sample(given: Plain) -> Plain:
    fraction = sample(bytes.fromhex(given["seed"]), given["round"], given["device"])
    return {"fraction": fraction, "member": fraction < given["rate"]}


def _turn(given: Plain) -> Plain:
    turn, device = Turn(start=given["start"], span=given["span"]), given["device"]
    return {"place": place(device), "mine": has_turn(turn, device)}


def _split(given: Plain) -> Plain:
    data = bytes.fromhex(given["data"])
    ref = blob_ref(data)
    chunks = [chunk.hex() for chunk in split(data, given["chunk_bytes"])]
    return {"size": ref.size, "sha256": ref.sha256.hex(), "chunks": chunks}


def _assemble(given: Plain) -> Plain:
    ref = BlobRef(size=given["size"], sha256=bytes.fromhex(given["sha256"]))
    assembly = Assembly(ref, given["chunk_bytes"])
    taken = [assembly.add(chunk["index"], bytes.fromhex(chunk["data"])) for chunk in given["chunks"]]
    gives: Plain = {"taken": taken, "have": assembly.have().hex(), "missing": assembly.missing()}
    return gives | {"data": bytes(assembly.result()).hex()} if assembly.complete else gives


def _chain(given: Plain) -> Plain:
    chain, before = [], NO_HASH
    for content in given["sha256"]:
        before = chain_hash(before, bytes.fromhex(content))
        chain.append(before.hex())
    return {"chain": chain}


def _decode(given: Plain) -> Plain:
    decoded = decode(bytes.fromhex(given["payload"]), given["n"], shapes=given.get("shapes"))
    return {"values": floats(decoded.to_dense())}


def _recipe(given: Plain) -> Plain:
    recipe = seeded.decode(bytes.fromhex(given["payload"]), given["n"])
    weights = np.empty(recipe.n, np.float32)
    seeded.generate(recipe, weights)
    return {"values": floats(weights), "rebase": recipe.rebase}


def _mask(given: Plain) -> Plain:
    seed = given.get("seed")
    drawn = randk.shared_seed(given["run_seed"], given["version"]) if seed is None else int(seed)
    return {"seed": str(drawn), "indices": randk.indices(drawn, given["n"], given["k"]).tolist()}


def _masked(given: Plain) -> Plain:
    decoded = decode(bytes.fromhex(given["payload"]), given["n"])
    assert isinstance(decoded, Sparse)
    return {"indices": decoded.indices.tolist(), "values": floats(decoded.values)}


def _snapshot(given: Plain) -> Plain:
    snapshot = bytes.fromhex(given["snapshot"])
    replica = decode_snapshot(snapshot, _schema(given))
    first = chain_hash(NO_HASH, blob_ref(snapshot).sha256)
    return {
        "replica": floats(replica),
        "replica_hash": replica_sha256(replica).hex(),
        "chain_hash": first.hex(),
    }


def _delta(given: Plain) -> Plain:
    schema, replica = _schema(given), vector(given["replica"])
    apply_delta(replica, bytes.fromhex(given["delta"]), schema)
    if given.get("rebase") is not None:
        replica = requantise(replica, schema, given["rebase"])
    return {"replica": floats(replica), "replica_hash": replica_sha256(replica).hex()}


def _decoded(given: Plain) -> DecodedUpdate:
    return decode_update(bytes.fromhex(given["update"]), _schema(given))


def _update(given: Plain) -> Plain:
    decoded = _decoded(given)
    return {"parameters": floats(decoded.parameters.to_dense()), "buffers": floats(decoded.buffers)}


def _feedback(given: Plain) -> Plain:
    """What is left: p - q, where p is the float32 sum of change and residual."""
    schema = _schema(given)
    p = vector(given["change"])[: schema.num_parameters] + vector(given["residual"])
    return {"residual": floats(p - _decoded(given).parameters.to_dense())}


def _restore(given: Plain) -> Plain:
    residual = vector(given["residual"])
    _decoded(given).parameters.add_to(residual)
    return {"residual": floats(residual)}


def _encode(given: Plain) -> Plain:
    spec = CodecSpec(given["codec"], given["density"])
    update, left = encode_update(vector(given["change"]), vector(given["residual"]), _schema(given), spec)
    return {"update": bytes(update).hex(), "residual": floats(np.asarray(left))}


QUESTIONS: Final[dict[str, Callable[[Plain], Plain]]] = {
    "topic": _topic,
    "chunk_topic": _chunk_topic,
    "name": _name,
    "key": _key,
    "sign": _sign,
    "open": _open,
    "replays": _replays,
    "schema": _describe,
    "sample": _sample,
    "turn": _turn,
    "split": _split,
    "assemble": _assemble,
    "chain": _chain,
    "decode": _decode,
    "indices": indices,
    "values": values,
    "grid_tables": lambda _: {"G": LOGS, "E": POWERS},
    "recipe": _recipe,
    "mask": _mask,
    "masked": _masked,
    "snapshot": _snapshot,
    "delta": _delta,
    "update": _update,
    "feedback": _feedback,
    "restore": _restore,
    "encode": _encode,
}


class Devices:
    """The device that the `device` questions are about: one at a time, and the answers depend on what came before."""

    def __init__(self) -> None:
        self._device: VectorDevice | None = None

    def answer(self, what: str, given: Plain) -> Plain:
        """What it does."""
        if what == "begin":
            self._device = VectorDevice(given, _schema(given["task"]))
            return {}
        assert self._device is not None, "it was not begun"
        asked: dict[str, Callable[[Plain], Plain]] = {
            "connect": self._device.connect,
            "lose": self._device.lose,
            "hear": self._device.hear,
            "trained": self._device.trained,
            "state": self._device.state,
            "restart": self._device.restart,
        }
        return asked[what](given)


def answer(ask: str, given: Plain) -> Plain:
    """What `gives` or the `error` to a question."""
    try:
        return {"gives": QUESTIONS[ask](given)}
    except RemoteError as error:
        return {"error": raised(error)}


def main(lines: Iterable[str]) -> None:
    """Answer line by line."""
    devices = Devices()
    for line in lines:
        question: dict[str, Any] = json.loads(line)
        ask, given = question["ask"], question["given"]
        heard: dict[str, Any]
        if ask.startswith("device."):
            heard = {"gives": devices.answer(ask.removeprefix("device."), given)}
        else:
            heard = answer(ask, given) if ask in QUESTIONS else {"unsupported": True}
        sys.stdout.write(json.dumps({"id": question["id"], **heard}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.stdin)
