"""Every MQTT topic of the protocol, made and taken apart in one place.

    fedmq/v1/<federation>/coordinator/status            retained; last will of the coordinator
    fedmq/v1/<federation>/coordinator/run               retained; the announcement
    fedmq/v1/<federation>/coordinator/turn              retained; which devices may send updates now
    fedmq/v1/<federation>/model/<run>/<version>/<chunk> retained; `d0`, `d1`, ... (delta), `s0`, ... (snapshot)
    fedmq/v1/<federation>/dev/<device>/presence         retained; birth certificate and last will
    fedmq/v1/<federation>/dev/<device>/up/<kind>        hello, update, offer, chunk, report, get
    fedmq/v1/<federation>/dev/<device>/down/<kind>      announcement, lease, receipt, credit, chunk, notice
    fedmq/v1/<federation>/monitor/probe                 what the broker's monitor sends itself, to time it

At most seven slashes (AWS IoT's limit), and no filter of a device needs `#`, so that ACLs are exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from fedmq_protocol.errors import RemoteError, UsageError
from fedmq_protocol.limits import MAX_COUNTER, MAX_ID_CHARS

UpKind = Literal["hello", "update", "offer", "chunk", "report", "get"]
DownKind = Literal["announcement", "lease", "receipt", "credit", "chunk", "notice"]
BlobKind = Literal["delta", "snapshot"]
_UP_KINDS = frozenset(get_args(UpKind))
_DOWN_KINDS = frozenset(get_args(DownKind))

ID_PATTERN = rf"^[a-z0-9][a-z0-9._-]{{0,{MAX_ID_CHARS - 1}}}$"
"""What federations, devices and runs may be called: safe in a topic, a file name, a URL and a certificate."""

_ID = re.compile(ID_PATTERN)
_CHUNK = re.compile(r"^([ds])(0|[1-9][0-9]{0,5})$")
_NUMBER = re.compile(r"^(0|[1-9][0-9]{0,15})$")
_BLOB_LETTER: dict[BlobKind, str] = {"delta": "d", "snapshot": "s"}
_LETTER_BLOB: dict[str, BlobKind] = {"d": "delta", "s": "snapshot"}


def check_id(value: str, *, what: str) -> str:
    """Return `value` if it can be a federation's, device's or run's name.

    Raises:
        UsageError: it cannot; the text says what may be used.
    """
    if not _ID.fullmatch(value):
        msg = (
            f"{what} {value!r} is not usable: 1 to {MAX_ID_CHARS} of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
        raise UsageError(msg)
    return value


def subject(topic: str) -> dict[str, str]:
    """What a topic of any federation is about, as fields for a log: a `device`, or a `run`."""
    match topic.split("/")[3:5]:
        case ["dev", device]:
            return {"device": device}
        case ["model", run]:
            return {"run": run}
        case _:
            return {}


@dataclass(frozen=True)
class DeviceTopic:
    """A topic under `dev/<device>/`; `kind` is `"presence"` or one of `UpKind` or `DownKind`."""

    device: str
    direction: Literal["presence", "up", "down"]
    kind: str


@dataclass(frozen=True)
class ChunkTopic:
    """The topic of one retained chunk of a model version."""

    run: str
    version: int
    blob: BlobKind
    index: int


@dataclass(frozen=True)
class Topics:
    """The topics of one federation.

    Raises:
        UsageError: the federation's name cannot stand in a topic.
    """

    federation: str

    def __post_init__(self) -> None:
        check_id(self.federation, what="federation")

    @cached_property
    def root(self) -> str:
        return f"fedmq/v1/{self.federation}"

    @cached_property
    def coordinator_status(self) -> str:
        return f"{self.root}/coordinator/status"

    @cached_property
    def announcement(self) -> str:
        return f"{self.root}/coordinator/run"

    @cached_property
    def turn(self) -> str:
        return f"{self.root}/coordinator/turn"

    def chunk(self, run: str, version: int, blob: BlobKind, index: int) -> str:
        return f"{self.root}/model/{run}/{version}/{_BLOB_LETTER[blob]}{index}"

    @cached_property
    def every_chunk(self) -> str:
        """The filter of all chunks' topics."""
        return f"{self.root}/model/+/+/+"

    @cached_property
    def monitor_probe(self) -> str:
        return f"{self.root}/monitor/probe"

    def presence(self, device: str) -> str:
        return f"{self.root}/dev/{device}/presence"

    def up(self, device: str, kind: UpKind) -> str:
        return f"{self.root}/dev/{device}/up/{kind}"

    def addressed(self, topic: str) -> str | None:
        """The device whose `down` topic this is; None if it is another kind of topic."""
        head, _, rest = topic.partition(f"{self.root}/dev/")
        device, _, where = rest.partition("/")
        return device if not head and where.startswith("down/") else None

    def owner(self, topic: str) -> str | None:
        """The device below whose branch a topic stands, whatever else it is; None: below nobody's."""
        head, _, rest = topic.partition(f"{self.root}/dev/")
        return rest.partition("/")[0] or None if not head and rest else None

    def down(self, device: str, kind: DownKind) -> str:
        return f"{self.root}/dev/{device}/down/{kind}"

    def coordinator_filters(self) -> list[str]:
        """What the coordinator subscribes to."""
        return [f"{self.root}/dev/+/presence", f"{self.root}/dev/+/up/+", self.coordinator_status]

    def device_filters(self, device: str) -> list[str]:
        """What a device subscribes to, besides the chunks that it pulls."""
        return [self.coordinator_status, self.turn, self.announcement, f"{self.root}/dev/{device}/down/+"]

    def parse_device(self, topic: str) -> DeviceTopic:
        """Take a device's topic apart.

        Raises:
            RemoteError: it is not a topic of a device of this federation.
        """
        match topic.removeprefix(f"{self.root}/dev/").split("/"):
            case [device, "presence"] if _ID.fullmatch(device):
                return DeviceTopic(device, "presence", "presence")
            case [device, "up", kind] if _ID.fullmatch(device) and kind in _UP_KINDS:
                return DeviceTopic(device, "up", kind)
            case [device, "down", kind] if _ID.fullmatch(device) and kind in _DOWN_KINDS:
                return DeviceTopic(device, "down", kind)
            case _:
                msg = f"no topic of this federation: {topic[:120]!r}"
                raise RemoteError(msg, reason="unknown-topic")

    def parse_chunk(self, topic: str) -> ChunkTopic:
        """Take a chunk's topic apart.

        Raises:
            RemoteError: it is not a chunk's topic of this federation.
        """
        match topic.removeprefix(f"{self.root}/model/").split("/"):
            case [run, version, chunk] if (
                _ID.fullmatch(run) and _NUMBER.fullmatch(version) and int(version) <= MAX_COUNTER
            ):
                found = _CHUNK.fullmatch(chunk)
                if found:
                    return ChunkTopic(run, int(version), _LETTER_BLOB[found[1]], int(found[2]))
            case _:
                pass
        msg = f"no chunk's topic of this federation: {topic[:120]!r}"
        raise RemoteError(msg, reason="unknown-topic")
