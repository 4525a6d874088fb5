"""Models of any size slice by slice: the same bits as at once, in memory that does not follow the model."""

from __future__ import annotations

import io
import mmap
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import (
    CodecSpec,
    Difference,
    add_update,
    apply_delta,
    body,
    decode,
    decode_into,
    decode_snapshot_into,
    decode_update,
    encode,
    encode_delta,
    encode_snapshot,
    encode_snapshot_to,
    encode_to,
    encode_update,
    encode_update_inplace,
    encode_update_to,
    replica_sha256,
    requantise,
    requantise_inplace,
    split,
    split_to,
)
from fedmq_protocol.codecs.blockwise import INT8
from fedmq_protocol.errors import CodecError
from fedmq_protocol.schema import TensorEntry, TensorSchema

Vector = NDArray[np.float32]

N = 2_000_003  # neither a multiple of a slice nor of a block, and every dense body is above a megabyte
SCHEMA = TensorSchema(
    entries=(
        TensorEntry(name="w", shape=(N,), dtype="float32", role="parameter"),
        TensorEntry(name="frozen", shape=(70,), dtype="float32", role="frozen"),
        TensorEntry(name="running_mean", shape=(5,), dtype="float32", role="buffer"),
    )
)
DENSE = ["int8", "int4", "float32"]
SPECS = [
    *map(CodecSpec, DENSE),
    CodecSpec("topk-log4"),
    CodecSpec("topk-int8", 0.02),
    CodecSpec("topk-sign", 0.3),
]


def weights(seed: int, n: int = N) -> Vector:
    """As of layers of different scale, with stretches of zeros that compress."""
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(n, dtype=np.float32)
    vector[: n // 3] *= np.float32(0.01)
    vector[n // 2 : n // 2 + n // 8] = 0
    return vector


def mapped(path: Path) -> memoryview:
    """A file's bytes, read where they are looked at."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def peak_beyond(action: Callable[[], object]) -> int:
    """The most bytes that Python and NumPy had allocated at once on the way, above what there was before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("compressible", [True, False])
def test_a_streamed_payload_holds_what_the_whole_would(name: str, compressible: bool) -> None:  # noqa: FBT001
    vector = weights(1) if compressible else np.random.default_rng(1).uniform(1, 2, N).astype(np.float32)
    payload, decoded = encode(vector, CodecSpec(name))
    assert payload[5] in (0, 1)
    out = np.empty(N, np.float32)
    decode_into(payload, out)
    assert out.tobytes() == decoded.values.tobytes() == decode(payload, N).values.tobytes()
    if name == "int8":
        whole, sent = INT8.quantise(vector)
        assert sent.tobytes() == out.tobytes()
        assert bytes(body.unwrap(memoryview(payload)[5:], len(whole))) == whole
        assert len(payload) <= 5 + len(body.wrap(whole)) * 1.001


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_splitting_in_place_is_splitting(spec: CodecSpec, tmp_path: Path) -> None:
    p = weights(2)
    p[7::1000] = np.float32(-0.0)
    payload, _, residual = split(p, spec)
    file = np.memmap(tmp_path / "p", np.float32, "w+", shape=(N,))
    file[:] = p
    out = io.BytesIO()
    split_to(file, spec, out)
    assert out.getvalue() == payload
    assert file.tobytes() == residual.tobytes()


def test_a_vector_that_is_not_finite_stays_as_it_is() -> None:
    for spec in SPECS:
        for worst in (np.nan, np.inf):
            p = weights(3)
            p[N - 2] = worst
            before = p.tobytes()
            with pytest.raises(ValueError, match="finite"):
                split_to(p, spec, io.BytesIO())
            assert p.tobytes() == before


def test_a_difference_is_coded_as_if_it_were_there() -> None:
    one, other = weights(4), weights(5)
    for spec in SPECS:
        assert encode(Difference(one, other), spec)[0] == encode(one - other, spec)[0]


@pytest.mark.parametrize("codec", DENSE)
def test_snapshots_stream_to_files_and_back(codec: str, tmp_path: Path) -> None:
    vector = weights(6, SCHEMA.size)
    blob, replica = encode_snapshot(vector, SCHEMA, codec)
    with (tmp_path / "snapshot").open("w+b") as file:
        encode_snapshot_to(vector, SCHEMA, codec, file)
    data = mapped(tmp_path / "snapshot")
    assert data == blob
    out = np.memmap(tmp_path / "replica", np.float32, "w+", shape=(SCHEMA.size,))
    decode_snapshot_into(data, SCHEMA, out)
    assert replica_sha256(out) == replica_sha256(replica) == replica_sha256(requantise(vector, SCHEMA, codec))
    requantise_inplace(out, SCHEMA, codec)
    assert replica_sha256(out) == replica_sha256(replica), "what was quantised stays as it is"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_updates_in_place_are_updates(spec: CodecSpec) -> None:
    delta, residual = weights(7, SCHEMA.size), weights(8)
    blob, left = encode_update(delta, residual, SCHEMA, spec)
    total = delta[:N] + residual
    assert encode_update_inplace(total, delta[-5:], SCHEMA, spec) == blob
    assert total.tobytes() == left.tobytes()
    sent = decode_update(blob, SCHEMA)
    assert np.array_equal(sent.parameters.to_dense() + left, delta[:N] + residual)
    add_update(left, memoryview(blob), SCHEMA)
    assert np.array_equal(left, delta[:N] + residual)
    with pytest.raises(CodecError):
        add_update(left, blob[:-1], SCHEMA)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_delta_is_applied_as_decoded_or_not_at_all(spec: CodecSpec) -> None:
    target, replica = weights(9, SCHEMA.size), weights(10, SCHEMA.size)
    blob = encode_delta(target, replica, SCHEMA, spec)
    expected = replica.copy()
    decode_update(blob, SCHEMA).parameters.apply_to(expected[:N])
    expected[-5:] = target[-5:]
    for damaged in (blob[:-20], blob[: len(blob) // 2] + blob[len(blob) // 2 + 1 :], blob + b"x"):
        before = replica.tobytes()
        with pytest.raises(CodecError):
            apply_delta(replica, damaged, SCHEMA)
        assert replica.tobytes() == before
    apply_delta(replica, memoryview(blob), SCHEMA)
    assert replica.tobytes() == expected.tobytes()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_memory_does_not_follow_the_model(codec: str, tmp_path: Path) -> None:
    """Bounds as multiples of the model's size, 4 n: what is left is scales, a hundredth, and slices, two megabytes."""
    vector, other = weights(11, SCHEMA.size), weights(12, SCHEMA.size)
    size, slices = vector.nbytes, 3 << 20
    path = tmp_path / "snapshot"
    with path.open("w+b") as file:
        assert peak_beyond(lambda: encode_snapshot_to(vector, SCHEMA, codec, file)) < 0.05 * size + slices
    data = mapped(path)
    assert peak_beyond(lambda: decode_snapshot_into(data, SCHEMA, vector)) < 0.05 * size + slices
    assert peak_beyond(lambda: requantise_inplace(vector, SCHEMA, codec)) < 0.05 * size + slices
    assert peak_beyond(lambda: replica_sha256(vector)) < slices
    dense = encode_delta(other, vector, SCHEMA, CodecSpec(codec))
    assert peak_beyond(lambda: apply_delta(vector, dense, SCHEMA)) < 0.05 * size + slices
    sparse = CodecSpec("topk-log4", 0.01)
    kept = 160 * sparse.kept(N)
    assert peak_beyond(lambda: encode_delta(other, vector, SCHEMA, sparse)) < kept + slices
    with (tmp_path / "update").open("w+b") as file:
        p, dense_spec = vector[:N], CodecSpec(codec)
        peak = peak_beyond(lambda: encode_update_to(p, other[-5:], SCHEMA, dense_spec, file))
        assert peak < 0.05 * size + slices
    update = mapped(tmp_path / "update")
    assert peak_beyond(lambda: add_update(p, update, SCHEMA)) < 0.05 * size + slices
    p = other[:N]
    assert peak_beyond(lambda: encode_update_inplace(p, other[-5:], SCHEMA, sparse)) < kept + slices


def honest(size: int) -> tuple[bytes, bytes]:
    """A body and its frame, long enough to stream."""
    content = bytes(np.random.default_rng(13).integers(0, 4, size, dtype=np.uint8))
    return content, zstandard.ZstdCompressor(level=3).compress(content)


def test_a_streamed_body_is_exactly_what_it_says() -> None:
    size = 3_000_000
    content, frame = honest(size)

    def read(section: bytes, stated: int = size) -> bytes:
        reader = body.reader(memoryview(section), stated)
        got = bytes(reader.read(stated // 2)) + bytes(reader.read(stated - stated // 2))
        reader.finish()
        return got

    assert read(b"\x01" + frame) == content
    assert read(b"\x00" + content) == content
    wrong = {
        "cut": b"\x01" + frame[:-1],
        "one more": b"\x01" + frame + b"\x00",
        "two frames": b"\x01" + frame + frame,
        "a skippable frame after": b"\x01" + frame + bytes.fromhex("502a4d1800000000"),
        "damaged": b"\x01" + frame[:5000] + bytes(100) + frame[5100:],
        "unknown flag": b"\x07" + frame,
        "raw, short": b"\x00" + content[:-1],
        "nothing": b"",
    }
    for what, section in wrong.items():
        with pytest.raises(CodecError):
            assert not read(section), what
    for stated in (size - 1, size + 1, 2 * size):
        with pytest.raises(CodecError):
            read(b"\x01" + frame, stated)


def test_a_frame_that_reaches_too_far_back_is_refused() -> None:
    size = body.MAX_WINDOW_BYTES + 1
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(size))
    with pytest.raises(CodecError, match="bytes back"):
        body.reader(memoryview(b"\x01" + frame), size)


def test_a_frame_of_crumbs_is_refused_before_it_takes_time() -> None:
    size = 2_000_000
    header = zstandard.ZstdCompressor(level=3).compress(bytes(size))[:9]
    crumbs = bytes.fromhex("0000000a") * 100  # runs of nothing
    with pytest.raises(CodecError, match="crumbs"):
        body.reader(memoryview(b"\x01" + header + crumbs * 1000), size)


def test_a_bomb_is_refused_piece_by_piece() -> None:
    """A gigabyte of zeros in forty kilobytes that promises twenty megabytes is not inflated."""
    inflated = bytearray(zstandard.ZstdCompressor(level=3).compress(bytes(1 << 30)))
    promise = 20_000_000
    assert zstandard.get_frame_parameters(bytes(inflated)).content_size == 1 << 30
    place = inflated.index((1 << 30).to_bytes(4, "little"))
    inflated[place : place + 4] = promise.to_bytes(4, "little")
    reader = body.reader(memoryview(b"\x01" + bytes(inflated)), promise)

    def read_all() -> None:
        for _ in range(promise // 1000):
            reader.read(1000)
        reader.finish()

    def refused() -> None:
        with pytest.raises(CodecError):
            read_all()

    assert peak_beyond(refused) < 1 << 20


LONG = 1_200_000
PAYLOAD = encode(weights(16, LONG).round(1), CodecSpec("int8"))[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_to_a_long_payload_gives_a_vector_or_a_codec_error(data: st.DataObject) -> None:
    payload = bytearray(PAYLOAD)
    assert payload[5] == 1, "it streams"
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.one_of(st.integers(0, 40), st.integers(0, len(PAYLOAD) - 1))) % len(payload)
        match data.draw(st.sampled_from(["set", "cut", "grow", "end", "swap"])):
            case "set":
                payload[place] = data.draw(st.integers(0, 255))
            case "cut":
                del payload[place + 1 : place + data.draw(st.integers(1, 1000))]
            case "grow":
                payload[place:place] = data.draw(st.binary(min_size=1, max_size=9))
            case "end":
                del payload[place + 1 :]
            case _:
                payload[place : place + 100] = payload[place : place + 100][::-1]
    out, reason = np.empty(LONG, np.float32), ""
    try:
        decode_into(bytes(payload), out)
    except CodecError as error:
        reason = error.reason
    assert reason in {"", "malformed", "unknown-codec", "wrong-size", "too-large", "not-finite"}
    assert reason or np.isfinite(out).all()


def test_what_is_written_follows_what_is_there() -> None:
    out = io.BytesIO(b"before")
    out.seek(0, io.SEEK_END)
    noise = np.random.default_rng(14).integers(0, 2**32, N, dtype=np.uint32).view(np.float32)
    noise = np.where(np.isfinite(noise), noise, np.float32(1))
    encode_to(noise, CodecSpec("float32"), out)
    encode_to(weights(15), CodecSpec("int8"), out)
    data = memoryview(out.getvalue())
    assert bytes(data[:6]) == b"before"
    first = len(encode(noise, CodecSpec("float32"))[0])
    assert data[6 + 5] == 0, "noise is written as it is, in a second pass"
    assert np.array_equal(
        decode(data[6 : 6 + first], N).values, encode(noise, CodecSpec("float32"))[1].values
    )
    assert (
        decode(data[6 + first :], N).values.tobytes()
        == encode(weights(15), CodecSpec("int8"))[1].values.tobytes()
    )
