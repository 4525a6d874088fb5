"""Cases of topics, names, keys, signatures and envelopes, wrong ones included."""

from __future__ import annotations

from typing import Any

import msgpack

from fedmq_protocol.envelope import COORDINATOR, Sealer
from fedmq_protocol.messages import KIND_OF, Body, Get, Hello, Lease, Presence, Status, to_plain
from fedmq_protocol.signing import key_id
from fedmq_protocol.topics import Topics
from tests.protocol.vectors.bodies import BODIES
from tests.protocol.vectors.form import (
    COORDINATOR_KEY,
    COORDINATOR_PRIVATE,
    DEVICE,
    DEVICE_KEY,
    DEVICE_PRIVATE,
    FEDERATION,
    Case,
    plain_body,
    whole_body,
)

TOPICS = Topics(FEDERATION)
ROOT = TOPICS.root
LEASE = Lease(run="r-1", lease=3, version=2, lease_s=60.0)
LEASE_TOPIC = TOPICS.down(DEVICE, "lease")
EPOCH = 5


def topic_cases() -> list[Case]:
    """Which topics there are."""

    def case(topic: str, **gives: Any) -> Case:
        given = {"federation": FEDERATION, "topic": topic}
        if gives:
            return Case(topic, "topic", given, gives)
        return Case(topic or "(empty)", "topic", given, error="unknown-topic")

    up = ("hello", "update", "offer", "chunk", "report", "get")
    down = ("announcement", "lease", "receipt", "credit", "chunk", "notice")
    good = [
        case(f"{ROOT}/coordinator/status", what="status"),
        case(f"{ROOT}/coordinator/run", what="announcement"),
        case(f"{ROOT}/coordinator/turn", what="turn"),
        case(f"{ROOT}/dev/dev-1/presence", what="presence", device="dev-1"),
        case(f"{ROOT}/dev/a.b_c-9/presence", what="presence", device="a.b_c-9"),
        *[case(f"{ROOT}/dev/7/up/{kind}", what="up", device="7", kind=kind) for kind in up],
        *[case(f"{ROOT}/dev/7/down/{kind}", what="down", device="7", kind=kind) for kind in down],
    ]
    chunks = [("r", 0, "snapshot", 0), ("run-7.b", 12, "delta", 65_535), ("0", 2**53 - 1, "delta", 10)]
    for run, version, blob, index in chunks:
        topic = f"{ROOT}/model/{run}/{version}/{blob[0]}{index}"
        gives = {"run": run, "version": version, "blob": blob, "index": index}
        good.append(case(topic, what="chunk", **gives))
        good.append(
            Case(f"make {topic}", "chunk_topic", {"federation": FEDERATION, **gives}, {"topic": topic})
        )
    bad = [
        "",
        ROOT,
        f"{ROOT}/",
        f"{ROOT}/dev",
        "fedmq/v1/other/coordinator/run",
        "fedmq/v2/home/coordinator/run",
        f"{ROOT}/coordinator/other",
        f"/{ROOT}/coordinator/run",
        f"{ROOT}/dev/Dev-1/presence",
        f"{ROOT}/dev//presence",
        f"{ROOT}/dev/-a/presence",
        f"{ROOT}/dev/{'a' * 65}/presence",
        f"{ROOT}/dev/dev-1/presence/",
        f"{ROOT}/dev/dev-1\n/presence",
        f"{ROOT}/dev/dev-1/up/lease",
        f"{ROOT}/dev/dev-1/down/update",
        f"{ROOT}/dev/dev-1/up",
        f"{ROOT}/dev/dev-1/up/hello/again",
        f"{ROOT}/dev/d\u00e9v/presence",
        f"{ROOT}/model/r/1/s",
        f"{ROOT}/model/r/1/x0",
        f"{ROOT}/model/r/01/s0",
        f"{ROOT}/model/r/1/s00",
        f"{ROOT}/model/r/-1/s0",
        f"{ROOT}/model/r/9007199254740992/s0",
        f"{ROOT}/model/r/1/s0/0",
        f"{ROOT}/model/R/1/s0",
        f"{ROOT}/model/r/1/s1234567",
    ]
    names = {"a": True, "0": True, "a" * 64: True, "dev-1.x_y": True}
    names |= dict.fromkeys(
        ["", "A", "-a", ".a", "_a", "a" * 65, "a b", "a/b", "a+", "a#", "\u00e9", "a\n"], False
    )
    usable = [Case(f"name {name!r}", "name", {"name": name}, {"usable": ok}) for name, ok in names.items()]
    return [*good, *[case(topic) for topic in bad], *usable]


def key_cases() -> list[Case]:
    """Keys and signatures; Ed25519 is deterministic."""
    cases = []
    for who, private, key in (
        ("the coordinator's", COORDINATOR_PRIVATE, COORDINATOR_KEY),
        ("the device's", DEVICE_PRIVATE, DEVICE_KEY),
    ):
        gives = {"public": key.public_key.hex(), "key_id": key_id(key.public_key).hex()}
        cases.append(Case(f"{who} key", "key", {"private": private.hex()}, gives))
    content = _content(LEASE)
    for name, topic in (
        ("a lease", LEASE_TOPIC),
        ("the same for another device", TOPICS.down("dev-2", "lease")),
    ):
        signature = COORDINATOR_KEY.sign(topic.encode() + b"\0" + content)
        given = {"private": COORDINATOR_PRIVATE.hex(), "topic": topic, "content": content.hex()}
        cases.append(Case(f"sign {name}", "sign", given, {"signature": signature.hex()}))
    return cases


def _content(body: Body, /, **other: object) -> bytes:
    """A content, field by field, so that single ones can be wrong."""
    fields: dict[str, object] = {
        "version": 1,
        "kind": KIND_OF[type(body)],
        "sender": COORDINATOR,
        "epoch": EPOCH,
        "sequence": 9,
        "key_id": COORDINATOR_KEY.key_id,
        "body": to_plain(body),
    }
    return bytes(msgpack.packb(list({**fields, **other}.values())))


def _packed(content: bytes, topic: str = LEASE_TOPIC) -> bytes:
    return bytes(msgpack.packb([content, COORDINATOR_KEY.sign(topic.encode() + b"\0" + content)]))


def _given(role: str, topic: str, packet: bytes) -> dict[str, Any]:
    sender, key = (COORDINATOR, COORDINATOR_KEY) if role == "device" else (DEVICE, DEVICE_KEY)
    return {
        "as": role,
        "federation": FEDERATION,
        "device": DEVICE,
        "keys": {sender: key.public_key.hex()},
        "topic": topic,
        "packet": packet.hex(),
    }


def message_cases() -> list[Case]:
    """Every kind of message, with as much and as little in it as may be, sealed with the test keys."""
    coordinator = Sealer(sender=COORDINATOR, epoch=EPOCH, key=COORDINATOR_KEY)
    device = Sealer(sender=DEVICE, epoch=8, key=DEVICE_KEY)
    cases = []
    for name, topic, body, by_device in BODIES:
        sealer = device if by_device else coordinator
        packet = sealer.seal(topic, body)
        sequence = msgpack.unpackb(msgpack.unpackb(packet)[0])[4]
        gives = {
            "kind": KIND_OF[type(body)],
            "sender": sealer.sender,
            "epoch": sealer.epoch,
            "sequence": sequence,
            "body": whole_body(body),
        }
        cases.append(
            Case(name, "open", _given("coordinator" if by_device else "device", topic, packet), gives)
        )
    return cases


def envelope_cases() -> list[Case]:
    """Packets that must be refused, and strange ones that must not."""
    good = _content(LEASE)
    plain = LEASE.model_dump()
    sealed = _packed(good)
    flipped = bytearray(sealed)
    flipped[-1] ^= 1
    altered = sealed.replace(b"\xcb\x40\x4e\x00", b"\xcb\x40\x5e\x00")
    assert altered != sealed
    deep: object = 1
    for _ in range(40):
        deep = [deep]
    body = _content(LEASE, body={**plain, "lease": deep})

    def lease(**other: object) -> bytes:
        return _packed(_content(LEASE, body={**plain, **other}))

    foreign = DEVICE_KEY.sign(LEASE_TOPIC.encode() + b"\0" + good)
    bad: list[tuple[str, str, str, bytes]] = [
        ("a signature with one bit changed", "bad-signature", LEASE_TOPIC, bytes(flipped)),
        ("a content with one byte changed", "bad-signature", LEASE_TOPIC, altered),
        ("signed by another key", "bad-signature", LEASE_TOPIC, msgpack.packb([good, foreign])),
        (
            "another key, named",
            "bad-signature",
            LEASE_TOPIC,
            _packed(_content(LEASE, key_id=DEVICE_KEY.key_id)),
        ),
        ("moved to another topic of the device", "wrong-kind", TOPICS.down(DEVICE, "receipt"), sealed),
        ("moved to another device", "unknown-topic", TOPICS.down("dev-2", "lease"), sealed),
        (
            "signed for another federation",
            "bad-signature",
            LEASE_TOPIC,
            _packed(good, LEASE_TOPIC.replace("home", "work")),
        ),
        (
            "a device in the coordinator's name",
            "wrong-sender",
            LEASE_TOPIC,
            _packed(_content(LEASE, sender=DEVICE)),
        ),
        ("version 2", "protocol-version", LEASE_TOPIC, _packed(_content(LEASE, version=2))),
        ("an unknown kind", "unknown-kind", LEASE_TOPIC, _packed(_content(LEASE, kind="leaflet"))),
        ("an unknown field", "malformed", LEASE_TOPIC, lease(extra=1)),
        (
            "a field missing",
            "malformed",
            LEASE_TOPIC,
            _packed(_content(LEASE, body={"run": "r-1", "lease": 3})),
        ),
        ("a float for an integer", "malformed", LEASE_TOPIC, lease(lease=3.0)),
        ("a bool for an integer", "malformed", LEASE_TOPIC, lease(lease=True)),
        ("a str for an integer", "malformed", LEASE_TOPIC, lease(lease="3")),
        ("bin for str", "malformed", LEASE_TOPIC, lease(run=b"r-1")),
        ("nil for what must be there", "malformed", LEASE_TOPIC, lease(run=None)),
        ("a run that is no id", "malformed", LEASE_TOPIC, lease(run="R 1")),
        ("a negative counter", "malformed", LEASE_TOPIC, lease(lease=-1)),
        ("a counter of 2^53", "malformed", LEASE_TOPIC, lease(lease=2**53)),
        ("a counter of 2^64 - 1", "malformed", LEASE_TOPIC, lease(lease=2**64 - 1)),
        ("an infinite time", "malformed", LEASE_TOPIC, lease(lease_s=float("inf"))),
        ("a time that is not a number", "malformed", LEASE_TOPIC, lease(lease_s=float("nan"))),
        ("a negative time", "malformed", LEASE_TOPIC, lease(lease_s=-1.0)),
        ("an epoch of 2^53", "malformed", LEASE_TOPIC, _packed(_content(LEASE, epoch=2**53))),
        ("a key id of seven bytes", "malformed", LEASE_TOPIC, _packed(_content(LEASE, key_id=bytes(7)))),
        ("a sender of 65 characters", "malformed", LEASE_TOPIC, _packed(_content(LEASE, sender="a" * 65))),
        ("an eighth element", "malformed", LEASE_TOPIC, _packed(_content(LEASE, more=0))),
        ("a body that is no map", "malformed", LEASE_TOPIC, _packed(_content(LEASE, body=[1]))),
        ("nested 40 deep", "malformed", LEASE_TOPIC, _packed(body)),
        ("nested 10,000 deep", "malformed", LEASE_TOPIC, b"\x91" * 10_000),
        ("a content nested 5,000 deep", "malformed", LEASE_TOPIC, _packed(b"\x97\x01" + b"\x91" * 5_000)),
        ("an array that claims 2^32 - 1 entries", "malformed", LEASE_TOPIC, b"\xdd\xff\xff\xff\xff"),
        ("a map that claims 2^32 - 1 entries", "malformed", LEASE_TOPIC, _packed(b"\xdf\xff\xff\xff\xff")),
        ("bytes that claim 2^32 - 1", "malformed", LEASE_TOPIC, b"\x92\xc6\xff\xff\xff\xff\x00"),
        ("an extension type", "malformed", LEASE_TOPIC, _packed(b"\x97\x01\xd4\x01\x00" + good[2:])),
        ("5,000 entries", "malformed", LEASE_TOPIC, _packed(msgpack.packb([1] * 5_000))),
        ("a byte too many", "malformed", LEASE_TOPIC, sealed + b"\x00"),
        ("a byte too few", "malformed", LEASE_TOPIC, sealed[:-1]),
        ("the content alone", "malformed", LEASE_TOPIC, good),
        ("a signature of 63 bytes", "malformed", LEASE_TOPIC, msgpack.packb([good, bytes(63)])),
        ("a str for the content", "malformed", LEASE_TOPIC, msgpack.packb(["lease", bytes(64)])),
        ("no msgpack", "malformed", LEASE_TOPIC, b"\xc1"),
        ("a number", "malformed", LEASE_TOPIC, b"\x01"),
        ("text that is not UTF-8", "malformed", LEASE_TOPIC, _packed(good.replace(b"r-1", b"\xff-1"))),
    ]
    cases = [
        Case(name, "open", _given("device", topic, bytes(data)), error=why) for name, why, topic, data in bad
    ]
    return [*cases, *_status_cases(), *_strange_cases(), *_upward_cases()]


def _status_cases() -> list[Case]:
    topic = TOPICS.coordinator_status
    stranger = Status(online=True, session=EPOCH, public_key=DEVICE_KEY.public_key)
    content = _content(stranger)
    return [
        Case(
            "a status that names another key than the one that signed it",
            "open",
            _given("device", topic, _packed(content, topic)),
            error="bad-signature",
        )
    ]


def _strange_cases() -> list[Case]:
    """Written otherwise than we would, and right."""
    backwards = {key: LEASE.model_dump()[key] for key in reversed(LEASE.model_dump())}
    long_form = bytes.fromhex("dd00000002c6") + len(_content(LEASE)).to_bytes(4, "big") + _content(LEASE)
    long_form += b"\xc5\x00\x40" + COORDINATOR_KEY.sign(LEASE_TOPIC.encode() + b"\0" + _content(LEASE))
    hello = Hello()
    topic = TOPICS.up(DEVICE, "hello")
    upward = _content(
        hello, sender=DEVICE, key_id=DEVICE_KEY.key_id, epoch=8, body={"run": None, "version": None}
    )
    signed = bytes(msgpack.packb([upward, DEVICE_KEY.sign(topic.encode() + b"\0" + upward)]))
    gives = {"kind": "lease", "sender": COORDINATOR, "epoch": EPOCH, "sequence": 9, "body": plain_body(LEASE)}
    written: list[tuple[str, bytes]] = [
        ("keys in another order", _packed(_content(LEASE, body=backwards))),
        ("an integer for a float", _packed(_content(LEASE, body={**LEASE.model_dump(), "lease_s": 60}))),
        ("lengths that are longer than they need be", long_form),
        (
            "a float32",
            _packed(
                _content(LEASE).replace(b"\xcb\x40\x4e\x00\x00\x00\x00\x00\x00", b"\xca\x42\x70\x00\x00")
            ),
        ),
    ]
    cases = [Case(name, "open", _given("device", LEASE_TOPIC, data), gives) for name, data in written]
    told = {"kind": "hello", "sender": DEVICE, "epoch": 8, "sequence": 9, "body": {}}
    return [*cases, Case("nil for what may be left out", "open", _given("coordinator", topic, signed), told)]


def _upward_cases() -> list[Case]:
    """What the coordinator refuses."""
    sealer = Sealer(sender=DEVICE, epoch=8, key=DEVICE_KEY)
    other = Sealer(sender="dev-2", epoch=8, key=DEVICE_KEY)
    hello, get = TOPICS.up(DEVICE, "hello"), TOPICS.up(DEVICE, "get")
    asked = Get(run="r-1", version=1, blob="delta", index=0)
    presence = Presence(online=True, session=9, public_key=DEVICE_KEY.public_key)
    bad = [
        ("in the name of another device", "wrong-topic", hello, other.seal(hello, Hello())),
        ("a get on the topic for hello", "wrong-topic", hello, sealer.seal(hello, asked)),
        ("moved to another topic", "wrong-topic", hello, sealer.seal(get, asked)),
        ("what the coordinator says, by a device", "wrong-topic", hello, sealer.seal(hello, LEASE)),
        (
            "a presence of another session than its envelope",
            "bad-session",
            TOPICS.presence(DEVICE),
            sealer.seal(TOPICS.presence(DEVICE), presence),
        ),
    ]
    return [
        Case(name, "open", _given("coordinator", topic, data), error=why) for name, why, topic, data in bad
    ]


def replay_cases() -> list[Case]:
    """Verified packets of one sender as (epoch, sequence), and which of them are to be taken."""

    def case(name: str, window: int, packets: list[tuple[int, int]], taken: list[bool]) -> Case:
        given = {"window": window, "packets": [list(packet) for packet in packets]}
        return Case(name, "replays", given, {"taken": taken})

    yes, no = True, False
    return [
        case("once each, with gaps", 1_024, [(5, 1), (5, 2), (5, 9), (5, 4_000)], [yes] * 4),
        case("out of order", 1_024, [(5, 3), (5, 1), (5, 2)], [yes] * 3),
        case("twice", 1_024, [(5, 1), (5, 1), (5, 2), (5, 1), (5, 2)], [yes, no, yes, no, no]),
        case("a new epoch", 1_024, [(5, 9), (6, 1), (5, 10), (6, 1), (6, 9)], [yes, yes, no, no, yes]),
        case(
            "the window's edge",
            8,
            [(1, 20), (1, 13), (1, 12), (1, 13), (1, 21), (1, 14)],
            [yes, yes, no, no, yes, yes],
        ),
        case("a long way ahead", 8, [(1, 1), (1, 2**53 - 1), (1, 2), (1, 2**53 - 2)], [yes, yes, no, yes]),
    ]
