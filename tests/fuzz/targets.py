"""What is fuzzed: every decoder of bytes from outside, alone, and the two state machines behind them.

A target takes arbitrary bytes. It may raise the protocol's own errors inside, and nothing else may come out. Where a
signature or a length would turn random bytes away at the door, the target puts the bytes behind it: it wraps them into
an envelope and signs them, so that what lies deeper is reached.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgpack
import numpy as np

from fedmq_broker.embedded.model import BrokerModel, ConnectionOpened, PacketArrived
from fedmq_broker.embedded.packets import Framer, MalformedPacketError
from fedmq_broker.embedded.packets import decode as decode_packet
from fedmq_coordinator.core import events as coordinator_events
from fedmq_coordinator.core.facts import KINDS as FACTS
from fedmq_coordinator.core.facts import load as load_fact
from fedmq_edge_agent.core.events import PacketArrived as AgentPacketArrived
from fedmq_edge_agent.core.state import load_index, load_state
from fedmq_protocol.chunks import Assembly, blob_ref
from fedmq_protocol.codecs import Dense, apply_delta, decode, decode_snapshot, decode_update
from fedmq_protocol.envelope import COORDINATOR, open_envelope
from fedmq_protocol.errors import CodecError, RemoteError, StoreError
from fedmq_protocol.messages import KINDS, Update
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.coordinator.core.world import World, settings
from tests.edge_agent.core.driven import Device
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator

TOPICS: Final = Topics("home")
LENGTHS: Final = (0, 1, 63, 64, 65, 400, 4_096)
"""Lengths of vectors that payloads are decoded for."""
LONG_LENGTHS: Final = (70_001, 1 << 20)
"""Likewise, where one execution may take long."""
SCHEMA: Final = TensorSchema(
    entries=(
        TensorEntry(name="w", shape=(40, 10), dtype="float32", role="parameter"),
        TensorEntry(name="b", shape=(10,), dtype="float32", role="parameter"),
        TensorEntry(name="f", shape=(7,), dtype="float32", role="frozen"),
        TensorEntry(name="mean", shape=(10,), dtype="float32", role="buffer"),
    )
)
_KINDS: Final = tuple(KINDS)
_UP: Final = ("hello", "update", "offer", "upload_chunk", "report", "get", "presence")
_DOWN: Final = ("announcement", "lease", "receipt", "credit", "chunk", "notice", "status")
_BLOB: Final = (bytes(range(251)) * 262)[: 255 * 256]
_HISTORY: Final = 300
"""A state machine takes so many inputs before it is set up anew."""


def envelope(data: bytes) -> None:
    """A packet as it comes."""
    try:
        open_envelope(TOPICS.announcement, data)
    except RemoteError:
        return


def body(data: bytes) -> None:
    """The body of each kind, behind a good header."""
    if not data:
        return
    kind = _KINDS[data[0] % len(_KINDS)]
    content = _content(kind, "dev-1", 3, data[1:])
    try:
        opened = open_envelope(TOPICS.announcement, msgpack.packb([content, bytes(64)]))
    except RemoteError:
        return
    assert opened.kind == kind


def topic(data: bytes) -> None:
    """A topic's name."""
    text = data.decode("utf-8", "replace")
    for parse in (TOPICS.parse_device, TOPICS.parse_chunk):
        for name in (text, f"{TOPICS.root}/{text}"):
            try:
                parse(name)
            except RemoteError:
                continue


def shapes_of(n: int) -> tuple[tuple[int, ...], ...]:
    """Tensors that make up a vector of n: a matrix, a bias, and a stack of kernels where there is room."""
    side = int(n**0.5)
    matrix = side // 2, side
    rest = n - matrix[0] * matrix[1]
    kernels = rest // 18, 2, 3, 3
    return tuple(shape for shape in (matrix, kernels, (rest - kernels[0] * 18,)) if 0 not in shape)


def payload(data: bytes) -> None:
    """A codec's payload, for a vector of some length, in tensors of some shapes."""
    _payload(data, LENGTHS)


def long_payload(data: bytes) -> None:
    """The same for longer vectors."""
    _payload(data, LONG_LENGTHS)


def _payload(data: bytes, lengths: tuple[int, ...]) -> None:
    if len(data) < 3:  # a length, flags and a tag
        return
    n = lengths[data[0] % len(lengths)]
    content = data[2:]
    if data[1] & 1 and len(content) > 5:  # tag and n
        content = content[:1] + struct.pack("<I", n) + content[5:]  # past the first check
    shapes = shapes_of(n) if data[1] & 2 else None
    try:
        decoded = decode(content, n, shapes=shapes, max_kept=n if data[1] & 4 else n // 16)
    except CodecError:
        return
    values = decoded.values
    assert decoded.n == n
    assert np.isfinite(values).all()
    if not isinstance(decoded, Dense):
        assert len(decoded.indices) == len(values)
        assert len(values) == 0 or int(decoded.indices[-1]) < n
        assert (np.diff(decoded.indices.astype(np.int64)) > 0).all()
    for fold in (lambda acc: decoded.add_to(acc, 0.5), decoded.apply_to):
        acc = np.zeros(n, np.float32)
        fold(acc)
        assert np.isfinite(acc).all()


def blob(data: bytes) -> None:
    """A snapshot, a delta, an update."""
    if not data:
        return
    whole = data[1:]
    if data[0] & 0x80:  # both halves behind a good wrapping
        cut = len(whole) * (data[0] & 0x7F) // 0x7F
        whole = msgpack.packb([whole[:cut], whole[cut:]])
    replica = np.ones(SCHEMA.size, np.float32)
    for read in (
        lambda: decode_snapshot(whole, SCHEMA),
        lambda: apply_delta(replica, whole, SCHEMA),
        lambda: decode_update(whole, SCHEMA, max_kept=50),
    ):
        before = replica.copy()
        try:
            read()
        except CodecError:
            assert np.array_equal(before, replica), "a refused delta has touched the replica"


def chunks(data: bytes) -> None:
    """Chunks of a blob in any order, of any size, any number of times."""
    if len(data) < 4:  # the head
        return
    size, chunk_bytes, cursor = data[0] * (1 + data[1]), 1 + data[2], 3
    want = _BLOB[:size]
    try:
        assembly = Assembly(blob_ref(want), chunk_bytes)
    except RemoteError:
        return
    while cursor + 1 < len(data):
        index, length = data[cursor], data[cursor + 1]
        start = index * chunk_bytes
        piece = want[start : start + chunk_bytes] if length & 1 else data[cursor + 2 : cursor + 2 + length]
        cursor += 2
        try:
            assembly.add(index, piece)
        except RemoteError:
            continue
        if assembly.complete:
            try:
                assert assembly.result() == want
            except RemoteError:
                assert assembly.missing(), "what is damaged is fetched again"


def stored(data: bytes) -> None:
    """Files and facts that were damaged on the disk."""
    if not data:
        return
    kinds = tuple(FACTS)
    for read in (
        lambda: load_state(data[1:]),
        lambda: load_index(data[1:]),
        lambda: load_fact(kinds[data[0] % len(kinds)], data[1:]),
    ):
        try:
            read()
        except StoreError:
            continue


class _Coordinator:
    """The coordinator's machine in mid-run, hearing a device that it knows."""

    def __init__(self) -> None:
        self.world = World()
        for name in ("a", "b", "c"):
            self.world.join(name)
        self.world.start_run(settings(rounds=1_000, mode="sync"))
        self.heard = 0

    def hear(self, data: bytes) -> None:
        self.heard += 1
        kind, rest = _UP[data[0] % len(_UP)], data[1:]
        device = self.world.devices["a"]
        if data[0] & 0x80 and self.world.core.runs["r1"].state == "active":
            header = self.world.update("a", 0.0).header.model_copy(update={"payload": blob_ref(rest)})
            self.world.say(device, "update", Update(header=header, data=rest))
            return
        place = {"upload_chunk": "chunk"}.get(kind, kind)
        topic_ = TOPICS.presence("a") if kind == "presence" else TOPICS.up("a", place)  # type: ignore[arg-type]
        content = _content(kind, "a", device.sealer.epoch, rest, key=SigningKey(_seed(b"a")))
        packet = _signed(topic_, content, SigningKey(_seed(b"a")))
        self.world.tell(coordinator_events.PacketArrived(topic_, packet))
        if data[0] & 0x40:
            self.world.pass_time(0.1)
        self.world.journal.clear()
        self.world.effects.clear()


class _Agent:
    """A device's machine that has joined, hearing its coordinator."""

    def __init__(self) -> None:
        self.script = ScriptedCoordinator()
        self.device = Device(self.script)
        self.device.join()
        self.device.hear(self.script.announcement(lease=1, cohort=EVERYBODY))
        self.heard = 0

    def hear(self, data: bytes) -> None:
        self.heard += 1
        kind, rest = _DOWN[data[0] % len(_DOWN)], data[1:]
        match kind:
            case "status":
                topic_ = TOPICS.coordinator_status
            case "announcement" if data[0] & 0x80:
                topic_ = TOPICS.announcement
            case "chunk" if data[0] & 0x80:
                topic_ = TOPICS.chunk("r1", 1, "delta", 0)
            case _:
                topic_ = TOPICS.down("dev-1", kind)  # type: ignore[arg-type]
        content = _content(kind, COORDINATOR, self.script.epoch, rest, key=self.script.key)
        self.device.tell(AgentPacketArrived(topic_, _signed(topic_, content, self.script.key)))
        if data[0] & 0x40:
            self.device.wait(1.0)


_coordinator: _Coordinator | None = None
_agent: _Agent | None = None


def coordinator(data: bytes) -> None:
    """Signed messages of a device that means ill."""
    global _coordinator  # noqa: PLW0603  # setting it up costs a thousand inputs
    if not data:
        return
    if _coordinator is None or _coordinator.heard >= _HISTORY:
        _coordinator = _Coordinator()
    _coordinator.hear(data)


def agent(data: bytes) -> None:
    """Signed messages of a coordinator that means ill."""
    global _agent  # noqa: PLW0603  # likewise
    if not data:
        return
    if _agent is None or _agent.heard >= _HISTORY:
        _agent = _Agent()
    _agent.hear(data)


def broker(data: bytes) -> None:
    """What a client sends to the embedded broker."""
    model, framer = BrokerModel(), Framer(1 << 16)
    model.handle(ConnectionOpened(1), now=0.0)
    try:
        for first, packet in framer.feed(data):
            model.handle(PacketArrived(1, decode_packet(first, packet)), now=0.0)
    except MalformedPacketError:
        return


@dataclass(frozen=True)
class Target:
    """One decoder.

    Attributes:
        run: takes the bytes.
        max_bytes: longest input that is tried.
        rss_mb: bound on the whole process while it runs.
        value_at: where in the input a msgpack value begins, for mutations that know it; None: plain bytes.
    """

    run: Callable[[bytes], None]
    max_bytes: int = 2_048
    rss_mb: int = 512
    value_at: int | None = None


TARGETS: Final[dict[str, Target]] = {
    "envelope": Target(envelope, value_at=0),
    "body": Target(body, value_at=1),
    "topic": Target(topic, max_bytes=256),
    "payload": Target(payload),
    "long_payload": Target(long_payload),
    "blob": Target(blob),
    "chunks": Target(chunks, max_bytes=256),
    "stored": Target(stored),
    "coordinator": Target(coordinator, value_at=1),
    "agent": Target(agent, value_at=1),
    "broker": Target(broker, max_bytes=512),
}


def _seed(name: bytes) -> bytes:
    import hashlib  # noqa: PLC0415  # as the world makes its devices' keys

    return hashlib.sha256(name).digest()


def _content(kind: str, sender: str, epoch: int, raw_body: bytes, *, key: SigningKey | None = None) -> bytes:
    """A content whose header is right; the body is whatever the bytes are."""
    head = [1, kind, sender, epoch, 1, bytes(8) if key is None else key.key_id]
    packed: bytes = b"\x97" + b"".join(msgpack.packb(field) for field in head) + raw_body
    return packed


def _signed(topic_: str, content: bytes, key: SigningKey) -> bytes:
    packet: bytes = msgpack.packb([content, key.sign(topic_.encode() + b"\0" + content)])
    return packet
