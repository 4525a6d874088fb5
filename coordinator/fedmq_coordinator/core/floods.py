"""How much a device may say, and what becomes of one that says far more.

Two allowances for each device, one of messages and one of bytes, fill up with time (a token bucket, as of RFC 2697
without its second colour). What the coordinator asked for and could use is given back: a new chunk of an upload, an
update that counts. So the allowances are for the rest, of which an honest device says little however fast it trains:
what it says at a reconnect, requests, what it says again.

What is beyond an allowance is dropped unread: no signature is verified for it and no envelope opened. Who goes on until
as much was dropped as it may ever say at once floods, and nothing at all of it is read until it has kept within them
for a while: silence is not asked for, since a device in good order says again, now and then, what has no answer. Only
its last presence is kept, for that moment: it is a state, and not a message among others.

Nothing here is journaled: after a restart a flood is recognised again, as soon as it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from fedmq_coordinator.core.events import PacketArrived
from fedmq_protocol.limits import MAX_PACKET_BYTES

_SWEEP: Final = 1_024
"""So many accounts are kept before those that are full are looked for; then again at twice what is left."""

Verdict = Literal["taken", "dropped", "flood"]


@dataclass(frozen=True)
class FloodLimits:
    """What a device may say, beside what was asked for.

    The sums behind the defaults: who reconnects with the largest outbox says its presence, and up to 64 updates of a
    packet each, 8 MB; it may do so twice at once, and every four seconds after that.

    Attributes:
        messages: at once.
        messages_per_s: in the long run.
        payload_bytes: at once.
        bytes_per_s: in the long run.
        quiet_s: who flooded is heard again when it has kept within the allowances for so long.
        again_s: while a flood goes on it is told of so often.
    """

    messages: int = 500
    messages_per_s: float = 50.0
    payload_bytes: int = 128 * MAX_PACKET_BYTES
    bytes_per_s: float = 16.0 * MAX_PACKET_BYTES
    quiet_s: float = 30.0
    again_s: float = 5.0


@dataclass
class Flood:
    """One device's.

    Attributes:
        since: when the first message beyond its allowance came.
        last_at: when the last message came.
        beyond_at: when the last one came that was more than it may say.
        messages: dropped so far.
        payload_bytes: of those.
        presence: the last that was dropped.
        told_at: when this was last said to whoever may cut the device off.
        logged_at: when the operator was last told.
    """

    since: float
    last_at: float
    beyond_at: float
    told_at: float = 0.0
    logged_at: float = 0.0
    messages: int = 0
    payload_bytes: int = 0
    presence: PacketArrived | None = None

    def drop(self, event: PacketArrived, *, now: float) -> None:
        """Count a message that is not read."""
        self.last_at = now
        self.messages += 1
        self.payload_bytes += len(event.payload)
        if event.topic.endswith("/presence"):
            self.presence = event

    def __str__(self) -> str:
        lasted = max(self.last_at - self.since, 0.001)
        return f"{self.messages:,} messages of {self.payload_bytes / 1e6:.1f} MB dropped in {lasted:.1f} s"


class _Account:
    """What a device may still say, and what it said beyond that."""

    __slots__ = ("at", "messages", "over", "payload_bytes")

    def __init__(self, limits: FloodLimits, at: float) -> None:
        self.messages = float(limits.messages)
        self.payload_bytes = float(limits.payload_bytes)
        self.at = at
        self.over: Flood | None = None

    def pay(self, payload_bytes: int) -> bool:
        """Charge it for a message; False if there is not enough left, and then it is not charged."""
        if self.messages < 1.0 or self.payload_bytes < payload_bytes:
            return False
        self.messages -= 1.0
        self.payload_bytes -= payload_bytes
        return True


class Floodgate:
    """Everybody's allowances.

    Memory: an account for each device that spoke of late, a few hundred bytes, and for each that floods its last
    presence, a packet at most.

    Args:
        limits: the same for every device.

    Attributes:
        floods: by device; nothing of these is read.
    """

    def __init__(self, limits: FloodLimits | None = None) -> None:
        self.limits = FloodLimits() if limits is None else limits
        self.floods: dict[str, Flood] = {}
        self._accounts: dict[str, _Account] = {}
        self._sweep_at = _SWEEP

    def ignores(self, device: str, event: PacketArrived, *, now: float) -> bool:
        """Whether the device floods; then the message is counted, and may be forgotten."""
        flood = self.floods.get(device)
        if flood is None:
            return False
        flood.drop(event, now=now)
        if not self._account(device, now).pay(len(event.payload)):
            flood.beyond_at = now
        return True

    def admit(self, device: str, event: PacketArrived, *, now: float) -> Verdict:
        """Charge a device for a message.

        Returns:
            Whether it is to be read; `flood`: it is not, and from now on the device floods.
        """
        if self.ignores(device, event, now=now):
            return "dropped"
        account, limits = self._account(device, now), self.limits
        if account.pay(len(event.payload)):
            return "taken"
        if account.over is None:
            account.over = Flood(since=now, last_at=now, beyond_at=now)
        account.over.drop(event, now=now)
        if account.over.messages < limits.messages and account.over.payload_bytes < limits.payload_bytes:
            return "dropped"
        self.floods[device] = account.over
        account.over.beyond_at = account.over.told_at = account.over.logged_at = now
        return "flood"

    def give_back(self, device: str, payload_bytes: int) -> None:
        """A message was asked for, and of use: it costs nothing."""
        account = self._accounts.get(device)
        if account is not None:
            account.messages = min(account.messages + 1.0, self.limits.messages)
            account.payload_bytes = min(account.payload_bytes + payload_bytes, self.limits.payload_bytes)

    def charge(self, device: str, messages: int) -> None:
        """A message cost more than to be read: it is in the journal now, or in the log, for good."""
        account = self._accounts.get(device)
        if account is not None:
            account.messages = max(0.0, account.messages - messages)

    def next_end(self) -> float | None:
        """When the first of the floods may be over, or should be told of again."""
        if not self.floods:
            return None
        quiet_s, again_s = self.limits.quiet_s, self.limits.again_s
        return min(min(flood.beyond_at + quiet_s, flood.told_at + again_s) for flood in self.floods.values())

    def ended(self, *, now: float) -> Iterator[tuple[str, Flood]]:
        """Floods that are over, which are then forgotten."""
        quiet_s = self.limits.quiet_s
        for device in [name for name, flood in self.floods.items() if flood.beyond_at + quiet_s <= now]:
            self._accounts.pop(device, None)
            yield device, self.floods.pop(device)

    def untold(self, *, now: float) -> Iterator[tuple[str, Flood]]:
        """Floods that went on since they were last told of, `again_s` ago or longer."""
        for device, flood in self.floods.items():
            if flood.told_at + self.limits.again_s <= now:
                goes_on, flood.told_at = flood.beyond_at > flood.told_at, now
                if goes_on:
                    yield device, flood

    def _account(self, device: str, now: float) -> _Account:
        """The device's account as it stands now."""
        account, limits = self._accounts.get(device), self.limits
        if account is None:
            if len(self._accounts) >= self._sweep_at:
                self._sweep(now)
            account = self._accounts[device] = _Account(limits, now)
            return account
        passed, account.at = now - account.at, now
        account.messages = min(account.messages + passed * limits.messages_per_s, limits.messages)
        account.payload_bytes = min(account.payload_bytes + passed * limits.bytes_per_s, limits.payload_bytes)
        if account.over is not None and now - account.over.last_at >= limits.quiet_s:
            account.over = None
        return account

    def _sweep(self, now: float) -> None:
        """Forget the accounts that would be full."""
        limits = self.limits
        full_s = max(limits.messages / limits.messages_per_s, limits.payload_bytes / limits.bytes_per_s)
        self._accounts = {name: each for name, each in self._accounts.items() if now - each.at < full_s}
        self._sweep_at = max(_SWEEP, 2 * len(self._accounts))
