"""The vectors say the same to a reader that shares no code with the one that wrote them."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import pytest

from tests.protocol.codecs import reference_decoder, reference_grid, reference_signs
from tests.protocol.vectors.form import FOLDER
from tests.protocol.vectors.second_reading import public_key, unpack, verifies


def cases(name: str, ask: str) -> list[dict[str, Any]]:
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return [case for case in content["cases"] if case["ask"] == ask and "gives" in case]


def named(case: dict[str, Any]) -> str:
    return str(case["name"])


def shown(value: object) -> object:
    """As bodies stand in the vectors, without what is nil."""
    match value:
        case bytes():
            return {"hex": value.hex()}
        case dict():
            return {key: shown(inner) for key, inner in value.items() if inner is not None}
        case list():
            return [shown(inner) for inner in value]
        case _:
            return value


def said_of(packed: Any, told: Any) -> Any:
    """Of what is told of a body, defaults included, that which is in the packet."""
    if isinstance(packed, dict) and isinstance(told, dict):
        return {key: said_of(packed[key], value) for key, value in told.items() if key in packed}
    return told


@pytest.mark.parametrize("case", cases("messages", "open") + cases("envelopes", "open"), ids=named)
def test_packets_are_read_and_verified(case: dict[str, Any]) -> None:
    given, gives = case["given"], case["gives"]
    packet = unpack(bytes.fromhex(given["packet"]))
    assert isinstance(packet, list)
    content, signature = packet
    version, kind, sender, epoch, sequence, key_id, body = unpack(content)
    key = bytes.fromhex(given["keys"][sender])
    assert verifies(key, signature, given["topic"].encode() + b"\0" + content)
    assert not verifies(key, signature, given["topic"].encode() + b"\0" + content[:-1])
    assert key_id == hashlib.sha256(key).digest()[:8]
    assert version == 1
    assert {key: gives[key] for key in ("kind", "sender", "epoch", "sequence")} == {
        "kind": kind,
        "sender": sender,
        "epoch": epoch,
        "sequence": sequence,
    }
    assert said_of(shown(body), gives["body"]) == shown(body)


@pytest.mark.parametrize("case", cases("keys", "key"), ids=named)
def test_public_keys_follow_from_private_ones(case: dict[str, Any]) -> None:
    assert public_key(bytes.fromhex(case["given"]["private"])).hex() == case["gives"]["public"]


@pytest.mark.parametrize("case", cases("keys", "sign"), ids=named)
def test_signatures_verify(case: dict[str, Any]) -> None:
    given = case["given"]
    signed = given["topic"].encode() + b"\0" + bytes.fromhex(given["content"])
    key = public_key(bytes.fromhex(given["private"]))
    assert verifies(key, bytes.fromhex(case["gives"]["signature"]), signed)


@pytest.mark.parametrize("case", cases("blobs", "update"), ids=named)
def test_updates_decode_as_the_page_says(case: dict[str, Any]) -> None:
    parameters, buffers = unpack(bytes.fromhex(case["given"]["update"]))
    assert dense(parameters, shapes(case["given"])) == bytes.fromhex(case["gives"]["parameters"])
    assert dense(buffers) == bytes.fromhex(case["gives"]["buffers"])


@pytest.mark.parametrize("case", cases("blobs", "snapshot"), ids=named)
def test_snapshots_decode_as_the_page_says(case: dict[str, Any]) -> None:
    snapshot = bytes.fromhex(case["given"]["snapshot"])
    weights, buffers = unpack(snapshot)
    replica = dense(weights) + dense(buffers)
    assert replica.hex() == case["gives"]["replica"]
    assert hashlib.sha256(replica).hexdigest() == case["gives"]["replica_hash"]
    first = hashlib.sha256(bytes(32) + hashlib.sha256(snapshot).digest())
    assert first.hexdigest() == case["gives"]["chain_hash"]


def shapes(given: dict[str, Any]) -> list[list[int]]:
    """Of the parameters, which index coders know."""
    return [entry["shape"] for entry in given["entries"] if entry["role"] == "parameter"]


def dense(payload: bytes, of: list[list[int]] | None = None) -> bytes:
    """All values of codec bytes as little-endian float32; sparse ones are of tensors of these shapes."""
    n, values = reference_decoder.decode(payload, of)
    whole = [0.0] * n
    for index, value in values:
        whole[index] = float(value)
    return struct.pack(f"<{n}f", *whole)


@pytest.mark.parametrize("case", cases("grid", "indices"), ids=named)
def test_index_sets_decode_as_the_page_says(case: dict[str, Any]) -> None:
    given = case["given"]
    section = bytes.fromhex(given["section"])
    assert reference_grid.indices(section, given["k"], given["shapes"]) == case["gives"]["indices"]


def test_the_grid_codes_tables_are_logarithms() -> None:
    (tables,) = (case["gives"] for case in cases("grid", "grid_tables"))
    assert [reference_grid.big_g(u) for u in range(257)] == tables["G"]
    assert [reference_grid.big_e(u) for u in range(257)] == tables["E"]


@pytest.mark.parametrize("case", cases("signs", "values"), ids=named)
def test_values_decode_as_the_page_says(case: dict[str, Any]) -> None:
    given, body = case["given"], bytes.fromhex(case["gives"]["body"])
    section = bytes.fromhex(given["section"])
    head, bits = {"topk-log4": (3, 3), "topk-sign": (2, 0), "topk-int8": (2, 7)}[given["codec"]]
    assert section[: 1 + head] == b"\x02" + body[:head]
    found = reference_signs.values(section[1 + head :], given["indices"], bits, given["shapes"])
    digits = "".join(f"{(sign < 0) << bits | level:0{1 + bits}b}" for sign, level in found)
    if bits == 7:
        levels = struct.unpack(f"<{len(found)}b", body[head:])
        assert levels == tuple(sign * level for sign, level in found)
    else:
        digits += "0" * (-len(digits) % 8)
        assert int(digits, 2).to_bytes(len(digits) // 8, "big") == body[head:]


@pytest.mark.parametrize("case", cases("sampling", "turn"), ids=named)
def test_turns_follow_from_sha256(case: dict[str, Any]) -> None:
    given = case["given"]
    where = struct.unpack(">L", hashlib.sha256(given["device"].encode()).digest()[:4])[0]
    arc = range(given["start"], given["start"] + given["span"])
    assert case["gives"] == {"place": where, "mine": where in arc or where + 2**32 in arc}


@pytest.mark.parametrize("case", cases("sampling", "sample"), ids=named)
def test_sampling_follows_from_sha256(case: dict[str, Any]) -> None:
    given = case["given"]
    hashed = hashlib.sha256(
        bytes.fromhex(given["seed"]) + struct.pack(">Q", given["round"]) + given["device"].encode()
    )
    fraction = struct.unpack(">Q", hashed.digest()[:8])[0] / 2**64
    assert case["gives"] == {"fraction": fraction, "member": fraction < given["rate"]}


def test_the_verifier_knows_the_first_example_of_rfc_8032() -> None:
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    key = public_key(private)
    assert key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert verifies(key, signature, b"")
    assert not verifies(key, signature, b"\0")


# ----------------------------------------------------------------- deltas and rebases, one number at a time


def float32(value: float) -> float:
    """The nearest float32; for sums and quotients of two float32 the way over float64 does no harm."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def flushed(value: float) -> float:
    return 0.0 if abs(value) < 2.0**-126 else value


def unpacked(text: str) -> list[float]:
    data = bytes.fromhex(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def requantised(block: list[float], levels: int) -> list[float]:
    """What a block of 64 becomes at a rebase: docs/protocol-codecs.md, Encoding, 3."""
    quotient = float32(max(map(abs, block)) / levels)
    (bits,) = struct.unpack("<I", struct.pack("<f", quotient))
    bits = min(bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000, 0x7F7F0000)
    (scale,) = struct.unpack("<f", struct.pack("<I", bits))
    if scale < 2.0**-90:
        return [0.0] * len(block)
    return [round(float32(value / scale)) * scale + 0.0 for value in block]


@pytest.mark.parametrize("case", cases("blobs", "delta"), ids=named)
def test_deltas_and_rebases_follow_from_the_pages(case: dict[str, Any]) -> None:
    given, gives = case["given"], case["gives"]
    counts = {
        role: sum(math.prod(entry["shape"]) for entry in given["entries"] if entry["role"] == role)
        for role in ("parameter", "frozen", "buffer")
    }
    parameters, buffers = unpack(bytes.fromhex(given["delta"]))
    n, values = reference_decoder.decode(parameters, shapes(given))
    assert n == counts["parameter"]
    replica = unpacked(given["replica"])
    for index, value in values:
        replica[index] = flushed(float32(replica[index] + float(value)))
    cut = counts["parameter"] + counts["frozen"]
    weights, kept = replica[:cut], unpacked(dense(buffers).hex())
    if "rebase" in given:
        levels = {"int8": 127, "int4": 7}[given["rebase"]]
        weights = [
            value for start in range(0, cut, 64) for value in requantised(weights[start : start + 64], levels)
        ]
    whole = struct.pack(f"<{cut + len(kept)}f", *weights, *kept)
    assert whole.hex() == gives["replica"]
    assert hashlib.sha256(whole).hexdigest() == gives["replica_hash"]
