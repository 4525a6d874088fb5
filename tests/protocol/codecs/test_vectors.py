"""The committed vectors hold: a change of the format is seen before a device in the field sees it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fedmq_protocol.codecs import CODECS, CodecSpec, Sparse, decode, split
from fedmq_protocol.codecs.container import codec_name
from fedmq_protocol.codecs.registry import INDEX_CODES
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs import reference_decoder
from tests.protocol.codecs.make_vectors import PATH, as_hex

VECTORS = json.loads(PATH.read_text(encoding="utf-8"))


def named(entry: dict[str, Any]) -> str:
    return str(entry["name"])


@pytest.mark.parametrize("entry", VECTORS["valid"], ids=named)
def test_valid_payloads_decode_to_the_bit(entry: dict[str, Any]) -> None:
    payload = bytes.fromhex(entry["payload"])
    decoded = decode(payload, entry["n"], shapes=entry.get("shapes"))
    assert as_hex(decoded.values) == entry["values"]
    if isinstance(decoded, Sparse):
        assert decoded.indices.tolist() == entry["indices"]
    else:
        assert "indices" not in entry
    second = reference_decoder.decode(payload, entry.get("shapes"))[1]
    assert [float(value) for _, value in second] == decoded.values.tolist()


@pytest.mark.parametrize("entry", VECTORS["valid"], ids=named)
def test_encoding_gives_what_was_committed(entry: dict[str, Any]) -> None:
    vector = np.frombuffer(bytes.fromhex(entry["vector"]), "<f4").astype(np.float32)
    payload, decoded, residual = split(
        vector, CodecSpec(entry["codec"], entry["density"]), shapes=entry.get("shapes")
    )
    assert as_hex(decoded.values) == entry["values"]
    assert as_hex(residual) == entry["residual"]
    committed = bytes.fromhex(entry["payload"])
    assert len(payload) == len(committed)
    if zstd_flag(committed) == 0:  # another version of zstd may choose other matches
        assert payload == committed


@pytest.mark.parametrize("entry", VECTORS["invalid"], ids=named)
def test_invalid_payloads_are_refused_for_the_stated_reason(entry: dict[str, Any]) -> None:
    with pytest.raises(CodecError) as caught:
        decode(bytes.fromhex(entry["payload"]), entry["n"])
    assert caught.value.reason == entry["reason"]


def test_the_vectors_show_every_codec_raw_and_compressed() -> None:
    payloads = [bytes.fromhex(entry["payload"]) for entry in VECTORS["valid"]]
    assert {codec_name(payload) for payload in payloads} == {
        name for name, codec in CODECS.items() if not codec.masked
    }, "masked ones have a file of their own"
    assert {zstd_flag(payload) for payload in payloads} == {0, 1}
    assert {payload[0] >> 4 for payload in payloads} == {0, *INDEX_CODES}


def zstd_flag(payload: bytes) -> int:
    return payload[5] if payload[0] < 16 else payload[13 + int.from_bytes(payload[9:13], "little")]
