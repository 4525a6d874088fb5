"""A checkpoint is the fold itself: wherever a history is cut, loading one and folding the rest gives the same state."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core import kept
from fedmq_coordinator.core.aggregation import Accumulator
from fedmq_coordinator.core.blobs import MemoryBlob
from fedmq_coordinator.core.checkpoint import FORMAT, Checkpoint, differs, dump, load
from fedmq_coordinator.core.dedupe import ACCEPTED, DIGEST_BYTES, WINDOW, Outcome, SettledUpdates
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.plain import Arrays
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.state import FederationState
from fedmq_protocol.codecs import DecodedUpdate, Dense, Sparse
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import Cohort, Evaluation, Presence
from tests.coordinator.core.world import SCHEMA, TASK, World, assert_same_bits
from tests.coordinator.core.world import settings as run_settings

NAMES = ["a", "b", "c", "d"]
SPARSE = {"up": "topk-log4", "density": 0.1, "down": "topk-log4", "down_density": 0.1}
MODES = ["sync", "fedbuff", "fedasync"]


def begin(mode: str, *, rounds: int = 500, seed: int = 9) -> World:
    """A federation of four at work."""
    world = World()
    for name in NAMES:
        world.join(name)
    queue(world, "r1", mode, rounds=rounds, seed=seed)
    return world


def queue(world: World, run: str, mode: str, *, rounds: int = 500, seed: int = 9) -> None:
    initial = np.random.default_rng(seed).normal(size=SCHEMA.size).astype(np.float32)
    chosen = run_settings(
        mode=mode,
        rounds=rounds,
        compression=SPARSE,
        strategy={"max_norm_ratio": 1e6, "publish_interval_s": 0.5},
    )
    world.tell(e.RunRequested(run, chosen, TASK, SCHEMA, initial, has_central_data=True))


def act(world: World, choice: int, rng: np.random.Generator) -> None:
    """One thing that may happen: most often an update."""
    name = NAMES[choice % 4]
    device = world.core.state.devices[name]
    run = world.core.active
    sealer = world.devices[name].sealer
    match choice // 4:
        case 0 | 1 | 2 | 3 | 4:
            held = None if run is None else run.leases.get(name)
            if run is not None and held is not None and device.online:
                number = world.devices[name].counter
                world.send(
                    name,
                    rng.normal(size=SCHEMA.size).astype(np.float32),
                    lease=held.lease,
                    base=min(held.version, run.version),
                    run=run.id,
                    traffic=(100 * number, 7 * number) if choice % 3 else None,
                    evaluation=Evaluation(
                        version=held.version,
                        num_examples=5,
                        loss=0.5,
                        metrics={"accuracy": float(rng.random())},
                    ),
                )
        case 5:
            world.pass_time(float(rng.exponential(3.0)))
        case 6:
            traffic = (int(rng.integers(1000)), int(rng.integers(1000))) if choice % 2 else None
            gone = Presence(online=False, session=sealer.epoch, public_key=sealer.public_key, traffic=traffic)
            world.say(world.devices[name], "presence", gone)
        case 7:
            world.join(name, session=sealer.epoch + 1)
        case 8:
            if run is not None and device.online:
                world.send(name, 0.5, lease=999, run=run.id)  # never given: refused
        case 9:
            if run is not None and run.version >= 0:
                metrics = {"accuracy": float(rng.random())}
                world.tell(e.EvaluationFinished(run.id, run.version, 0.25, 100, metrics))
        case _:
            if run is not None and len(world.core.runs) < 4:
                queue(world, f"r{len(world.core.runs) + 1}", MODES[choice % 3], seed=choice)
                if choice % 2:
                    world.tell(e.StopRequested(run.id))


def bytes_of(checkpoint: Checkpoint) -> bytes:
    return b"".join(bytes(piece) for piece in checkpoint.pieces())


def taken(core: Coordinator) -> Checkpoint:
    checkpoint = core.checkpoint()
    assert checkpoint is not None
    return checkpoint


class Journal:
    """A world's journal as it is asked by number."""

    def __init__(self, facts: list[f.Fact]) -> None:
        self.facts = facts
        self.fetched: list[int] = []

    def fetch(self, numbers: Collection[int]) -> Mapping[int, f.Fact]:
        self.fetched += numbers
        return {number: self.facts[number - 1] for number in numbers}

    def after(self, number: int) -> list[f.Fact]:
        return self.facts[number:]


def resumed(data: bytes, journal: Journal) -> FederationState:
    """The state out of a checkpoint and the facts after it."""
    state = load(MemoryBlob(data), journal.fetch, journal.after)
    state.fold(journal.after(state.num_facts))
    return state


def replayed(journal: Journal) -> FederationState:
    state = FederationState()
    state.replay(lambda: journal.facts)
    return state


def assert_same(one: FederationState, other: FederationState) -> None:
    left, right = dump(one), dump(other)
    assert left is not None
    assert right is not None
    assert differs(left, right) is None
    assert bytes_of(left) == bytes_of(right)


histories = given(
    mode=st.sampled_from(MODES),
    choices=st.lists(st.integers(0, 43), min_size=10, max_size=60),
    seed=st.integers(0, 1000),
    cut=st.integers(0, 59),
    kills=st.sets(st.integers(0, 59), max_size=2),
)


@settings(max_examples=60, deadline=None)
@histories
def test_a_history_that_is_cut_anywhere_gives_the_same_bits(
    mode: str, choices: list[int], seed: int, cut: int, kills: set[int]
) -> None:
    world = begin(mode)
    rng = np.random.default_rng(seed)
    first = taken(world.core)
    for turn, choice in enumerate(choices):
        act(world, choice, rng)
        if turn in kills:
            world.restart()
        if turn == cut % len(choices):
            first = taken(world.core)
    assert first.number <= world.core.state.num_facts == len(world.journal)
    journal = Journal(list(world.facts()))
    whole = replayed(journal)
    assert_same(whole, world.core.state)  # what is written down of a live core is what its facts say
    again = resumed(bytes_of(first), journal)
    assert_same(again, whole)
    assert_same_bits(Coordinator(federation="home", state=again), Coordinator(federation="home", state=whole))
    at_once = resumed(bytes_of(taken(world.core)), journal)
    assert_same(at_once, whole)


def comparable(effects: list[do.Effect]) -> list[object]:
    """What leaves the core, as values."""
    found: list[object] = []
    for effect in effects:
        match effect:
            case do.Record(fact):
                found.append(f.dump(fact))
            case do.Send() | do.SendChunk():
                found.append((effect.topic, effect.body))
            case do.Evaluate(vector=vector):
                found.append(vector.tobytes())
            case _:
                found.append(effect)
    return found


class Twins(World):
    """A world whose every event is told to a second core, too, which must do the same."""

    twin: Coordinator | None = None

    def tell(self, event: e.Event) -> list[do.Effect]:
        effects = super().tell(event)
        if self.twin is not None:
            assert comparable(self.twin.handle(event, now=self.now)) == comparable(effects)
            assert self.twin.next_deadline() == self.core.next_deadline()
        return effects


@settings(max_examples=40, deadline=None)
@histories
def test_a_core_out_of_a_checkpoint_goes_on_as_one_out_of_the_journal(
    mode: str, choices: list[int], seed: int, cut: int, kills: set[int]
) -> None:
    world = begin(mode)
    rng = np.random.default_rng(seed)
    middle = len(choices) // 2
    first = taken(world.core)
    for turn, choice in enumerate(choices[:middle]):
        act(world, choice, rng)
        if turn == cut % max(1, middle):
            first = taken(world.core)
    journal = Journal(list(world.facts()))
    twins = Twins()
    twins.now, twins.journal, twins.devices = world.now, list(world.journal), world.devices
    twins.core = Coordinator(federation="home", state=replayed(journal))
    twins.twin = Coordinator(federation="home", state=resumed(bytes_of(first), journal))
    twins.tell(e.CoordinatorStarted(epoch=twins.core.state.epoch + 1))
    twins.tell(e.BrokerConnected())
    for device in list(twins.devices.values()):
        twins.join(device.id, session=device.sealer.epoch)
    for choice in choices[middle:]:
        act(twins, choice, rng)
    assert_same(twins.core.state, twins.twin.state)
    assert kills is not None


def test_every_attribute_is_kept_or_said_to_be_needless() -> None:
    """If this fails, say in `core/kept.py` how the new attribute is written, or why a start finds it without."""
    world = begin("fedbuff")
    rng = np.random.default_rng(3)
    for choice in [*range(44), *range(44)]:
        act(world, choice, rng)
    state = world.core.state
    of_run = {**kept.RUN.kept, **kept.HISTORY.kept}
    assert len(of_run) == len(kept.RUN.kept) + len(kept.HISTORY.kept)
    for thing, names, left_out in [
        (state, set(kept.STATE.kept), set(kept.STATE.left_out)),
        *((run, set(of_run), set(kept.RUN.left_out)) for run in state.runs.values()),
    ]:
        assert names.isdisjoint(left_out)
        assert set(vars(thing)) <= names | left_out, type(thing).__name__
        assert names <= set(vars(thing)), type(thing).__name__
    (run,) = [run for run in state.runs.values() if run.state == "active"]
    # What is written by hand, each with the names that its writing knows of.
    known: list[tuple[object, set[str]]] = [
        (next(iter(run.settled.values())), {"_high", "_outcomes", "_digests"}),
        (run.accumulator, {"_schema", "_sparse", "_sum", "_buffers", "num_updates", "total_weight"}),
        (state._meter, {"seen"}),
        (state._moved, {"by_device"}),
        (run.numbers, {"created", "chain", "steps"}),
        (run.cohort, {"devices", "rate", "seed"}),
        (
            run.model,
            # constructor: schema, settings, first weights; facts of the chain: all but norm, superseded, weights
            {
                "schema",
                "_settings",
                "_down",
                "_initial",
                "_recipe",
                "_weights",
                "replica",
                "_arrays_at",
                "_step",
            }
            | {"norm", "version", "chain_hash", "base", "snapshot", "replica_hash", "base_chain_hash"}
            | {"base_replica_hash", "deltas", "chain_hashes", "superseded"},
        ),
    ]
    for thing, names in known:
        assert set(vars(thing)) == names, type(thing).__name__
    from fedmq_coordinator.core import run as r  # noqa: PLC0415  # beside the names below

    rows = {
        r.HeldLease: ["lease", "version", "granted_at", "expires_at"],
        r.FederatedScore: ["num_examples", "loss_sum", "metric_sums"],
        r.CentralScore: ["loss", "metrics"],
        r.Rule: ["cohort", "round", "at", "used"],
        Outcome: ["outcome", "residual", "reason", "detail"],
    }
    for kind, fields in rows.items():
        assert [field.name for field in dataclasses.fields(kind)] == fields, kind.__name__


def test_an_old_checkpoint_needs_nothing_that_retention_has_dropped_since() -> None:
    world = begin("fedbuff")
    rng = np.random.default_rng(5)
    run = world.core.runs["r1"]
    while run.num_steps < 2:
        act(world, int(rng.integers(24)), rng)
    old = taken(world.core)
    bases = {run.model.base}
    while len(bases) < 3:
        act(world, int(rng.integers(24)), rng)
        bases.add(run.model.base)
    while run.num_steps == run.numbers.steps:
        act(world, int(rng.integers(24)), rng)
    facts = list(world.facts())
    whole = replayed(Journal(facts))
    anchor = run.numbers.chain[0]
    last_step = max(i for i, fact in enumerate(facts[:anchor]) if isinstance(fact, f.StepTaken))
    for i, fact in enumerate(facts[: anchor - 1]):
        if isinstance(fact, f.VersionPublished):
            facts[i] = fact.model_copy(update={"private": None})
        if isinstance(fact, f.UpdateAccepted) and i < last_step:
            facts[i] = fact.model_copy(update={"payload": None})
    assert_same(resumed(bytes_of(old), Journal(facts)), whole)


def test_weights_that_a_snapshot_holds_are_not_written_again() -> None:
    world = begin("sync")
    rng = np.random.default_rng(1)
    run = world.core.runs["r1"]
    assert run.array_bytes == 0  # the first snapshot
    while not run.num_steps:
        act(world, int(rng.integers(24)), rng)
    assert run.array_bytes >= 4 * SCHEMA.size
    while run.num_steps != run.numbers.steps or run.accumulator.num_updates:
        act(world, int(rng.integers(24)), rng)
    assert run.array_bytes == 0
    journal = Journal(list(world.facts()))
    data = bytes_of(taken(world.core))
    assert_same(resumed(data, journal), replayed(journal))
    assert len(journal.fetched) == 1 + len(run.numbers.chain), "a load reads the facts of the chain alone"
    gone = {number: journal.facts[number - 1] for number in run.numbers.chain}
    for number, fact in gone.items():
        journal.facts[number - 1] = fact.model_copy(update={"private": None})
    with pytest.raises(StoreError, match="gone"):
        load(MemoryBlob(data), journal.fetch, journal.after)


def test_none_is_taken_while_a_version_is_being_made_or_the_arrays_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(aside_from=1)
    for name in NAMES:
        world.join(name)
    queue(world, "r1", "fedbuff")
    assert world.core.checkpoint() is None
    world.make()
    assert world.core.checkpoint() is not None
    rng = np.random.default_rng(1)
    run = world.core.runs["r1"]
    while not run.num_steps or world.aside:
        act(world, int(rng.integers(24)), rng)
        while world.aside:
            world.make()
    monkeypatch.setattr("fedmq_coordinator.core.checkpoint.MAX_ARRAY_BYTES", 4 * SCHEMA.size - 1)
    assert run.array_bytes >= 4 * SCHEMA.size
    assert world.core.checkpoint() is None


def some_checkpoint() -> tuple[bytes, Journal]:
    world = begin("fedbuff")
    rng = np.random.default_rng(2)
    for _ in range(30):
        act(world, int(rng.integers(24)), rng)
    return bytes_of(taken(world.core)), Journal(list(world.facts()))


def test_foreign_older_and_cut_bytes_are_refused_and_nothing_else_happens() -> None:
    data, journal = some_checkpoint()
    bad = {
        "no checkpoint": b"x" + data[1:],
        "another format": data[:8] + struct.pack("<I", 77) + data[12:],
        "another fedmq": data[:12] + b"\0\0\0\0" + data[16:],
        "cut short": data[:10],
        "does not read back": data[: len(data) // 3],
        "an array ends": data[:-4],
    }
    for why, each in bad.items():
        with pytest.raises(StoreError, match=why):
            load(MemoryBlob(each), journal.fetch, journal.after)


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0), value=st.integers(0, 255))
def test_whatever_is_changed_in_one_it_is_refused_or_read(at: int, value: int) -> None:
    data, journal = SAMPLE
    spot = at % len(data)
    broken = data[:spot] + bytes([value]) + data[spot + 1 :]
    with contextlib.suppress(StoreError):
        load(MemoryBlob(broken), journal.fetch, journal.after)


SAMPLE = some_checkpoint()


def test_the_fold_means_what_the_format_says() -> None:
    """If this fails, the same facts fold to something else than before: raise `FORMAT`, and put the new digest here.

    The facts are a history of `begin` and `act`, written down once; lengths of weights are rounded, see `differs`.
    """
    packed = zstandard.decompress((Path(__file__).parent / "history.msgpack.zst").read_bytes())
    facts = [f.load(kind, data) for kind, data in msgpack.unpackb(packed)]
    state = replayed(Journal(facts))
    for run in state.runs.values():
        if run.holds_model:
            run.model.norm = round(run.model.norm, 3)
    found = dump(state)
    assert found is not None
    digest = hashlib.sha256(bytes_of(found)[struct.calcsize("<8sIIQ") :]).hexdigest()
    assert (FORMAT, digest[:16]) == (7, "d8a3162d37286eb5")


def test_the_history_of_closed_runs_is_packed_once_and_read_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "fedmq_coordinator.core.state.OUTCOMES_KEPT", 0
    )  # so that the earlier ones are closed
    world = begin("sync")
    rng = np.random.default_rng(4)
    for number in range(2, 9):
        for _ in range(12):
            act(world, int(rng.integers(24)), rng)
        queue(world, f"r{number}", "fedbuff")
        world.tell(e.StopRequested(f"r{number - 1}"))
    journal = Journal(list(world.facts()))
    data = bytes_of(taken(world.core))
    core = Coordinator(federation="home", state=resumed(data, journal))
    closed = [run for run in core.runs.values() if run.closed]
    assert 2 <= len(closed) < len(core.runs)
    again = taken(core)
    assert bytes_of(again) == data
    assert all("moved" not in vars(run) for run in closed), "nothing but a look at them thaws them"
    assert set(journal.fetched) >= {run.numbers.created for run in closed}
    for run in closed:
        twin = world.core.runs[run.id]
        assert core.run_view(run.id, now=world.now) == world.core.run_view(run.id, now=world.now)
        assert "moved" in vars(run)
        assert kept.HISTORY.plain(run) == kept.HISTORY.plain(twin)
        with pytest.raises(AttributeError):
            _ = run.no_such_thing  # type: ignore[attr-defined]
    assert_same(core.state, replayed(journal))
    late = f.Evaluated(at=9.0, run=closed[0].id, version=0, loss=0.125, num_examples=1, metrics={})
    fresh = resumed(data, journal)
    fresh.apply(late)
    core.state.apply(late)
    assert fresh.runs[late.run].evaluations[0].loss == 0.125
    assert_same(fresh, core.state)


def test_one_of_another_journal_is_refused() -> None:
    data, _ = some_checkpoint()
    other = World()
    with pytest.raises(StoreError):
        load(MemoryBlob(data), Journal(list(other.facts())).fetch, lambda _: [])


def test_a_cohort_by_rule_is_kept() -> None:
    state = begin("sync").core.state
    run = state.runs["r1"]
    opened = f.RoundOpened(
        at=5.0,
        run="r1",
        round=7,
        version=0,
        lease=40,
        devices=["a", "b"],
        goal=2,
        lease_expires_at=90.0,
        rate=0.5,
        sampling_seed=bytes(8),
    )
    run.apply(opened)
    again = object.__new__(Run)
    again.frozen = None
    kept.restore_history(again, kept.packed_history(run))
    assert again._rules == run._rules
    assert again.cohort == run.cohort == Cohort(rate=0.5, seed=bytes(8))
    assert again.leases == run.leases


@given(
    settled=st.lists(
        st.tuples(
            st.integers(0, 200),
            st.sampled_from(["", "", "norm", "too-old"]),
            st.sampled_from([b"", b"12345678"]),
        ),
        max_size=150,
    )
)
def test_settled_updates_come_back_in_their_order(settled: list[tuple[int, str, bytes]]) -> None:
    one = SettledUpdates()
    for counter, reason, digest in settled:
        if reason:
            one.settle(counter, Outcome("rejected", "discard", reason, "x"), digest)
        else:
            one.settle(counter, ACCEPTED, digest)
    other = SettledUpdates.from_plain(msgpack.unpackb(msgpack.packb(one.plain())))
    assert list(one._outcomes.items()) == list(other._outcomes.items())
    for sha256 in (b"12345678" * 4, b"other---" * 4):
        assert [one.find(n, sha256) for n in range(201)] == [other.find(n, sha256) for n in range(201)]


def test_a_usual_window_takes_a_few_bytes() -> None:
    settled = SettledUpdates()
    for counter in range(1000):
        settled.settle(counter, ACCEPTED, bytes(DIGEST_BYTES))
    assert settled.plain() == [999, [[1000 - WINDOW, WINDOW, bytes(WINDOW * DIGEST_BYTES)]]]


@pytest.mark.parametrize("updates", [1, 3, 200])
def test_an_accumulator_comes_back_sparse_or_dense_and_adds_up_to_the_same_bits(updates: int) -> None:
    rng = np.random.default_rng(updates)

    def update() -> DecodedUpdate:
        indices = np.sort(rng.choice(SCHEMA.num_parameters, 20, replace=False)).astype(np.uint32)
        values = rng.normal(size=20).astype(np.float32)
        buffers = rng.normal(size=SCHEMA.num_buffers).astype(np.float32)
        return DecodedUpdate(Sparse(SCHEMA.num_parameters, indices, values), buffers)

    one = Accumulator(SCHEMA)
    for _ in range(updates):
        one.fold(update(), weight=0.3, clip=0.9)
    arrays = Arrays()
    plain = msgpack.unpackb(msgpack.packb(one.plain(arrays)))
    blob = MemoryBlob(b"".join(bytes(piece) for piece in arrays.pieces()))
    other = Accumulator.from_plain(SCHEMA, plain, Arrays(blob, 0, arrays.kinds))
    assert other.is_sparse == one.is_sparse == (updates < 200)
    last = update()
    dense = DecodedUpdate(Dense(rng.normal(size=SCHEMA.num_parameters).astype(np.float32)), last.buffers)
    for each in (last, dense):
        one.fold(each, weight=0.1, clip=1.0)
        other.fold(each, weight=0.1, clip=1.0)
    assert other.total().tobytes() == one.total().tobytes()
    assert other.buffer == one.buffer


def test_what_is_taken_does_not_change_with_the_state() -> None:
    world = begin("fedbuff")
    rng = np.random.default_rng(8)
    for _ in range(20):
        act(world, int(rng.integers(24)), rng)
    one = taken(world.core)
    before = bytes_of(one)
    for _ in range(20):
        act(world, int(rng.integers(24)), rng)
    assert bytes_of(one) == before
