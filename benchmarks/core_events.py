"""What an event costs the pure cores: the coordinator's with ten to ten thousand devices, and a device's own.

    make bench BENCH=core_events ARGS="--json core_events.json"

Every packet is real and is opened and checked in full. Each event is measured twice, with Ed25519 and with a keyed hash
of a microsecond in its place; the difference is the signature's share. Payloads are float32 vectors of 16 elements, so
that what is measured is not the codecs. Times are medians of CPU time in one process; making a version is part of the
update that completes the buffer, so updates also have a mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.figures import machine
from fedmq.simulation.mail import CheapKey
from fedmq_coordinator.core import events as told
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.core import events as heard
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.core.state import AgentState
from fedmq_protocol.chunks import blob_ref, chain_hash
from fedmq_protocol.codecs import CodecSpec, encode_snapshot, encode_update
from fedmq_protocol.envelope import COORDINATOR, Envelope, Reader, Sealer
from fedmq_protocol.errors import SignatureError
from fedmq_protocol.messages import (
    Announcement,
    Cohort,
    Manifest,
    Presence,
    Status,
    TaskRef,
    TrainSettings,
    Update,
    UpdateHeader,
    UploadSettings,
)
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.signing import Signer, SigningKey
from fedmq_protocol.topics import Topics

SCHEMA: Final = TensorSchema(entries=(TensorEntry(name="w", shape=(16,), dtype="float32", role="parameter"),))
TASK: Final = TaskRef(name="toy", version="1", schema_hash=SCHEMA.hash)
TOPICS: Final = Topics("bench")
MODES: Final = ("sync", "fedbuff", "fedasync")
NOW: Final = 1_800_000_000.0


class _CheapReader(Reader):
    """Parses every packet, and verifies `CheapKey`s."""

    def verified(self, envelope: Envelope, public_key: bytes) -> Envelope:
        key = CheapKey.__new__(CheapKey)
        key.public_key = public_key
        if key.sign(envelope.signed) != envelope.signature:
            raise SignatureError("not this key's")
        return envelope


@dataclass(frozen=True)
class Mail:
    """How packets are signed and read."""

    name: str
    key: Callable[[str], Signer]
    reader: Reader


def _real_key(owner: str) -> Signer:
    return SigningKey(owner.encode().ljust(32, b"."))


MAILS: Final = (Mail("ed25519", _real_key, Reader()), Mail("keyed hash", CheapKey, _CheapReader()))


def microseconds(acts: Iterable[Callable[[], object]]) -> list[float]:
    """CPU time of each."""
    taken = []
    for act in acts:
        began = time.process_time_ns()
        act()
        taken.append((time.process_time_ns() - began) / 1e3)
    return taken


def coordinator(num_devices: int, mode: str, mail: Mail, events: int) -> dict[str, float]:
    """Microseconds of a birth certificate, of an update, and of looking for the next deadline after it."""
    core = Coordinator(federation="bench", reader=mail.reader)
    core.handle(told.CoordinatorStarted(1), now=NOW)
    core.handle(told.BrokerConnected(), now=NOW)
    names = [f"dev-{number:05}" for number in range(num_devices)]
    sealers = {name: Sealer(sender=name, epoch=1, key=mail.key(name)) for name in names}
    births = []
    for name, sealer in sealers.items():
        body = Presence(online=True, session=1, public_key=sealer.public_key, tasks=[TASK], num_examples=10)
        births.append(told.PacketArrived(TOPICS.presence(name), sealer.seal(TOPICS.presence(name), body)))
    joined = microseconds(lambda birth=birth: core.handle(birth, now=NOW) for birth in births)  # type: ignore[misc]
    settings = {
        "mode": mode,
        "rounds": 1_000_000,
        "evaluate_every": 0,
        "compression": {"up": "float32", "down": "float32", "snapshot": "float32", "start": "snapshot"},
    }
    core.handle(
        told.RunRequested(
            "r1", RunSettings.model_validate(settings), TASK, SCHEMA, np.zeros(SCHEMA.size, np.float32)
        ),
        now=NOW,
    )
    chance, taken, later = np.random.default_rng(0), [], []
    for count in range(events):
        run = core.runs["r1"]
        if not run.leases:
            break
        name = (
            sorted(run.leases)[int(chance.integers(len(run.leases)))]
            if count % 64 == 0
            else next(iter(run.leases))
        )
        held = run.leases[name]
        change = chance.normal(size=SCHEMA.size).astype(np.float32)
        data, _ = encode_update(change, None, SCHEMA, CodecSpec("float32"))
        header = UpdateHeader(
            run="r1",
            counter=held.lease,
            lease=held.lease,
            base_version=held.version,
            schema_hash=SCHEMA.hash,
            num_examples=10,
            payload=blob_ref(data),
            train_s=1.0,
            traffic=(1_000 * count, 1_000 * count),
        )
        topic, now = TOPICS.up(name, "update"), NOW + 10 + count / 100
        packet = told.PacketArrived(topic, sealers[name].seal(topic, Update(header=header, data=data)))
        taken += microseconds([lambda packet=packet, now=now: core.handle(packet, now=now)])  # type: ignore[misc]
        later += microseconds([core.next_deadline])
    assert core.runs["r1"].num_accepted == len(taken), "every update counts"
    return {
        "birth_us": statistics.median(joined),
        "update_us": statistics.median(taken),
        "update_mean_us": statistics.fmean(taken),
        "deadline_us": statistics.median(later),
    }


def device(mail: Mail, events: int) -> dict[str, float]:
    """Microseconds of an announcement that brings nothing new, and of a timer."""
    key = mail.key(COORDINATOR)
    sealer = Sealer(sender=COORDINATOR, epoch=1, key=key)
    agent = Agent(
        AgentLimits(federation="bench", device="dev-1"),
        public_key=mail.key("dev-1").public_key,
        coordinator_key=key.public_key,
        state=AgentState(),
        indexes={},
        chance=np.random.default_rng(0).random,
        reader=mail.reader,
    )
    snapshot, _ = encode_snapshot(np.zeros(SCHEMA.size, np.float32), SCHEMA, "float32")
    ref = blob_ref(snapshot)
    manifest = Manifest(
        version=0,
        chain_hash=chain_hash(bytes(32), ref.sha256),
        base=0,
        snapshot=ref,
        chain_bytes=0,
        replica_hash=bytes(32),
    )
    announcement = Announcement(
        run="r1",
        state="running",
        task=TASK,
        mode="fedbuff",
        round=0,
        manifest=manifest,
        cohort=Cohort(devices=["dev-2", "dev-3"]),
        lease=1,
        lease_s=60.0,
        train=TrainSettings(),
        upload=UploadSettings(codec="float32", density=1.0, first_density=1.0),
    )
    tell: list[heard.Event] = [heard.AgentStarted(), heard.TrainerStarted(1)]
    tell.append(heard.TrainerAnswered(1, heard.TaskOpened(TASK, ("float32/1",), 10)))
    tell.append(heard.Connected(agent.next_session(), 131_072))
    status = Status(online=True, session=1, public_key=key.public_key)
    tell.append(
        heard.PacketArrived(TOPICS.coordinator_status, sealer.seal(TOPICS.coordinator_status, status))
    )
    for event in tell:
        agent.handle(event, now=1.0)
    heard_of = [
        heard.PacketArrived(TOPICS.announcement, sealer.seal(TOPICS.announcement, announcement))
        for _ in range(events)
    ]

    def handle(event: heard.Event, number: int) -> None:
        agent.count(sent=1_000, received=500 * number, clock_s=0.0, now=2.0)
        agent.handle(event, now=2.0)
        agent.next_deadline()

    announced = microseconds(
        lambda event=event, number=number: handle(event, number)  # type: ignore[misc]
        for number, event in enumerate(heard_of)
    )
    timer = microseconds([lambda: handle(heard.TimePassed(), events)] * events)
    assert agent.desk.announcement is not None, "it was believed"
    return {"announcement_us": statistics.median(announced), "timer_us": statistics.median(timer)}


def main() -> None:
    """Print a line for each number of devices and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="10,1000,10000", help="numbers of devices, with commas between")
    parser.add_argument("--events", type=int, default=500, help="events of each kind, at most")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    options = parser.parse_args()
    report: dict[str, object] = {"machine": machine(), "events": options.events}
    print(
        f"{'coordinator':>12}{'devices':>9}{'birth':>9}{'update':>9}{'mean':>9}{'signature':>11}{'deadline':>10}  us"
    )
    rows = []
    for mode in MODES:
        for number in map(int, options.devices.split(",")):
            real, cheap = (coordinator(number, mode, mail, options.events) for mail in MAILS)
            share = real["update_us"] - cheap["update_us"]
            rows.append({"mode": mode, "devices": number, "signature_us": share, **cheap})
            print(
                f"{mode:>12}{number:>9}{cheap['birth_us']:>9.0f}{cheap['update_us']:>9.0f}"
                f"{cheap['update_mean_us']:>9.0f}{share:>11.0f}{cheap['deadline_us']:>10.1f}"
            )
    report["coordinator"] = rows
    real, cheap = (device(mail, options.events) for mail in MAILS)
    report["device"] = {"signature_us": real["announcement_us"] - cheap["announcement_us"], **cheap}
    print(
        f"device: an announcement {cheap['announcement_us']:.0f} us, its signature "
        f"{real['announcement_us'] - cheap['announcement_us']:.0f} us, a timer {cheap['timer_us']:.0f} us"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
