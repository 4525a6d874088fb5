"""Cheap signatures find out what real ones do, and what is remembered of a packet is what is in it."""

from __future__ import annotations

import pytest

from fedmq.simulation.mail import CheapKey, Mail
from fedmq_protocol.envelope import Envelope, Sealer, open_envelope
from fedmq_protocol.errors import RemoteError, SignatureError
from fedmq_protocol.messages import Body, Hello, Presence, Receipt, Status

KEY = CheapKey("dev-1")
TOPIC = "fedmq/v1/home/dev/dev-1/up/hello"
BODIES: list[Body] = [
    Hello(run="r1", version=3),
    Hello(),
    Receipt(run="r1", counter=1, outcome="accepted", residual="keep"),
    Presence(online=True, session=4, public_key=KEY.public_key, traffic=(1, 2), codecs=["a/1", "b/2"]),
    Status(online=False, session=1, public_key=KEY.public_key, detail="gone" * 40),
]


def same(one: Envelope, other: Envelope) -> bool:
    return (one.topic, one.kind, one.sender, one.epoch, one.sequence, one.key_id, one.body, one.content) == (
        other.topic,
        other.kind,
        other.sender,
        other.epoch,
        other.sequence,
        other.key_id,
        other.body,
        other.content,
    ) and (one.signature, one.packed) == (other.signature, other.packed)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("packed", [True, False])
def test_what_is_remembered_is_what_the_bytes_say(*, body: Body, packed: bool) -> None:
    remembering, parsing = Mail(parsed=False), Mail()
    payload = remembering.sealer(sender="dev-1", epoch=7, key=KEY).seal(TOPIC, body, packed=packed)
    assert payload == parsing.sealer(sender="dev-1", epoch=7, key=KEY).seal(TOPIC, body, packed=packed)
    assert payload == Sealer(sender="dev-1", epoch=7, key=KEY).seal(TOPIC, body, packed=packed)
    assert remembering.open(TOPIC, payload).body is body
    assert same(remembering.open(TOPIC, payload), open_envelope(TOPIC, payload))
    assert same(parsing.open(TOPIC, payload), open_envelope(TOPIC, payload))


def test_a_world_may_do_without_the_shorter_form() -> None:
    mail = Mail(packed=False)
    payload = mail.sealer(sender="dev-1", epoch=7, key=KEY).seal(TOPIC, BODIES[-1], packed=True)
    assert not mail.open(TOPIC, payload).packed


@pytest.mark.parametrize("parsed", [True, False])
def test_another_key_a_changed_byte_and_another_topic_are_found_out(*, parsed: bool) -> None:
    mail = Mail(parsed=parsed)
    payload = mail.sealer(sender="dev-1", epoch=7, key=KEY).seal(TOPIC, BODIES[0])
    for _ in range(2):
        assert mail.verified(mail.open(TOPIC, payload), KEY.public_key).sender == "dev-1"
        with pytest.raises(SignatureError):
            mail.verified(mail.open(TOPIC, payload), CheapKey("dev-2").public_key)
        with pytest.raises(SignatureError):
            mail.verified(mail.open(f"{TOPIC}x", payload), KEY.public_key)
    changed = payload.replace(b"r1", b"r2")
    with pytest.raises(SignatureError):
        mail.verified(mail.open(TOPIC, changed), KEY.public_key)
    with pytest.raises(RemoteError):
        mail.open(TOPIC, payload[:-1])
