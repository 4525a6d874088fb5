"""What the federation's own retained messages tell: less than the coordinator does, and enough while it is away.

Signatures are not checked: who may write these topics is the broker's to enforce, and nothing is decided by this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedmq_broker.watching.picture import CoordinatorPicture, DevicePicture, RunPicture
from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import Announcement, Presence, Status
from fedmq_protocol.topics import Topics

_MAX_DEVICES: Final = 100_000


@dataclass(frozen=True)
class _Heard:
    body: Presence
    since: float


class Presences:
    """Folds presence, status and announcement."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._devices: dict[str, _Heard] = {}
        self._status: Status | None = None
        self._epoch: int | None = None
        self._announced: tuple[float, Announcement] | None = None

    def disconnected(self) -> None:
        """What was true is not known to be true any more; it is told again at the next connection."""
        self._status = self._epoch = self._announced = None

    def heard(self, topic: str, payload: bytes, *, now: float) -> None:
        """A message of the federation; what cannot be read is the coordinator's to complain of."""
        if not payload:  # a device that was struck off
            self._devices.pop(self._device(topic), None)
            return
        try:
            envelope = open_envelope(topic, payload)
        except RemoteError:
            return
        match envelope.body:
            case Status() as status if topic == self._topics.coordinator_status:
                self._status, self._epoch = status, envelope.epoch
            case Announcement() as announcement if topic == self._topics.announcement:
                self._announced = now, announcement
            case Presence() as presence if device := self._device(topic):
                known = self._devices.get(device)
                if known is not None and presence.session < known.body.session:
                    return  # the last will of a connection that is over
                same = known is not None and known.body.online == presence.online
                if known is not None or len(self._devices) < _MAX_DEVICES:
                    self._devices[device] = _Heard(presence, known.since if same and known else now)
            case _:
                pass

    def knows(self, device: str) -> bool:
        """Whether there is such a device."""
        return device in self._devices

    def picture(self, *, now: float) -> tuple[CoordinatorPicture, list[DevicePicture]]:
        """The federation as the broker has it."""
        devices = [_device(name, heard, now=now) for name, heard in self._devices.items()]
        states = {
            state: sum(1 for each in devices if each.state == state)
            for state in ("idle", "unable", "offline")
        }
        known = self._status is not None or bool(devices)
        return (
            CoordinatorPicture(
                told_by="broker" if known else "nobody",
                epoch=self._epoch,
                at_broker=self._status is not None and self._status.online,
                run=self._run(now=now),
                states=states if known else {},
            ),
            devices,
        )

    def _device(self, topic: str) -> str:
        try:
            parsed = self._topics.parse_device(topic)
        except RemoteError:
            return ""
        return parsed.device if parsed.direction == "presence" else ""

    def _run(self, *, now: float) -> RunPicture | None:
        if self._announced is None:
            return None
        at, told = self._announced
        return RunPicture(
            run=told.run,
            state="active" if told.state == "running" else told.state,
            mode=told.mode,
            task=f"{told.task.name} {told.task.version}",
            round=told.round,
            version=told.manifest.version,
            round_age_s=now - at if told.state == "running" else None,
        )


def _device(name: str, heard: _Heard, *, now: float) -> DevicePicture:
    body, since_s = heard.body, now - heard.since
    by_will = not body.online and body.traffic is None
    state = "offline" if not body.online else "unable" if body.problem else "idle"
    return DevicePicture.model_validate(
        {
            "device": name,
            "state": state,
            "since_s": since_s,
            "silent_s": since_s if by_will else 0.0,
            "by_will": by_will,
            "problem": body.problem,
            "sent_bytes": body.traffic[0] if body.traffic else 0,
            "received_bytes": body.traffic[1] if body.traffic else 0,
        }
    )
