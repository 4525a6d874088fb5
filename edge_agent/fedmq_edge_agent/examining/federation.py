"""What stands behind the broker: the coordinator, its run, and the model that a device has to fetch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, TypeVar

from fedmq_edge_agent.core.words import size as size_text
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, skipped, warning
from fedmq_edge_agent.examining.line import Line, RefusedError
from fedmq_protocol.aio import Message
from fedmq_protocol.chunks import chain_hash
from fedmq_protocol.envelope import COORDINATOR, open_envelope
from fedmq_protocol.errors import RemoteError, SignatureError
from fedmq_protocol.messages import Announcement, Body, Hello, ModelChunk, Status
from fedmq_protocol.signing import key_id
from fedmq_protocol.topics import BlobKind

B = TypeVar("B", bound=Body)

RETAINED_S: Final = 2.0
"""A broker answers a subscription by itself, and at once."""
_MOMENT_S: Final = 0.5
"""What is retained beside the status came with it."""
ANSWER_S: Final = 4.0
_WINDOW: Final = 4
_WHOLE_BYTES: Final = 16_000_000
"""A larger model is fetched in part."""
_DELTAS: Final = 64
"""A longer chain likewise."""


def _opened(message: Message, key: bytes | None, kind: type[B]) -> B:
    """What the coordinator said.

    Raises:
        RemoteError: it is no such message of the coordinator's, or (`SignatureError`) signed by another key.
    """
    envelope = open_envelope(message.topic, message.payload)
    if envelope.sender != COORDINATOR:
        raise RemoteError(f"sent by {envelope.sender[:64]!r}", reason="wrong-sender")
    if key is None:
        if not isinstance(envelope.body, Status):
            raise RemoteError("the coordinator's key is not known", reason="key-unknown")
        key = envelope.body.public_key
    body = envelope.verified(key).body
    if not isinstance(body, kind):
        raise RemoteError(f"a {envelope.kind} in another message's place", reason="wrong-kind")
    return body


# ---------------------------------------------------------------------------------------------- the coordinator


async def look_for_coordinator(device: Device) -> Finding:
    """Is there a coordinator, is it the one that this device believes, and does it answer?"""
    line = device.line
    assert line is not None
    topic = device.topics.coordinator_status
    message = await line.wait_for(topic, within_s=RETAINED_S)
    if message is None or not message.payload:
        return warning(
            "there is no sign of one: the broker keeps no status of it",
            f"start one (`fedmq coordinator start`) for the federation {device.settings.federation!r} on this broker; "
            "if there is one, does the broker's access list let this device read coordinator/status?",
        )
    try:
        status = _opened(message, device.coordinator_key, Status)
    except SignatureError:
        assert device.coordinator_key is not None
        known = key_id(device.coordinator_key).hex()
        where = (
            f"remove {device.state_dir}/coordinator.pub"
            if device.settings.coordinator_key is None
            else "set coordinator_key in [device] to its key (`coordinator.pub` in the state folder of an agent that "
            "believes it)"
        )
        return failed(
            f"the one on this broker signs with another key than the one that this device believes ({known})",
            f"if the coordinator was set up anew: {where}, and restart the agent; if not, ask who that is",
        )
    except RemoteError as error:
        return failed(f"what the broker keeps as its status is none: {error}", "restart the coordinator")
    device.coordinator_online = status.online
    device.coordinator_key = device.coordinator_key or status.public_key
    if not status.online:
        return warning(
            "it is away, says its last word on the broker",
            "start it: `fedmq coordinator start`; the device keeps everything until then",
        )
    if not line.can_speak():
        return fine("it is there (and was not asked anything, since the agent has no key yet)")
    return await _ask(device, line)


async def _ask(device: Device, line: Line) -> Finding:
    """Say hello in a session that is over: it is answered, and changes nothing."""
    own = device.topics.down(device.settings.id, "announcement")
    status = device.topics.coordinator_status
    line.forget(status)
    try:
        await line.publish(*line.seal("hello", Hello()))
    except RefusedError:
        return warning("it is there, and this device may not speak to it", "see `rights`")
    if await line.wait_for(own, status, within_s=ANSWER_S) is not None:
        return fine("it is there, and answers this device")
    return warning(
        "it is there, and does not answer this device",
        f"at the operator's: `fedmq device doctor {device.settings.id}`; does it know this device by another key? A "
        "device whose state was lost needs a new name, or be forgotten there",
    )


async def look_for_run(device: Device) -> Finding:
    """What is announced?"""
    line = device.line
    assert line is not None
    topics = (device.topics.announcement, device.topics.down(device.settings.id, "announcement"))
    message = await line.wait_for(*topics, within_s=_MOMENT_S)
    if message is None or not message.payload:
        return skipped("none is announced yet: start one by `fedmq run start`")
    try:
        announcement = _opened(message, device.coordinator_key, Announcement)
    except RemoteError as error:
        return failed(f"the announcement cannot be believed: {error}", "restart the coordinator")
    device.announcement = announcement
    task = announcement.task
    if announcement.state != "running":
        return fine(f"{announcement.run} ({task.name} {task.version}) is {announcement.state}; none runs now")
    return fine(
        f"{announcement.run} trains {task.name} {task.version}, at version {announcement.manifest.version}"
    )


# ---------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class _Missing(Exception):  # noqa: N818 - a way out, not a fault of ours
    """A chunk that the broker does not give."""

    topic: str


async def fetch_model(device: Device) -> Finding:
    """Do the model's chunks come, and are they what the coordinator promised?"""
    line, announcement = device.line, device.announcement
    assert line is not None
    assert announcement is not None
    if announcement.state != "running":
        return skipped("no run is under way")
    manifest = announcement.manifest
    fetch = _Fetch(device, line, announcement.run)
    total = manifest.snapshot.size + manifest.chain_bytes
    whole = total <= _WHOLE_BYTES and manifest.version - manifest.base <= _DELTAS
    try:
        if whole:
            await fetch.all_of(announcement)
        else:
            await fetch.ends_of(announcement)
    except _Missing as missing:
        return _lacks(device, missing.topic)
    except RemoteError as error:
        return failed(
            f"what comes is not what the coordinator promised: {error}",
            "restart the coordinator: it publishes its chunks anew; if it stays, somebody else writes on model/…",
        )
    limit = device.settings.broker.max_packet_bytes
    if fetch.largest_packet > limit:
        return failed(
            f"it comes in packets of {fetch.largest_packet:,} bytes, and max_packet_bytes, {limit:,}, lets none in",
            f"set max_packet_bytes in [broker] to {max(fetch.largest_packet, 131_072)}, or remove it",
        )
    chunks = f"{fetch.count} chunk{'' if fetch.count == 1 else 's'}"
    if not whole:
        return fine(f"{chunks} of {size_text(total)} were fetched, and are signed by the coordinator")
    return fine(f"version {manifest.version}: {chunks}, {size_text(total)}, every hash as promised")


def _lacks(device: Device, topic: str) -> Finding:
    short = topic.removeprefix(f"{device.topics.root}/")
    found = f"the broker does not give the chunk {short}"
    if device.coordinator_online:
        return warning(
            f"{found}; the coordinator will be asked for it, which is slower",
            "does the broker keep as many retained messages as there are chunks, and may this device read model/+/+/+? "
            "`fedmq broker check` knows",
        )
    return failed(
        f"{found}, and the coordinator, who could, is away",
        "start the coordinator: it publishes again what the broker lacks",
    )


class _Fetch:
    """Chunks, each from its own topic; counted."""

    def __init__(self, device: Device, line: Line, run: str) -> None:
        self._device = device
        self._line = line
        self._run = run
        self.count = 0
        self.largest_packet = 0

    async def all_of(self, announcement: Announcement) -> None:
        """Everything that a device without a model would fetch.

        Raises:
            _Missing: a chunk does not come.
            RemoteError: a chunk, a hash or the chain is not as promised.
        """
        manifest = announcement.manifest
        head = await self._blob(manifest.base, "snapshot", expected=manifest.snapshot.sha256)
        chained = head.chain_hash
        for version in range(manifest.base + 1, manifest.version + 1):
            newest = manifest.delta if version == manifest.version else None
            if newest is not None and announcement.inline_delta is not None:
                if hashlib.sha256(announcement.inline_delta).digest() != newest.sha256:
                    raise RemoteError(f"the delta of version {version} has another hash")
                chained = chain_hash(chained, newest.sha256)
                continue
            head = await self._blob(version, "delta", expected=None if newest is None else newest.sha256)
            chained = chain_hash(chained, head.ref.sha256)
        if chained != manifest.chain_hash:
            raise RemoteError(f"the versions up to {manifest.version} are not those that were announced")

    async def ends_of(self, announcement: Announcement) -> None:
        """The first and the last chunk of the snapshot; raises like `all_of`."""
        base = announcement.manifest.base
        head = (await self._chunks(base, "snapshot", [0]))[0]
        if head.ref != announcement.manifest.snapshot:
            raise RemoteError("the snapshot is not the one that was announced")
        if head.count > 1:
            await self._chunks(base, "snapshot", [head.count - 1])

    async def _blob(self, version: int, blob: BlobKind, *, expected: bytes | None) -> ModelChunk:
        head = (await self._chunks(version, blob, [0]))[0]
        digest = hashlib.sha256(head.data)
        rest = range(1, head.count)
        for begin in range(0, len(rest), _WINDOW):
            for chunk in await self._chunks(version, blob, list(rest[begin : begin + _WINDOW])):
                digest.update(chunk.data)
        if digest.digest() != head.ref.sha256 or expected not in {None, head.ref.sha256}:
            raise RemoteError(f"the {blob} of version {version} has another hash")
        return head

    async def _chunks(self, version: int, blob: BlobKind, indices: list[int]) -> list[ModelChunk]:
        topics = [self._device.topics.chunk(self._run, version, blob, index) for index in indices]
        for topic in topics:
            try:
                await self._line.subscribe(topic)
            except RefusedError:
                raise _Missing(topic) from None
        chunks = []
        for topic in topics:
            message = await self._line.wait_for(topic, within_s=RETAINED_S)
            if message is None or not message.payload:
                raise _Missing(topic)
            body = _opened(message, self._device.coordinator_key, ModelChunk)
            self.count += 1
            self.largest_packet = max(self.largest_packet, len(message.payload) + len(topic) + 16)
            self._line.forget(topic)
            chunks.append(body)
        await self._line.unsubscribe(topics)
        return chunks
