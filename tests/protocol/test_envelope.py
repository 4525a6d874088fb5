"""The envelope: whole messages come through, and every bit that is changed is noticed."""

from __future__ import annotations

import hashlib

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import RemoteError, SignatureError
from fedmq_protocol.limits import MAX_ENVELOPE_BYTES
from fedmq_protocol.messages import BlobRef, Hello, Presence, Receipt, Update, UpdateHeader
from fedmq_protocol.signing import SigningKey, key_id

TOPIC = "fedmq/v1/home/dev/dev-1/up/update"
KEY = SigningKey(bytes(range(32)))
OTHER = SigningKey(bytes(range(1, 33)))


def header(**changes: object) -> UpdateHeader:
    fields: dict[str, object] = {
        "run": "r1",
        "counter": 3,
        "lease": 4,
        "base_version": 2,
        "schema_hash": "0" * 64,
        "num_examples": 10,
        "payload": BlobRef(size=3, sha256=hashlib.sha256(b"abc").digest()),
        "traffic": (1, 2),
        "metrics": {"loss": 0.5},
    }
    return UpdateHeader.model_validate(fields | changes)


def sealed(body: object = None) -> bytes:
    message = Update(header=header(), data=b"abc") if body is None else body
    return Sealer(sender="dev-1", epoch=7, key=KEY).seal(TOPIC, message)  # type: ignore[arg-type]


def test_a_message_comes_through_whole() -> None:
    envelope = open_envelope(TOPIC, sealed()).verified(KEY.public_key)
    assert (envelope.kind, envelope.sender, envelope.epoch, envelope.sequence) == ("update", "dev-1", 7, 1)
    assert envelope.body == Update(header=header(), data=b"abc")
    assert envelope.key_id == key_id(KEY.public_key)


def test_the_signature_is_plain_ed25519_over_topic_and_content() -> None:
    content, signature = msgpack.unpackb(sealed())
    public = Ed25519PublicKey.from_public_bytes(KEY.public_key)
    public.verify(signature, TOPIC.encode() + b"\0" + content)


def test_the_sequence_grows() -> None:
    sealer = Sealer(sender="dev-1", epoch=1, key=KEY)
    assert [open_envelope(TOPIC, sealer.seal(TOPIC, Hello())).sequence for _ in range(3)] == [1, 2, 3]


def test_another_key_is_noticed() -> None:
    with pytest.raises(SignatureError):
        open_envelope(TOPIC, sealed()).verified(OTHER.public_key)


def test_another_topic_is_noticed() -> None:
    with pytest.raises(SignatureError):
        open_envelope(TOPIC.replace("dev-1", "dev-2"), sealed()).verified(KEY.public_key)


@given(st.integers(0, 10_000))
def test_every_flipped_bit_is_noticed(position: int) -> None:
    packet = bytearray(sealed())
    packet[position % len(packet)] ^= 1 << (position % 8)
    with pytest.raises(RemoteError):
        open_envelope(TOPIC, bytes(packet)).verified(KEY.public_key)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_the_protocols_error(data: bytes) -> None:
    with pytest.raises(RemoteError):
        open_envelope(TOPIC, data)


_JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=20,
)


@given(kind=st.sampled_from(["update", "presence", "announcement", "offer", "credit"]), body=_JSONISH)
def test_signed_nonsense_raises_only_the_protocols_error(kind: str, body: object) -> None:
    content = msgpack.packb([1, kind, "dev-1", 1, 1, KEY.key_id, body])
    packet = msgpack.packb([content, KEY.sign(TOPIC.encode() + b"\0" + content)])
    with pytest.raises(RemoteError):
        open_envelope(TOPIC, packet)


def test_deep_nesting_is_refused() -> None:
    bomb = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(RemoteError):
        open_envelope(TOPIC, bomb)
    inner = msgpack.packb([bomb, bytes(64)])
    with pytest.raises(RemoteError):
        open_envelope(TOPIC, inner)


def test_lying_lengths_are_refused_before_memory_is_taken() -> None:
    for lie in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x92\xc6\x7f\xff\xff\xff",
    ):
        with pytest.raises(RemoteError):
            open_envelope(TOPIC, lie)


def test_too_large_is_said() -> None:
    with pytest.raises(RemoteError, match="more than") as caught:
        open_envelope(TOPIC, bytes(MAX_ENVELOPE_BYTES + 1))
    assert caught.value.reason == "too-large"


def test_another_protocol_version_is_named() -> None:
    content = msgpack.packb([2, "hello", "dev-1", 1, 1, KEY.key_id, {}])
    with pytest.raises(RemoteError, match="protocol version 2") as caught:
        open_envelope(TOPIC, msgpack.packb([content, bytes(64)]))
    assert caught.value.reason == "protocol-version"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_examples", 0),
        ("num_examples", 2**60),
        ("num_examples", "10"),
        ("counter", -1),
        ("counter", True),
        ("metrics", {"loss": float("nan")}),
        ("metrics", {f"m{i}": 0.0 for i in range(65)}),
        ("run", "../etc"),
        ("schema_hash", "z" * 64),
        ("train_s", float("inf")),
        ("surprise", 1),
    ],
)
def test_fields_out_of_bounds_are_refused_by_name(field: str, value: object) -> None:
    plain = Update(header=header(), data=b"abc").model_dump(exclude_none=True)
    plain["header"][field] = value
    content = msgpack.packb([1, "update", "dev-1", 1, 1, KEY.key_id, plain])
    with pytest.raises(RemoteError, match=field):
        open_envelope(TOPIC, msgpack.packb([content, bytes(64)]))


def test_defaults_are_left_out_and_may_be_written() -> None:
    body = Receipt(run="r1", counter=5, outcome="accepted", residual="keep")
    topic = "fedmq/v1/home/dev/dev-1/down/receipt"
    sealer = Sealer(sender="coordinator", epoch=2, key=KEY)
    short = msgpack.unpackb(sealer.seal(topic, body))[0]
    *head, plain = msgpack.unpackb(short)
    assert plain == {"run": "r1", "counter": 5, "outcome": "accepted", "residual": "keep"}
    long = msgpack.packb([*head, {**plain, "reason": "", "detail": ""}])
    for content in (short, long):
        assert open_envelope(topic, msgpack.packb([content, bytes(64)])).body == body


def test_golden_packet() -> None:
    """What other implementations have to produce and to read, byte for byte (Ed25519 is deterministic)."""
    body = Receipt(run="r1", counter=5, outcome="accepted", residual="keep")
    packet = Sealer(sender="coordinator", epoch=2, key=KEY).seal("fedmq/v1/home/dev/dev-1/down/receipt", body)
    assert (
        hashlib.sha256(packet).hexdigest()
        == "316f9f76672b97519f2d9c2fbcc0d908e55d23e00ffaf7d0486d8b44dbf18281"
    )
    assert packet[:2] == b"\x92\xc4"


def test_a_birth_certificate_carries_its_key() -> None:
    body = Presence(online=True, session=1, public_key=KEY.public_key)
    opened = open_envelope(TOPIC, sealed(body)).body
    assert isinstance(opened, Presence)
    assert opened.public_key == KEY.public_key
