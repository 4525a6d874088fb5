"""How soon a coordinator is back at work after a kill, by the length of its journal, with a checkpoint and without.

    python benchmarks/restart.py --facts 1000,100000,1000000 --json FILE

A journal is grown by the real fold: a FedBuff run of a small model with many devices, whose every update, lease, step,
version and evaluation is a fact; retention drops what it drops in production. Its newest checkpoint is as old as one
can be. Then a coordinator of its own process starts on it, beside a real broker, is killed, and starts again: the time
from the end of its imports until it is connected, the processor's share of it, and its resident memory then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.stand_ins import NumbersHost
from fedmq_broker.runner import start_broker
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.blobs import MemoryShelf
from fedmq_coordinator.core.checkpoint import dump
from fedmq_coordinator.core.dedupe import DIGEST_BYTES
from fedmq_coordinator.core.packing import pack_vector
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.shell.checkpointing import EVERY_FACTS, EVERY_WORK_S
from fedmq_coordinator.shell.main import run_coordinator_forever
from fedmq_coordinator.shell.model_host import Beginning
from fedmq_coordinator.shell.retention import collect
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_coordinator.shell.store import Journal
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.codecs import CodecSpec, decode_update, encode_update
from fedmq_protocol.messages import Evaluation, TaskRef
from fedmq_protocol.schema import TensorEntry, TensorSchema

_BUFFER: Final = 10
_BATCH_FACTS: Final = 2_000
_MARGIN_FACTS: Final = 64
"""Each start adds some."""
_FACTS_AN_UPDATE: Final = 2.3
_PAYLOADS: Final = 32
_SECONDS_AN_UPDATE: Final = 0.1
_MB: Final = 1e6
_SCHEMA: Final = TensorSchema(entries=(TensorEntry(name="w", shape=(1,), dtype="float32", role="parameter"),))


def main() -> None:
    """Grow the journals, start on each, and print a line for each start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", default="1000,100000", help="lengths of journals")
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--parameters", type=int, default=5_000)
    parser.add_argument("--starts", type=int, default=3, help="of each kind; the median counts")
    parser.add_argument("--without", type=int, default=1, help="starts without a checkpoint")
    parser.add_argument("--dir", type=Path, default=None, help="where the journals are kept, or are already")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--child", nargs=2, metavar=("URL", "STATE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        asyncio.run(_start(*options.child))
        return
    with contextlib.ExitStack() as stack:
        root = options.dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(start_broker("mosquitto", port=0, state_dir=root / "broker"))
        head = f"{'facts':>9} {'checkpoint':>18} {'API is up':>9} {'connected':>10} {'CPU':>9}"
        print(f"{head} {'resident':>9} {'journal':>9}")
        results = []
        for length in map(int, options.facts.split(",")):
            state_dir = root / f"{length}-{options.devices}-{options.parameters}"
            if not (state_dir / "grown").exists():
                size = grow(state_dir, length, options.devices, options.parameters)
                (state_dir / "grown").write_text(str(size))
            results.append(_measure(state_dir, length, broker.url, options))
    if options.json is not None:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"dir": "", "json": ""}, "results": results})
        )


def _measure(state_dir: Path, length: int, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start on one journal as often as asked, and print what came of it."""
    journal_bytes = (state_dir / "journal.sqlite").stat().st_size
    checkpoint_bytes = int((state_dir / "grown").read_text())
    found: dict[str, Any] = {
        "facts": length,
        "checkpoint_bytes": checkpoint_bytes,
        "journal_bytes": journal_bytes,
    }
    for kind, starts in (("with", options.starts), ("without", options.without)):
        if kind == "without":
            with contextlib.closing(Journal.open(state_dir, federation="bench")) as journal:
                journal.checkpoints.forget()
        taken = sorted(
            (_one_start(url, state_dir) for _ in range(starts)), key=lambda each: float(each["connected_s"])
        )
        if not taken:
            continue
        median = found[kind] = taken[len(taken) // 2]
        what = f"{checkpoint_bytes / _MB:.2f} MB" if kind == "with" else "none"
        print(
            f"{length:>9,} {what:>18} {median['resumed_s']:>7.2f} s {median['connected_s']:>8.2f} s "
            f"{median['cpu_s']:>7.2f} s {median['resident_mb']:>6.0f} MB {journal_bytes / _MB:>6.0f} MB",
            flush=True,
        )
        print(f"          {median['line']}", flush=True)
    return found


def _one_start(url: str, state_dir: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", url, str(state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603  # this program
        assert child.stdout is not None
        line = child.stdout.readline()
        child.kill()
    found: dict[str, Any] = json.loads(line)
    return found


class _Watch(logging.Handler):
    """Tells of the moments that the coordinator's log names."""

    def __init__(self) -> None:
        super().__init__()
        self.began = time.perf_counter()
        self.cpu_began = time.process_time()
        self.said: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "the API listens" in text:
            self.said["resumed_s"] = time.perf_counter() - self.began
            self.said["line"] = text.split("; the API")[0]
        elif text == "connected to the broker":
            self.said["connected_s"] = time.perf_counter() - self.began
            self.said["cpu_s"] = time.process_time() - self.cpu_began
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            self.said["resident_mb"] = int(peak.split()[1]) / 1024
            print(json.dumps(self.said), flush=True)


def _never(seed: int, snapshot: str) -> Beginning:
    raise AssertionError("the time is taken before a run begins", seed, snapshot)


async def _start(url: str, state_dir: str) -> None:
    """What the child process does, until it is killed."""
    logging.getLogger("fedmq_coordinator").setLevel(logging.INFO)
    logging.getLogger("fedmq_coordinator").addHandler(_Watch())
    settings = CoordinatorSettings(
        federation="bench", broker=BrokerSettings(url=url), state_dir=Path(state_dir), listen="127.0.0.1:0"
    )
    await run_coordinator_forever(settings, model_host=NumbersHost("none", _SCHEMA, _never))


# ------------------------------------------------------------------------------------------- growing a journal


def grow(state_dir: Path, length: int, num_devices: int, num_parameters: int) -> int:
    """Write a journal of about `length` facts.

    Returns:
        The size of the newest checkpoint, in bytes.
    """
    began, size, checkpointed = time.perf_counter(), 0, False
    toy = _Toy(num_devices, num_parameters)
    with contextlib.closing(Journal.open(state_dir, federation="bench")) as journal:
        state, batch = FederationState(), list[f.Fact]()
        anchor: f.VersionPublished | None = None
        pruned_at = 0
        for fact in toy.history(state):
            batch.append(fact)
            if isinstance(fact, f.VersionPublished) and fact.private is not None and fact.version:
                anchor = fact
            is_end = state.num_facts >= length
            is_moment = not checkpointed and state.num_facts >= length - toy.most_folded
            if len(batch) >= _BATCH_FACTS or is_end or is_moment:
                journal.append(batch)
                batch.clear()
            if anchor is not None and not batch and (state.num_facts - pruned_at > length // 8 or is_end):
                collect(journal, RetentionSettings(), best={anchor.run: None}, now=fact.at, run=anchor.run)
                anchor, pruned_at = None, state.num_facts
            if is_moment:
                checkpoint = dump(state)
                assert checkpoint is not None
                size, checkpointed = journal.checkpoints.keep(checkpoint.number, checkpoint.pieces()), True
            if is_end:
                break
    print(f"# grew {length:,} facts in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return size


class _Toy:
    """A federation that trains a small model, without a network and without training.

    Attributes:
        most_folded: how many facts at most come after a checkpoint, before the next one is due.
    """

    def __init__(self, num_devices: int, num_parameters: int) -> None:
        self._rng = np.random.default_rng(1)
        entry = TensorEntry(name="w", shape=(num_parameters,), dtype="float32", role="parameter")
        self._schema = TensorSchema(entries=(entry,))
        self._devices = [f"dev-{number:05}" for number in range(num_devices)]
        self._settings = RunSettings.model_validate({"mode": "fedbuff", "rounds": 10**9})
        compression = self._settings.compression
        spec = CodecSpec(compression.up, compression.density)
        deltas = (self._noise(0.01) for _ in range(_PAYLOADS))
        payloads = [encode_update(delta, None, self._schema, spec)[0] for delta in deltas]
        began = time.thread_time()
        self._updates = [(payload, decode_update(payload, self._schema)) for payload in payloads]
        update_s = (time.thread_time() - began) / _PAYLOADS
        by_work = int(_FACTS_AN_UPDATE * EVERY_WORK_S / update_s)
        self.most_folded = min(EVERY_FACTS, by_work) - _MARGIN_FACTS

    def history(self, state: FederationState) -> Iterator[f.Fact]:
        """Facts without end, each applied to `state` already."""
        at = time.time() - 86_400.0
        shelf = MemoryShelf()
        for fact in self._beginning(shelf, at):
            state.apply(fact)
            yield fact
        run = state.runs["r"]
        held: dict[str, int] = {}
        for turn in itertools.count():
            device = self._devices[turn % len(self._devices)]
            at += _SECONDS_AN_UPDATE * float(self._rng.exponential())
            if device in held:
                run.decoded = self._updates[
                    int(self._rng.integers(_PAYLOADS))
                ]  # as by the core that judged it
                update = self._update(device, held.pop(device), turn, at, run.version, run.decoded[0])
                state.apply(update)
                yield update
                if run.accumulator.num_updates == _BUFFER:
                    for fact in self._step(run, shelf, at):
                        state.apply(fact)
                        yield fact
            held[device] = run.lease + 1
            lease = f.LeaseGranted(
                at=at,
                run="r",
                device=device,
                lease=run.lease + 1,
                version=run.version,
                lease_expires_at=at + 600.0,
            )
            state.apply(lease)
            yield lease

    def _beginning(self, shelf: MemoryShelf, at: float) -> Iterator[f.Fact]:
        yield f.EpochBegun(at=at, epoch=1)
        for device in self._devices:
            yield f.DeviceEnrolled(at=at, device=device, public_key=device.encode().ljust(32, b"."))
        made = f.RunCreated(
            at=at,
            run="r",
            settings=self._settings,
            task=TaskRef(name="toy", version="1", schema_hash=self._schema.hash),
            tensor_schema=self._schema,
            initial=pack_vector(self._noise(1.0), shelf),
            has_central_data=True,
        )
        yield made
        yield f.RunActivated(at=at, run="r")
        yield Run(made).model.next_version(shelf, run="r", at=at)

    def _step(self, run: Run, shelf: MemoryShelf, at: float) -> Iterator[f.Fact]:
        """A step, the version after it, and what that is worth; each is asked for once the one before is so."""
        scale = 1.0 / run.accumulator.total_weight
        yield f.StepTaken(
            at=at, run="r", round=run.version, scale=scale, num_updates=_BUFFER, closed_by="buffer"
        )
        fact = run.model.next_version(shelf, run="r", at=at)
        yield fact
        metrics = {"accuracy": float(self._rng.random())}
        yield f.Evaluated(at=at, run="r", version=fact.version, loss=0.5, num_examples=500, metrics=metrics)

    def _update(
        self, device: str, lease: int, turn: int, at: float, version: int, payload: bytes
    ) -> f.UpdateAccepted:
        counter, base, rng = turn // len(self._devices), max(0, version - 3), self._rng
        metrics = {"loss": float(rng.random()), "accuracy": float(rng.random())}
        return f.UpdateAccepted(
            at=at,
            run="r",
            device=device,
            counter=counter,
            lease=lease,
            base_version=base,
            staleness=version - base,
            weight=50.0,
            clip=1.0,
            norm=float(rng.random()),
            num_examples=100,
            duration_s=float(rng.exponential(20.0)),
            train_s=float(rng.exponential(10.0)),
            payload=payload,
            digest=hashlib.sha256(payload).digest()[:DIGEST_BYTES],
            metrics=metrics,
            evaluation=Evaluation(version=base, num_examples=20, loss=0.5, metrics=metrics),
            traffic=(1_000 * counter, 2_000 * counter),
            session=1,
        )

    def _noise(self, scale: float) -> NDArray[np.float32]:
        return self._rng.normal(scale=scale, size=self._schema.size).astype(np.float32)


if __name__ == "__main__":
    main()
