"""The supervisor against a real broker: presence, the whole path of an update, and what happens when things break."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmq_broker.probe import find_free_port
from fedmq_broker.runner import RunningBroker
from fedmq_edge_agent import AgentSettings, run_agent
from fedmq_edge_agent.core.effects import Ask, OpenTask, StopTrainer
from fedmq_edge_agent.core.ledger import SESSION_BLOCK
from fedmq_edge_agent.core.state import AgentState, load_state
from fedmq_edge_agent.shell.disk import Disk
from fedmq_edge_agent.shell.service import AgentService
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_protocol.aio import BrokerSettings
from fedmq_protocol.chunks import Assembly
from fedmq_protocol.errors import ConfigError, StoreError
from fedmq_protocol.messages import Body, Get, Hello, Offer, Presence, Report, Update
from fedmq_protocol.signing import SigningKey
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator
from tests.edge_agent.shell.conftest import StartAgent, StartProcess
from tests.edge_agent.shell.fake_child import FakeChild
from tests.edge_agent.shell.on_air import OnAir

pytestmark = pytest.mark.mosquitto

StartBroker = Callable[..., RunningBroker]

AT_ONCE_S = 20.0
"""An end takes half a second, or more where the machine stalls; elsewhere a minute is waited for acknowledgements."""


async def until(holds: Callable[[], bool]) -> None:
    """Look until something holds that no message tells of."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - there is nothing to wait on but the clock
            await asyncio.sleep(0.01)


async def test_a_device_joins_trains_and_delivers(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    for _ in range(3):
        on_air.script.publish()
    await on_air.announce(inline=False)
    agent = await start_agent(settings)
    presence = await on_air.device_up()
    assert presence.tasks == [on_air.script.task]
    assert presence.num_examples == 143
    assert presence.traffic is not None
    await on_air.announce(chunks=False, lease=1, cohort=EVERYBODY)
    update = await on_air.receive("dev-1")
    assert (update.header.lease, update.header.base_version) == (1, 3)
    assert update.header.metrics == {"train_loss": 0.5}
    assert update.header.evaluation is not None
    assert update.header.traffic is not None
    assert min(update.header.traffic) > 1_000
    on_air.heard[-1].verified(presence.public_key)
    assert await on_air.accept("dev-1", update)
    # The next round: an inline delta, and straight on.
    on_air.script.publish()
    await on_air.say(on_air.script.announcement(lease=2, cohort=EVERYBODY))
    second = await on_air.receive("dev-1")
    assert (second.header.counter, second.header.base_version) == (2, 4)
    assert await on_air.accept("dev-1", second)
    train = [arguments for op, arguments in agent.children[0].calls if op == "train"]
    assert Path(train[1]["residual_file"]).name == "residual-1.bin"


async def test_goodbye_comes_with_the_traffic_and_the_same_session(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    agent = await start_agent(settings)
    birth = await on_air.device_up()
    began = time.monotonic()
    await agent.stop()
    assert time.monotonic() - began < AT_ONCE_S
    goodbye = await on_air.wait_for(Presence, lambda presence: not presence.online)
    assert goodbye.session == birth.session
    assert goodbye.traffic is not None
    again = await start_agent(settings)
    await on_air.device_up(after=birth.session)
    assert not again.task.done()


async def test_the_last_will_of_a_killed_agent_has_its_session(
    on_air: OnAir, settings: AgentSettings, start_process: StartProcess
) -> None:
    process = start_process(settings)
    birth = await on_air.device_up()
    process.kill()
    will = await on_air.wait_for(Presence, lambda presence: not presence.online)
    assert will.session == birth.session
    assert on_air.heard[-1].epoch == birth.session
    on_air.heard[-1].verified(birth.public_key)


async def test_told_of_later_sessions_it_connects_again_above_them(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    on_air.script.publish()
    await on_air.announce(inline=False)
    await start_agent(settings)
    known = (await on_air.device_up()).session + 1_000
    await on_air.say(on_air.script.notice("dev-1", session=known))
    again = await on_air.device_up(after=known)
    assert load_state((settings.state_dir / "state").read_bytes()).session > again.session


async def test_a_large_update_goes_in_chunks(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    await on_air.announce(lease=1, cohort=EVERYBODY)
    await start_agent(settings, lambda: FakeChild(payload_bytes=1_000_000))
    update = await on_air.receive("dev-1")
    assert len(update.data) == 1_000_000
    assert update.header.traffic is not None
    assert min(update.header.traffic) > 0
    assert await on_air.accept("dev-1", update)
    assert len(on_air.all_of(Update)) == 0


@pytest.mark.parametrize("payload_bytes", [2_000, 400_000])
async def test_killed_after_training_it_delivers_the_pending_update_once_restarted(
    on_air: OnAir, settings: AgentSettings, start_process: StartProcess, payload_bytes: int
) -> None:
    await on_air.announce(lease=1, cohort=EVERYBODY)
    process = start_process(settings, str(payload_bytes))
    first = await on_air.receive("dev-1")
    birth = await on_air.device_up()
    assert on_air.script.count("dev-1", "r1", first.header.counter, first.data)  # counted, but no receipt yet
    process.kill()
    process.wait()
    on_air.script.uploads.clear()
    start_process(settings, str(payload_bytes))
    second = await on_air.receive("dev-1")
    assert (second.header.counter, second.data) == (first.header.counter, first.data)
    assert not await on_air.accept("dev-1", second)
    # The lease that both saw was used: the next training is for the next one.
    await on_air.device_up(after=birth.session)
    await on_air.say(on_air.script.lease("dev-1", 2))
    third = await on_air.receive("dev-1")
    assert (third.header.counter, third.header.lease) == (first.header.counter + 1, 2)
    assert await on_air.accept("dev-1", third)


@pytest.mark.parametrize("size", [2_000, 400_000])
@pytest.mark.parametrize("damage", ["gone", "other", "short"])
async def test_an_update_whose_file_was_damaged_is_given_up_and_the_device_goes_on(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent, size: int, damage: str
) -> None:
    await on_air.announce(lease=1, cohort=EVERYBODY)
    first = await start_agent(settings, lambda: FakeChild(payload_bytes=size))
    await on_air.wait_for(Update if size == 2_000 else Offer)
    await first.stop()
    file = settings.state_dir / "runs" / "r1" / "update-1.bin"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if damage == "short" else bytes(len(data)))
    await start_agent(settings, lambda: FakeChild(payload_bytes=size))
    if size > 2_000:
        offer = await on_air.wait_for(Offer)
        on_air.script.uploads["dev-1", "r1", 1] = Assembly(offer.header.payload, offer.chunk_bytes)
        await on_air.say(on_air.script.credit("dev-1", "r1", 1))
    report = await on_air.wait_for(Report)
    assert (report.code, report.run) == ("other", "r1")
    assert "update-1.bin" in report.detail
    await on_air.say(on_air.script.lease("dev-1", 2))
    update = await on_air.receive("dev-1")
    assert update.header.counter == 2
    assert await on_air.accept("dev-1", update)


async def test_killed_while_training_it_trains_again_for_the_same_lease(
    on_air: OnAir, settings: AgentSettings, start_process: StartProcess, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    await on_air.announce(lease=1, cohort=EVERYBODY)
    process = start_process(settings, "2000", str(gate))
    await on_air.device_up()
    await until((settings.state_dir / "runs" / "r1" / "model.idx").exists)
    process.kill()
    process.wait()
    gate.touch()
    start_process(settings, "2000", str(gate))
    update = await on_air.receive("dev-1")
    assert (update.header.counter, update.header.lease) == (1, 1)
    assert await on_air.accept("dev-1", update)


async def test_a_restarted_agent_loads_the_model_from_disk(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent, connect: Connect
) -> None:
    on_air.script.publish()
    await on_air.announce(lease=1, cohort=EVERYBODY)
    first = await start_agent(settings)
    await on_air.accept("dev-1", await on_air.receive("dev-1"))
    await until(lambda: not (settings.state_dir / "runs" / "r1" / "update-1.bin").exists())
    await first.stop()
    for topic in on_air.script.retained():
        await on_air.connection.publish(topic, b"", retain=True)
    await on_air.announce(chunks=False, inline=False, lease=2, cohort=EVERYBODY)
    second = await start_agent(settings)
    update = await on_air.receive("dev-1")
    assert (update.header.lease, update.header.base_version) == (2, 1)
    assert [op for op, _ in second.children[0].calls] == ["open", "load_snapshot", "apply_delta", "train"]


async def test_a_damaged_model_file_is_noticed_and_fetched_again(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    on_air.script.publish()
    await on_air.announce()
    first = await start_agent(settings)
    base = settings.state_dir / "runs" / "r1" / "delta-1.bin"
    await until(lambda: bool(first.children) and first.children[0].version == 1)
    birth = await on_air.device_up()
    await first.stop()
    base.write_bytes(bytes(base.stat().st_size))
    second = await start_agent(settings)
    await on_air.device_up(after=birth.session)
    await on_air.say(on_air.script.lease("dev-1", 1, version=1))
    update = await on_air.receive("dev-1")
    assert update.header.base_version == 1
    assert [op for op, _ in second.children[0].calls][:4] == [
        "open",
        "load_snapshot",
        "load_snapshot",
        "apply_delta",
    ]


async def test_without_retained_messages_hello_and_get_do(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    await start_agent(settings.model_copy(update={"coordinator_key": on_air.script.key.public_key.hex()}))
    await on_air.wait_for(Hello)
    answer = on_air.script.announced(1, EVERYBODY, 60.0)
    await on_air.say(on_air.script.seal(on_air.script.topics.down("dev-1", "announcement"), answer))
    down = on_air.script.topics.down("dev-1", "chunk")
    asked = set[int]()
    # Unasked chunks are ignored, so ask is what we wait for; it asks again where an answer is late.
    while not isinstance(
        said := await on_air.wait_for(Body, lambda body: isinstance(body, Get | Update)), Update
    ):
        assert isinstance(said, Get)
        asked.add(said.index)
        wanted = on_air.script.chunks(said.blob, said.version)[said.index]
        await on_air.say(on_air.script.seal(down, wanted))
    assert asked == {chunk.index for chunk in on_air.script.chunks("snapshot", 0)}
    assert said.header.lease == 1


async def test_a_trainer_that_crashes_is_started_again_and_the_lease_given_back(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    await on_air.announce()
    agent = await start_agent(settings, lambda: FakeChild(wait_for=gate))
    await on_air.device_up()
    await on_air.say(on_air.script.lease("dev-1", 1))
    await until(lambda: "train" in [op for op, _ in agent.children[0].calls])
    agent.children[0].kill()
    report = await on_air.wait_for(Report)
    assert (report.code, report.lease) == ("train-failed", 1)
    gate.touch()
    await on_air.say(on_air.script.lease("dev-1", 2))
    assert (await on_air.receive("dev-1")).header.lease == 2
    assert len(agent.children) == 2


async def test_the_receipt_to_restore_makes_a_new_residual(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    await on_air.announce(lease=1, cohort=EVERYBODY)
    agent = await start_agent(settings)
    await on_air.receive("dev-1")
    await on_air.say(on_air.script.receipt("dev-1", 1, residual="restore"))
    await on_air.say(on_air.script.lease("dev-1", 2))
    await on_air.receive("dev-1")
    trains = [arguments for op, arguments in agent.children[0].calls if op == "train"]
    assert Path(trains[1]["residual_file"]).name == "restored-1.bin"
    await agent.stop()
    disk = Disk(settings.state_dir)
    kept = disk.load_state().runs["r1"]
    disk.close()
    assert kept.residual_file == "residual-2.bin"
    assert [pending.header.counter for pending in kept.pending] == [2]


async def test_a_task_error_stays_connected_and_says_why(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    def make_child() -> FakeChild:
        child = FakeChild()
        if not made:
            child.refuse["open"] = TrainerError("no-data", "the folder data/ is empty: put images there")
        made.append(child)
        return child

    made: list[FakeChild] = []
    await start_agent(settings, make_child)
    presence = await on_air.wait_for(Presence, lambda presence: presence.problem.startswith("no-data"))
    assert presence.online
    assert "put images there" in presence.problem
    await on_air.device_up()  # it is tried again by itself


async def test_garbage_on_every_topic_does_not_disturb(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    await on_air.announce(chunks=True)
    await start_agent(settings)
    await on_air.device_up()
    liar = ScriptedCoordinator(key=SigningKey(b"l" * 32))
    topics = on_air.script.topics
    for topic in (
        topics.coordinator_status,
        topics.announcement,
        topics.down("dev-1", "lease"),
        topics.down("dev-1", "receipt"),
    ):
        for payload in (b"", b"\x00" * 100_000, os.urandom(500)):
            await on_air.connection.publish(topic, payload)
    await on_air.say(liar.status())
    await on_air.say(liar.announcement(lease=99, cohort=EVERYBODY))
    await on_air.say(on_air.script.lease("dev-1", 1))
    assert (await on_air.receive("dev-1")).header.lease == 1
    assert {report.code for report in on_air.all_of(Report)} == {"bad-message"}


async def test_an_unreachable_broker_is_tried_again_and_said_once(
    caplog: pytest.LogCaptureFixture,
    start: StartBroker,
    start_agent: StartAgent,
    settings: AgentSettings,
    connect: Connect,
) -> None:
    port = find_free_port("127.0.0.1")
    broker = BrokerSettings(url=f"mqtt://127.0.0.1:{port}", reconnect_min_s=0.02, reconnect_max_s=0.1)
    with caplog.at_level(logging.INFO, logger="fedmq_edge_agent"):
        await start_agent(settings.model_copy(update={"broker": broker}))

        def warnings() -> list[logging.LogRecord]:
            return [record for record in caplog.records if record.levelno == logging.WARNING]

        await until(lambda: bool(warnings()))
        started = start("mosquitto", port=port)  # by the time it is up, several attempts have failed
        coordinator = OnAir(await connect(started.url, "coordinator"), ScriptedCoordinator())
        await coordinator.device_up()
        await coordinator.close()
    [line] = [record for record in warnings() if record.name == "fedmq_edge_agent"]
    assert str(port) in line.getMessage()
    assert line.device == "dev-1"  # type: ignore[attr-defined]


async def test_a_second_agent_on_the_same_folder_is_refused(
    settings: AgentSettings, start_agent: StartAgent, on_air: OnAir
) -> None:
    await start_agent(settings)
    await on_air.device_up()
    with pytest.raises(StoreError, match="another agent uses"):
        await run_agent(settings)


async def test_a_damaged_state_is_named(settings: AgentSettings) -> None:
    settings.state_dir.mkdir()
    (settings.state_dir / "state").write_bytes(b"torn")
    with pytest.raises(StoreError, match="remove it to begin anew"):
        await run_agent(settings)


async def test_a_wrong_coordinator_key_is_a_setting_that_is_wrong(settings: AgentSettings) -> None:
    with pytest.raises(ConfigError, match="64 hex digits"):
        await run_agent(settings.model_copy(update={"coordinator_key": "nonsense"}))


async def test_sigterm_says_goodbye(
    on_air: OnAir, settings: AgentSettings, start_process: StartProcess, tmp_path: Path
) -> None:
    await on_air.announce(lease=1, cohort=EVERYBODY)
    process = start_process(settings, "2000", str(tmp_path / "never"))
    await on_air.device_up()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    goodbye = await on_air.wait_for(Presence, lambda presence: not presence.online)
    assert goodbye.traffic is not None  # a last will has none
    await asyncio.to_thread(process.wait, 60)
    assert time.monotonic() - began < AT_ONCE_S
    assert process.returncode == 0


@pytest.fixture
def alone(settings: AgentSettings) -> AgentSettings:
    """Of an agent whose broker does not answer."""
    port = find_free_port("127.0.0.1")
    broker = BrokerSettings(url=f"mqtt://127.0.0.1:{port}", reconnect_min_s=0.001, reconnect_max_s=0.002)
    return settings.model_copy(update={"broker": broker})


async def start_child() -> FakeChild:
    return FakeChild()


async def test_an_agent_that_is_ended_while_it_commits_does_not_commit_beside_that(
    alone: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once would write into the same file, and leave a state that nobody can read."""
    service, stop = AgentService(alone, start_child=start_child), asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    await until(lambda: service.agent.desk.ledger.commit_at is None)
    written, done, release = list[AgentState](), list[AgentState](), threading.Event()
    save_state = Disk.save_state

    def slow(disk: Disk, state: AgentState) -> None:
        written.append(state)
        release.wait(60)
        save_state(disk, state)
        done.append(state)

    monkeypatch.setattr(Disk, "save_state", slow)
    ledger = service.agent.desk.ledger
    ledger.commit_now(now=0.0)
    service._arm()
    await until(lambda: len(written) == 1)
    ledger.activate("r2", now=0.0)  # what the last commit of an orderly end is for
    stop.set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            await until(lambda: len(written) == 2)
    begun_beside = len(written) - 1
    release.set()
    await running
    assert begun_beside == 0
    assert [state.active for state in done] == [None, "r2"]
    assert load_state((alone.state_dir / "state").read_bytes()).active == "r2"


async def test_attempts_in_vain_use_no_session_number_that_is_not_reserved(alone: AgentSettings) -> None:
    """A restart without a clock would begin below them, and be taken for an echo of the past."""
    service, stop = AgentService(alone, start_child=start_child), asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    await until(lambda: service._session > 0)
    wanted = service._session + 2 * SESSION_BLOCK
    await until(lambda: service._session >= wanted)
    await until(lambda: load_state((alone.state_dir / "state").read_bytes()).session >= wanted)
    stop.set()
    await running


async def test_a_trainer_that_is_ended_in_the_moment_it_is_asked_ends_no_agent(alone: AgentSettings) -> None:
    """Heat may be read right behind the word to train, before the child was given it."""
    service, stop = AgentService(alone, start_child=start_child), asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    await until(lambda: service.agent.desk.trainer.opened is not None)
    generation = service.agent.desk.trainer.generation
    await service._perform(Ask(generation, OpenTask()))
    await service._perform(StopTrainer(generation))
    await until(lambda: not any("trainer" in task.get_name() for task in service._background))
    assert not running.done()
    stop.set()
    await running
