"""Rules about messages that are lost, and packets that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fedmq_broker.checking.finding import Context, Finding, Rule

_DEFAULT_QUEUE: Final = 1_000
_DEFAULT_PACKET_2_1: Final = 2_000_000
_KEEPALIVE_S: Final = 30
_UNLIMITED_SINCE: Final = (2, 1)
_COUNTS_THE_PLUGIN: Final = (2, 1)


def swallowing(context: Context) -> Iterator[Finding]:
    """What is larger is acknowledged and thrown away: the sender believes that it arrived."""
    line = context.reading.common.last("message_size_limit")
    if line is not None and line.integer > 0:
        needed = context.limits.max_packet_size
        yield Finding(
            "error",
            "message-size-limit",
            line,
            f"what is larger than {line.integer:,} bytes is acknowledged and thrown away, and nobody is told",
            f"take the line out, and write max_packet_size {needed}, which disconnects instead",
        )


def short_queue(context: Context) -> Iterator[Finding]:
    """Beyond the queue Mosquitto drops what it has acknowledged."""
    needed = context.limits.max_queued_messages
    line = context.reading.common.last("max_queued_messages")
    count = _DEFAULT_QUEUE if line is None else line.integer
    if 0 < count < needed:
        said = f"the default of {count:,}" if line is None else f"{count:,}"
        yield Finding(
            "error",
            "max-queued-messages",
            line,
            f"beyond {said} messages for one client the rest is dropped, acknowledged or not;"
            f" {context.devices:,} devices can send {needed:,}",
            f"write max_queued_messages {needed}",
        )


def short_queue_in_bytes(context: Context) -> Iterator[Finding]:
    """The same in bytes; the first limit that is reached drops."""
    needed = context.limits.max_queued_bytes
    line = context.reading.common.last("max_queued_bytes")
    if line is not None and 0 < line.integer < needed:
        yield Finding(
            "error",
            "max-queued-bytes",
            line,
            f"beyond {line.integer:,} bytes for one client the rest is dropped, acknowledged or not;"
            f" {context.devices:,} devices can send {needed:,}",
            f"write max_queued_bytes {needed}",
        )
    elif line is None or line.integer == 0:
        messages = context.reading.common.integer("max_queued_messages", _DEFAULT_QUEUE)
        if messages == 0:
            yield Finding(
                "warning",
                "unbounded-queue",
                line or context.reading.common.last("max_queued_messages"),
                "the queue of a client that does not read has no bound: it takes what memory there is",
                f"write max_queued_messages {context.limits.max_queued_messages}"
                f" and max_queued_bytes {needed}",
            )


def small_packets(context: Context) -> Iterator[Finding]:
    """A chunk of a model that is larger than the limit disconnects whoever sends it."""
    needed = context.limits.max_packet_size
    line = context.reading.common.last("max_packet_size")
    if line is not None and 0 < line.integer < needed:
        yield Finding(
            "error",
            "max-packet-size",
            line,
            f"a packet above {line.integer:,} bytes disconnects its sender; fedmq sends {needed:,}",
            f"write max_packet_size {needed}, or max_packet_bytes = {line.integer} in [broker] everywhere",
        )
    elif line is None and context.version >= _UNLIMITED_SINCE and needed > _DEFAULT_PACKET_2_1:
        yield Finding(
            "error",
            "max-packet-size",
            None,
            f"without it, 2.1 disconnects above {_DEFAULT_PACKET_2_1:,} bytes; fedmq is to send {needed:,}",
            f"write max_packet_size {needed}",
        )
    elif (line is None and context.version < _UNLIMITED_SINCE) or (line is not None and line.integer <= 0):
        yield Finding(
            "warning",
            "unbounded-packets",
            line,
            "one packet of 256 MB from anybody takes as much memory",
            f"write max_packet_size {needed}",
        )


def bridge_packets(context: Context) -> Iterator[Finding]:
    """A bridge has a limit of its own, which drops."""
    needed = context.limits.max_packet_size
    for bridge in context.reading.bridges:
        line = bridge.last("bridge_max_packet_size")
        if line is not None and 0 < line.integer < needed:
            yield Finding(
                "error",
                "bridge-max-packet-size",
                line,
                f"packets above {line.integer:,} bytes do not pass this bridge; fedmq sends {needed:,}",
                f"write bridge_max_packet_size {needed}",
            )


def few_connections(context: Context) -> Iterator[Finding]:
    """The coordinator and its tools come on top of the devices."""
    needed = context.limits.max_connections
    capped = [listener.last("max_connections") for listener in context.reading.listeners]
    room = sum(needed if line is None or line.integer < 0 else line.integer for line in capped)
    tight = [line for line in capped if line is not None and line.integer >= 0]
    if capped and tight and room < needed:
        yield Finding(
            "error",
            "max-connections",
            tight[0],
            f"{room:,} connections are not enough for {context.devices:,} devices that all come back while their old"
            " connections still count",
            f"write max_connections {needed}",
        )
    for name in ("global_max_connections", "global_max_clients"):
        line = context.reading.common.last(name)
        if line is not None and 0 <= line.integer < needed:
            yield Finding(
                "error",
                "max-connections",
                line,
                f"{line.integer:,} are not enough for {context.devices:,} devices that all come back while their old"
                " connections still count",
                f"write {name} {needed}",
            )


def low_quality_of_service(context: Context) -> Iterator[Finding]:
    """Everything that counts is sent at QoS 1."""
    for listener in context.reading.listeners:
        line = listener.last("max_qos") or listener.last("maximum_qos")
        if line is not None and line.integer == 0:
            yield Finding(
                "error",
                "max-qos",
                line,
                "QoS 1 is refused, and with it every message of fedmq",
                "write max_qos 1",
            )


def nothing_retained(context: Context) -> Iterator[Finding]:
    """A model's chunks are retained, so that the broker answers for them by itself."""
    common = context.reading.common
    if not common.flag("retain_available", default=True):
        yield Finding(
            "error",
            "retain-available",
            common.last("retain_available"),
            "nothing is retained: each device's every chunk is asked of the coordinator, and presence is lost",
            "take the line out",
        )
    line = common.last("retain_expiry_interval")
    if line is not None and line.integer > 0:
        yield Finding(
            "warning",
            "retain-expiry",
            line,
            "retained chunks of the model and presence vanish after a time",
            "take the line out",
        )


def forgetful(context: Context) -> Iterator[Finding]:
    """Retained messages and what they cost to publish again."""
    common = context.reading.common
    if not common.flag("persistence", default=False):
        yield Finding(
            "warning",
            "persistence",
            common.last("persistence"),
            "a restart forgets the model's chunks and who is there; all is published again",
            "write persistence true, and persistence_location",
        )
        return
    if common.last("persistence_location") is None:
        yield Finding(
            "warning",
            "persistence-location",
            common.last("persistence"),
            "what is saved goes to whatever folder Mosquitto is started in",
            "write persistence_location with a folder that its user can write",
        )
    line = common.last("autosave_interval")
    if line is not None and line.integer <= 0 and not common.flag("autosave_on_changes", default=False):
        yield Finding(
            "warning",
            "autosave-interval",
            line,
            "retained messages are saved at an orderly end alone: a crash loses all of them",
            f"write autosave_interval {context.limits.autosave_interval}",
        )
    if common.last("persistent_client_expiration") is None:
        yield Finding(
            "warning",
            "persistent-client-expiration",
            None,
            "who came once with a lasting session and never comes back keeps its queue for ever",
            f"write persistent_client_expiration {context.limits.persistent_client_expiration}",
        )


def little_memory(context: Context) -> Iterator[Finding]:
    """At the limit clients are disconnected; without one, the machine runs dry."""
    needed = context.limits.memory_limit
    line = context.reading.common.last("memory_limit")
    if context.version < _COUNTS_THE_PLUGIN and _has_security_plugin(context):
        if line is not None and line.integer > 0:
            yield Finding(
                "error",
                "memory-limit-and-plugin",
                line,
                "up to 2.0, each answer of the security plugin is taken off Mosquitto's account of memory: after a"
                " hundred it is below zero, which counts as above the limit, and nobody is served",
                "take the line out; MemoryMax in the systemd unit does the same",
            )
    elif line is None or line.integer <= 0:
        yield Finding(
            "warning",
            "memory-limit",
            line,
            "clients that do not read can make it take what memory the machine has",
            f"write memory_limit {needed}",
        )
    elif line.integer < needed:
        yield Finding(
            "error",
            "memory-limit",
            line,
            f"at {line.integer:,} bytes clients are disconnected; this fleet can ask for {needed:,}",
            f"write memory_limit {needed}",
        )


def copies_in_flight(context: Context) -> Iterator[Finding]:
    """Each message on the way is a copy in memory."""
    line = context.reading.common.last("max_inflight_messages")
    if line is not None and line.integer == 0:
        needed = context.limits.max_inflight_messages
        yield Finding(
            "warning",
            "max-inflight-messages",
            line,
            "a client that acknowledges nothing gets all of its queue copied at once",
            f"write max_inflight_messages {needed}",
        )


def short_keepalive(context: Context) -> Iterator[Finding]:
    """Clients of MQTT 3.1.1 that ask for more are turned away by 2.1."""
    line = context.reading.common.last("max_keepalive")
    if line is not None and line.integer < _KEEPALIVE_S:
        yield Finding(
            "warning",
            "max-keepalive",
            line,
            f"fedmq asks for {_KEEPALIVE_S} s: over MQTT 3.1.1, Mosquitto 2.1 turns it away",
            f"write max_keepalive {context.limits.max_keepalive}",
        )


def refused_protocols(context: Context) -> Iterator[Finding]:
    """What fedmq speaks: MQTT 5 and 3.1.1."""
    for listener in context.reading.listeners:
        line = listener.last("accept_protocol_versions")
        if line is None:
            continue
        taken = {word.strip() for word in line.value.replace(",", " ").split()}
        if not taken & {"4", "5"}:
            yield Finding(
                "error",
                "protocol-versions",
                line,
                "neither MQTT 5 nor 3.1.1 is spoken here",
                "write accept_protocol_versions 4,5",
            )


def silent(context: Context) -> Iterator[Finding]:
    """Without `$SYS` nobody sees a queue filling."""
    line = context.reading.common.last("sys_interval")
    if line is not None and line.integer <= 0:
        yield Finding(
            "warning",
            "sys-interval",
            line,
            "$SYS is not published: nobody sees that a queue fills or that messages are dropped",
            "write sys_interval 10",
        )


def elsewhere(context: Context) -> Iterator[Finding]:
    """A mount point is put before each topic, at one listener alone."""
    for listener in context.reading.listeners:
        line = listener.last("mount_point")
        if line is not None and line.value:
            yield Finding(
                "error",
                "mount-point",
                line,
                f"who comes in by {listener.name} lives below {line.value!r}, and meets nobody of the other listeners",
                "take the line out: one federation, one tree of topics",
            )


def old_prefixes(context: Context) -> Iterator[Finding]:
    """Devices have client ids that begin with `fedmq-`."""
    for line in context.reading.common.all("clientid_prefixes"):
        if line.value and not "fedmq-".startswith(line.value):
            yield Finding(
                "error",
                "clientid-prefixes",
                line,
                f"only client ids that begin with {line.value!r} are let in; devices' begin with fedmq-",
                "take the line out",
            )


def _has_security_plugin(context: Context) -> bool:
    sections = (context.reading.common, *context.reading.listeners)
    return any(
        "dynamic_security" in line.value
        for section in sections
        for name in ("plugin", "auth_plugin")
        for line in section.all(name)
    )


RULES: Final[tuple[Rule, ...]] = (
    swallowing,
    short_queue,
    short_queue_in_bytes,
    small_packets,
    bridge_packets,
    few_connections,
    low_quality_of_service,
    nothing_retained,
    forgetful,
    little_memory,
    copies_in_flight,
    short_keepalive,
    refused_protocols,
    silent,
    elsewhere,
    old_prefixes,
)
