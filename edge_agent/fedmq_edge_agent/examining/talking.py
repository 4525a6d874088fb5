"""What the broker lets this device do: come in, speak on its own topics, hear, and send packets of full size."""

from __future__ import annotations

from typing import Final, get_args

from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, skipped, warning
from fedmq_edge_agent.examining.line import Line, RefusedError
from fedmq_edge_agent.shell.settings import MIN_PACKET_BYTES
from fedmq_protocol.aio_events import MQTT_5
from fedmq_protocol.errors import ConnectionFailedError
from fedmq_protocol.limits import MAX_COUNTER
from fedmq_protocol.messages import UploadChunk
from fedmq_protocol.topics import UpKind

_NO_RUN: Final = "examination"
"""No upload has this run and this number: a chunk of it is ignored by whoever gets it."""
_FRAME_BYTES: Final = 400
"""MQTT's header, the topic's and the envelope's: what a packet has besides the data in it."""
ALONE_S: Final = 1.0
"""An agent comes back within half of it."""


async def connect(device: Device) -> Finding:
    """Does the broker take this device's credentials?"""
    if device.agent_runs:
        if device.status and not device.status["connected"]:
            return failed(
                "the agent, which runs, is not connected", "see the findings above, and what it waits for"
            )
        known = "; it is connected" if device.status else ""
        return skipped(f"the agent runs, and this would throw it out{known}")
    broker = device.settings.broker
    try:
        device.line = await Line.open(device)
    except ConnectionFailedError as error:
        return failed(*_split(str(error), device))
    who = "by its certificate" if broker.cert_file else "by user name" if broker.username else "as a stranger"
    version = "MQTT 5" if device.line.told.protocol == MQTT_5 else "MQTT 3.1.1"
    return fine(f"{broker.address} lets this device in {who}, in {version}")


def _split(text: str, device: Device) -> tuple[str, str]:
    """What the connection says, as finding and mend."""
    if "refuses" in text and "certificate" not in text:
        name = device.settings.id
        found = text.partition(": set ")[0]
        if device.settings.broker.cert_file is not None:
            return found, f"is {name} still enrolled? At the operator's: `fedmq device doctor {name}`"
        return found, (
            "check username and password_file in [broker]; "
            f"at the operator's, `fedmq device enroll {name} --password` makes new ones"
        )
    found, _, mend = text.rpartition(": ")
    return (found, mend) if found else (text, "look at the broker's log")


async def is_alone(device: Device) -> Finding:
    """Does nobody else come in as this device? An agent that was thrown out comes back at once."""
    assert device.line is not None
    reason = await device.line.lost(ALONE_S)
    if reason:
        return failed(
            f"the broker ended this connection at once, as where another client comes in as this device: {reason}",
            "is there a second board with a copy of this identity, a cloned card perhaps? Enroll one of them under "
            "another name. Or does an agent run here with another state folder than this?",
        )
    return fine("nobody else comes in as this device")


async def may_speak(device: Device) -> Finding:
    """Does the broker's access list let this device hear what it must, and speak on its own topics?"""
    line, name, topics = device.line, device.settings.id, device.topics
    assert line is not None
    mend = (
        f"at the operator's: `fedmq device doctor {name}` shows its rights, `fedmq device enroll {name}` gives them; "
        f"is [federation] name = {device.settings.federation!r} right?"
    )
    refused = []
    for topic_filter in topics.device_filters(name):
        try:
            await line.subscribe(topic_filter)
        except RefusedError:
            refused.append(topic_filter)
    if refused:
        return failed(f"the broker does not let this device subscribe to {_short(refused, device)}", mend)
    if line.told.protocol != MQTT_5:
        return fine("it may subscribe; what it may publish, MQTT 3.1.1 does not say")
    own = [topics.presence(name), *(topics.up(name, kind) for kind in get_args(UpKind))]
    for topic in own:
        try:
            await line.publish_nothing(topic)
        except RefusedError:
            refused.append(topic)
    if refused:
        return failed(f"the broker does not let this device publish on {_short(refused, device)}", mend)
    return fine(f"it may hear the coordinator, and speak on its {len(own)} topics")


def _short(topics: list[str], device: Device) -> str:
    root = f"{device.topics.root}/"
    shown = ", ".join(topic.removeprefix(root) for topic in topics)
    return f"{shown} (of {device.topics.root})"


async def send_large(device: Device) -> Finding:
    """Does a packet of the size that the agent will use get through?"""
    line = device.line
    assert line is not None
    ours, theirs = device.settings.broker.max_packet_bytes, line.told.max_packet_bytes
    limit = min(ours, theirs or ours)
    if limit < MIN_PACKET_BYTES:
        return failed(
            f"the broker takes packets of {theirs:,} bytes at most, and {MIN_PACKET_BYTES:,} is the least that do",
            "raise max_packet_size in the broker's configuration: `fedmq broker check` says to what",
        )
    if line.can_speak():
        passed = await _largest(line, limit)
        if passed < limit:
            sizes = f"a packet of {limit:,} bytes does not get through" + (
                f", one of {passed:,} does" if passed else ""
            )
            return failed(
                sizes,
                "raise message_size_limit and max_packet_size at the broker"
                + (f"; until then set max_packet_bytes = {passed} in [broker] here" if passed else ""),
            )
    if theirs is not None and theirs < ours:
        return warning(
            f"the broker takes packets of {theirs:,} bytes, and this device could send {ours:,}: large updates go in "
            "smaller pieces, and more of them",
            "raise max_packet_size in the broker's configuration: `fedmq broker check` says to what",
        )
    if not line.can_speak():
        said = f"the broker takes {theirs:,} bytes" if theirs else "the broker names no limit"
        return fine(f"{said}; none was sent, since the agent has no key yet")
    return fine(f"a packet of {limit:,} bytes gets through")


async def _largest(line: Line, limit: int) -> int:
    """The largest packet that is taken, of `limit` bytes and its halves; 0: none is."""
    size = limit
    while size >= MIN_PACKET_BYTES:
        connections = line.connections
        body = UploadChunk(run=_NO_RUN, counter=MAX_COUNTER, index=0, data=bytes(size - _FRAME_BYTES))
        try:
            await line.publish(*line.seal("chunk", body))
        except RefusedError:
            size //= 2
        except ConnectionFailedError:  # it hangs up on it
            size //= 2
            if not await line.connected_after(connections):
                return 0
        else:
            return size
    return 0
