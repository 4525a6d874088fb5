"""The vectors say the same to a reader that shares no code with the one that wrote them."""

from __future__ import annotations

import hashlib
import json
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
    assert shown(body) == gives["body"]


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
    assert dense(parameters) == bytes.fromhex(case["gives"]["parameters"])
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


def dense(payload: bytes) -> bytes:
    """All values of codec bytes as little-endian float32."""
    n, values = reference_decoder.decode(payload)
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


@pytest.mark.parametrize("case", cases("sampling", "sample"), ids=named)
def test_sampling_follows_from_sha256(case: dict[str, Any]) -> None:
    given = case["given"]
    hashed = hashlib.sha256(
        bytes.fromhex(given["seed"]) + struct.pack(">Q", given["round"]) + given["device"].encode()
    )
    fraction = struct.unpack(">Q", hashed.digest()[:8])[0] / 2**64
    assert case["gives"] == {"fraction": fraction, "member": fraction < given["rate"]}
