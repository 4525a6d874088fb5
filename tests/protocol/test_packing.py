"""Packed envelopes: shorter, signed as ever, and no way to cost memory."""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import RemoteError, SignatureError
from fedmq_protocol.messages import Hello, Receipt, UploadChunk
from fedmq_protocol.packing import FORM, MAX_PACKED_BYTES, pack, unpack
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

KEY = SigningKey(bytes(range(32)))
TOPIC = Topics("home").down("dev-1", "receipt")
RECEIPT = Receipt(run="digits-1", counter=7, outcome="accepted", residual="keep")


def sealer() -> Sealer:
    return Sealer(sender="coordinator", epoch=4, key=KEY)


def dictionary() -> bytes:
    return files("fedmq_protocol").joinpath("dictionary-1.bin").read_bytes()


def test_the_dictionary_never_changes() -> None:
    digest = "19f3df4f4e77609a4650b66328b3d6e3c409bd9a0878be6aa9330340635d7f69"
    assert hashlib.sha256(dictionary()).hexdigest() == digest, "make another one, under another name"


def test_a_packed_message_is_the_same_message_with_the_same_signature() -> None:
    plain, packed = sealer().seal(TOPIC, RECEIPT), sealer().seal(TOPIC, RECEIPT, packed=True)
    assert len(packed) < 0.75 * len(plain)
    one, other = open_envelope(TOPIC, plain), open_envelope(TOPIC, packed)
    assert (one.packed, other.packed) == (False, True)
    assert (one.body, one.content, one.signature) == (other.body, other.content, other.signature)
    assert other.verified(KEY.public_key).body == RECEIPT


def test_what_does_not_get_shorter_stays_as_it_is() -> None:
    noise = hashlib.shake_256(b"noise").digest(200_000)
    for size in (60, 3_000, 40_000, 200_000):
        body = UploadChunk(run="r", counter=1, index=0, data=noise[:size])
        packed = sealer().seal(TOPIC, body, packed=True)
        assert len(packed) <= len(sealer().seal(TOPIC, body))
    assert not open_envelope(TOPIC, sealer().seal(TOPIC, body, packed=True)).packed, (
        "longer than may be packed"
    )
    assert open_envelope(TOPIC, sealer().seal(TOPIC, Hello(), packed=True)).body == Hello()


def test_a_chunk_of_data_is_not_compressed_in_vain() -> None:
    body = UploadChunk(run="r", counter=1, index=0, data=bytes(40_000))  # nothing would be easier
    assert not open_envelope(TOPIC, sealer().seal(TOPIC, body, packed=True)).packed


@given(st.binary(max_size=5_000))
def test_a_content_comes_back(content: bytes) -> None:
    frame = pack(content)
    if frame is not None:
        assert len(frame) < len(content)
        assert unpack(frame) == content


def test_threads_pack_at_once_and_do_not_mix() -> None:
    contents = [bytes([number]) * 50 + b"an update that is accepted" * number for number in range(64)]
    with ThreadPoolExecutor(8) as threads:
        frames = list(threads.map(pack, contents * 20))
        assert list(threads.map(unpack, [frame for frame in frames if frame is not None])) == [
            content for content, frame in zip(contents * 20, frames, strict=True) if frame is not None
        ]


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: b"\x28\xb5\x2f\xfd" + rest))
def test_arbitrary_frames_raise_nothing_but_the_protocols_error(frame: bytes) -> None:
    with contextlib.suppress(RemoteError):
        assert len(unpack(frame)) <= MAX_PACKED_BYTES
    with pytest.raises(RemoteError):
        open_envelope(TOPIC, msgpack.packb([FORM, frame, bytes(64)]))


def frame_of(content: bytes, *, states_size: bool = True) -> bytes:
    raw = zstandard.ZstdCompressionDict(dictionary(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=raw, write_content_size=states_size).compress(content)


def test_a_bomb_is_refused_by_its_head() -> None:
    for frame in (frame_of(bytes(MAX_PACKED_BYTES + 1)), frame_of(bytes(10), states_size=False)):
        with pytest.raises(RemoteError) as caught:
            unpack(frame)
        assert caught.value.reason == "too-large"
    assert unpack(frame_of(bytes(MAX_PACKED_BYTES))) == bytes(MAX_PACKED_BYTES)
    with pytest.raises(RemoteError):
        unpack(frame_of(bytes(1000)) + b"more")


@pytest.mark.parametrize("form", [0, 2, True, None, "1", b"\1"])
def test_an_unknown_form_is_refused(form: object) -> None:
    _, frame, signature = msgpack.unpackb(sealer().seal(TOPIC, RECEIPT, packed=True))
    with pytest.raises(RemoteError):
        open_envelope(TOPIC, msgpack.packb([form, frame, signature]))


def test_a_changed_content_is_not_believed_in_either_form() -> None:
    content, signature = msgpack.unpackb(sealer().seal(TOPIC, RECEIPT))
    other = content.replace(b"digits-1", b"digits-2")
    for packet in ([other, signature], [FORM, pack(other), signature]):
        with pytest.raises(SignatureError):
            open_envelope(TOPIC, msgpack.packb(packet)).verified(KEY.public_key)
