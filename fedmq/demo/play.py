"""One demo from the curtain to the applause: start the parts, watch the run, make the report, end the parts."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedmq.demo.options import DEFAULT_TARGET, DemoOptions
from fedmq.demo.stage import Stage
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError, FedmqError

if TYPE_CHECKING:
    from fedmq.demo.faults import Reaper
    from fedmq.demo.view import DeviceLine, Scene, View
    from fedmq.report.figures import Report
    from fedmq_coordinator.core.views import FederationView, RunView
    from fedmq_coordinator.shell.client import Client

_POLL_S: Final = 0.25
_CLOSE_POLL_S: Final = 0.04
_GATHER_POLL_S: Final = 0.1
_FIRST_WITHIN_S: Final = 120.0
_OTHERS_WITHIN_S: Final = 10.0
_RUN: Final = "demo"
_OVER: Final = frozenset({"finished", "stopped"})
_FLOAT32_BYTES: Final = 4
_MAX_EPOCHS: Final = 200


class InterruptedBySignal(Exception):  # noqa: N818 - nothing is wrong: somebody wants it to end
    """SIGINT, SIGTERM or SIGHUP came, and everything has been ended."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class IncompleteError(FedmqError):
    """The run did not reach its end."""


@dataclass
class _Story:
    """What has happened so far, for the view and the report."""

    started_at: float
    """Seconds since the epoch: when the command began."""
    broker: str = ""
    doing: str = "starting"
    """What goes on before and after the run; nothing while it runs."""
    news: list[str] = field(default_factory=list)
    killed_at: dict[str, float] = field(default_factory=dict)
    federation: FederationView | None = None
    run: RunView | None = None

    def tell(self, doing: str) -> None:
        self.doing = doing


def play(options: DemoOptions, *, started_at: float, make_view: Callable[[], View]) -> Report:
    """Run a demo and return its report, which lies in `options.out` too.

    Args:
        options: what to play.
        started_at: seconds since the epoch when the command began.
        make_view: makes what shows the scenes; on a thread, beside the start of the parts.

    Raises:
        FedmqError: it did not complete; one line that says why.
        InterruptedBySignal: somebody wanted it to end.
    """
    options.check()
    return asyncio.run(_interruptible(options, started_at, make_view))


async def _interruptible(options: DemoOptions, started_at: float, make_view: Callable[[], View]) -> Report:
    """Turn the first signal into a cancellation; what ends the parts is not interrupted by a second."""
    task = asyncio.current_task()
    assert task is not None
    came: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if not came:
            task.cancel()
        came.append(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await _play(options, started_at, make_view)
    except asyncio.CancelledError:
        if came:
            raise InterruptedBySignal(came[0]) from None
        raise


async def _play(options: DemoOptions, started_at: float, make_view: Callable[[], View]) -> Report:
    settings = _nested(options)
    story = _Story(started_at)
    with _out_folder(options.out), _folder(keep=options.keep) as folder:
        federation = "demo"
        outside = options.outside_broker
        if outside is not None:
            await _check_broker(outside)
            federation = f"demo-{secrets.token_hex(3)}"  # others may play on that broker
        stage = Stage(options, folder, federation, story.tell)
        try:
            opening = asyncio.create_task(stage.open())
            try:
                view = await asyncio.to_thread(make_view)
                with view:
                    await _show_until(opening, view, options, story)
                    return await _run(options, settings, stage, story, view)
            finally:
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
        finally:
            await stage.close()
            if outside is not None:
                await _clear(outside, federation)


async def _run(
    options: DemoOptions, settings: dict[str, Any], stage: Stage, story: _Story, view: View
) -> Report:
    from fedmq.report import from_run
    from fedmq_coordinator.shell.client import Client

    story.broker = stage.broker_name
    with Client(stage.state_dir) as client:
        story.tell("loading PyTorch, once for all")
        await _show_until(
            asyncio.create_task(_gather(options, story, client)), view, options, story, check=stage.check
        )
        starting = asyncio.create_task(
            asyncio.to_thread(client.start_run, options.task_module, name=_RUN, settings=settings)
        )
        await _show_until(starting, view, options, story, check=stage.check)
        await _watch(options, stage, story, view, client)
        assert story.run is not None
        if story.run.state != "finished":
            raise IncompleteError(f"the run was {story.run.state}: {story.run.end_reason}")
        story.tell("fetching the model and the figures")
        finishing = asyncio.create_task(_finish(options, stage, client, story, from_run.figures))
        await _show_until(finishing, view, options, story)
        return finishing.result()


async def _finish(options: DemoOptions, stage: Stage, client: Client, story: _Story, figures: Any) -> Report:  # noqa: ANN401
    """Collect what the run has brought, and compare it with training in one place."""
    from fedmq.model_host import TrainerModelHost
    from fedmq.report.figures import add_centralised
    from fedmq.report.page import write

    assert story.run is not None
    await stage.end_fleet()  # the devices take leave with their last byte counts
    target = options.target if options.target is not None else DEFAULT_TARGET
    devices = await asyncio.to_thread(client.devices)
    report: Report = figures(await asyncio.to_thread(client.report, _RUN), devices, target=target)
    await asyncio.to_thread(client.download_model, _RUN, options.out / "model.safetensors", version="best")
    story.tell("training the same model in one place, to compare")
    host = TrainerModelHost(nursery=stage.nursery)
    try:
        train = story.run.settings.train
        curve = await host.centralised(
            options.task_module,
            epochs=min(_MAX_EPOCHS, train.local_epochs * options.num_rounds),
            train=train.model_dump(),
            seed=options.seed,
            devices=[options.data_settings(number) for number in range(options.devices)],
        )
    finally:
        await host.close()
    report = _with_story(add_centralised(report, curve), options, stage, story)
    await asyncio.to_thread(write, report, options.out)
    return report


def _with_story(report: Report, options: DemoOptions, stage: Stage, story: _Story) -> Report:
    """Add what only the demo knows: the faults, its options, the time from the command to the first round."""
    slow = set(options.slow_ids)
    devices = [
        device.model_copy(
            update={
                "slow_s": options.straggler_delay_s if device.id in slow else 0.0,
                "killed_s": None
                if device.id not in story.killed_at
                else story.killed_at[device.id] - report.began_at,
            }
        )
        for device in report.devices
    ]
    first = report.rounds[0].end_s + report.began_at - story.started_at if report.rounds else None
    demo = {name: value for name, value in asdict(options).items() if name not in {"broker", "out", "keep"}}
    return report.model_copy(
        update={
            "devices": devices,
            "time_to_first_round_s": first,
            "settings": {"demo": demo, **report.settings},
            "versions": {**report.versions, "broker": stage.broker_name},
        }
    )


# ---------------------------------------------------------------------------------------------- watching


async def _watch(options: DemoOptions, stage: Stage, story: _Story, view: View, client: Client) -> None:
    """Look at the run until it is over; let devices vanish whose moment has come."""
    from fedmq.demo.faults import Reaper, plan_dropouts

    steady = [device for device in options.device_ids if device not in set(options.slow_ids)]
    candidates = steady if len(steady) >= options.dropouts else options.device_ids
    plan = plan_dropouts(candidates, options.dropouts, rounds=options.num_rounds, seed=options.seed)
    reaper = Reaper(plan)
    shown_at = 0.0
    while True:
        stage.check()
        story.federation = await asyncio.to_thread(client.status)
        story.run = await asyncio.to_thread(client.run, _RUN)
        _reap(reaper, stage, story)
        over = story.run.state in _OVER
        if over or time.monotonic() - shown_at >= _POLL_S:
            story.tell("")
            _take_news(options, stage, story)
            view.show(_scene(options, story))
            shown_at = time.monotonic()
        if over:
            return
        await asyncio.sleep(_CLOSE_POLL_S if reaper.watches_closely else _POLL_S)


async def _gather(options: DemoOptions, story: _Story, client: Client) -> None:
    """Wait until all devices can train, so that a run begins with all; the last ones are not waited for for ever."""
    until: float | None = None
    while until is None or time.monotonic() < until:
        story.federation = await asyncio.to_thread(client.status)
        ready = [device for device in story.federation.devices if device.state == "idle" and device.task]
        if len(ready) >= options.devices:
            return
        if until is None and (ready or time.time() - story.started_at > _FIRST_WITHIN_S):
            until = time.monotonic() + _OTHERS_WITHIN_S
        await asyncio.sleep(_GATHER_POLL_S)
    assert story.federation is not None
    states = {device.device: device for device in story.federation.devices}
    for name in options.device_ids:
        if name not in states:
            story.news.append(f"{name} has not joined; the run begins without it")
        elif states[name].problem:
            story.news.append(f"{name} cannot train: {states[name].problem}")


def _reap(reaper: Reaper, stage: Stage, story: _Story) -> None:
    assert story.run is not None
    assert story.federation is not None
    for dropout, device in reaper.due(story.run.round, story.federation.devices, now=time.monotonic()):
        stage.kill_device(dropout.device)
        story.killed_at[dropout.device] = time.time()
        into = "between two tasks"
        if device.lease_age_s is not None:
            into = f"{device.lease_age_s:.2f} s into its task"
        story.news.append(f"{dropout.device} was killed in round {story.run.round}, {into}")


def _take_news(options: DemoOptions, stage: Stage, story: _Story) -> None:
    ended = [message["ended"] for message in stage.fleet_news if "ended" in message]
    stage.fleet_news.clear()
    for device in ended:
        log = stage.folder / f"{device}.log"
        story.news.append(f"{device} ended by itself: {_last_line(log)}")
        story.killed_at.setdefault(device, time.time())
    if len(story.killed_at) >= options.devices:
        raise IncompleteError(f"no device is left; the last one: {story.news[-1]}")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].removeprefix("fedmq: ") if lines else "it said nothing"


async def _show_until(
    task: asyncio.Task[Any],
    view: View,
    options: DemoOptions,
    story: _Story,
    *,
    check: Callable[[], None] | None = None,
) -> None:
    """Keep the view alive while something goes on; raises what it raises."""
    try:
        while not task.done():
            view.show(_scene(options, story))
            if check is not None:
                check()
            await asyncio.wait([task], timeout=_POLL_S)
    except BaseException:
        task.add_done_callback(_forget)
        task.cancel()
        raise
    task.result()


def _forget(task: asyncio.Task[Any]) -> None:
    """Take what a task that nobody waits for any more has raised."""
    if not task.cancelled():
        task.exception()


def _scene(options: DemoOptions, story: _Story) -> Scene:
    from fedmq.demo.view import Scene

    federation, run = story.federation, story.run
    devices = () if federation is None else tuple(_lines(options, story, federation))
    measured = () if run is None else run.evaluations or run.federated
    rounds = [version for version in measured if version.version > 0]
    return Scene(
        elapsed_s=time.time() - story.started_at,
        broker=story.broker,
        doing=story.doing,
        waiting="" if run is None else run.waiting,
        round=0 if run is None else run.version,
        rounds=options.num_rounds,
        accuracies=tuple(version.metrics.get("accuracy", 0.0) for version in rounds),
        losses=tuple(version.loss for version in rounds),
        devices=devices,
        bytes_up=sum(device.bytes_up for device in devices),
        bytes_down=sum(device.bytes_down for device in devices),
        bytes_float32=0 if run is None else 2 * _FLOAT32_BYTES * run.size * run.accepted,
        late=0 if run is None else run.late,
        rejected=0 if run is None else run.rejected,
        news=tuple(story.news),
    )


def _lines(options: DemoOptions, story: _Story, federation: FederationView) -> Iterator[DeviceLine]:
    from fedmq.demo.view import DeviceLine

    slow = set(options.slow_ids)
    known = {device.device: device for device in federation.devices}
    for name in options.device_ids:
        device = known.get(name)
        if device is None:
            yield DeviceLine(name, "starting")
            continue
        remark = f"{options.straggler_delay_s:g} s slower" if name in slow else ""
        yield DeviceLine(
            id=name,
            state="killed" if name in story.killed_at else device.state,
            updates=device.updates,
            num_examples=device.num_examples,
            bytes_up=device.sent_bytes,
            bytes_down=device.received_bytes,
            task_time_s=device.task_time_s,
            remark=device.problem or remark,
        )


# ------------------------------------------------------------------------------------ before and after


def _nested(options: DemoOptions) -> dict[str, Any]:
    """The run's settings with `--set` over them, checked here so that a mistake costs no start."""
    from fedmq.tables import read
    from fedmq_coordinator.core.settings import RunSettings

    configuration = read(None, environ={}, sets=options.sets)
    over = configuration.table("run", RunSettings).model_dump(mode="json", exclude_unset=True)
    merged = _merged(options.run_settings(), over)
    return RunSettings.model_validate(merged).model_dump(mode="json", exclude_unset=True)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


@contextlib.contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fedmq-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _out_folder(out: Path) -> Iterator[None]:
    """Make the folder before anything is started, so that a long run does not end at a closed door.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a file; name a folder")
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r} cannot be written to: {error.strerror}") from None
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                out.rmdir()  # where nothing has come of it


async def _check_broker(url: str) -> None:
    """Connect once, so that a wrong address or password is told before anything is started."""
    from fedmq_protocol.aio import Connection

    connection = Connection(_broker_settings(url), client_id=f"fedmq-check-{secrets.token_hex(4)}")
    await connection.start(wait=True)
    await connection.stop()


async def _clear(url: str, federation: str) -> None:
    """Leave nothing of the demo behind on an outside broker: retained messages would stay for ever."""
    from fedmq_protocol.aio import Connected, Connection, Message
    from fedmq_protocol.topics import Topics

    connection = Connection(_broker_settings(url), client_id=f"fedmq-clear-{secrets.token_hex(4)}")
    with contextlib.suppress(FedmqError, TimeoutError):
        async with asyncio.timeout(5.0):
            await connection.start(wait=True)
            await connection.subscribe([f"{Topics(federation).root}/#"])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    async for event in connection.events():
                        match event:
                            case Message(topic=topic, retained=True, payload=payload) if payload:
                                await connection.publish(topic, b"", retain=True)
                            case Connected() | _:
                                pass
    await connection.stop()


def _broker_settings(url: str) -> BrokerSettings:
    from pydantic import ValidationError

    from fedmq.config import first_complaint

    try:
        return BrokerSettings(url=url)
    except ValidationError as error:
        raise ConfigError(f"--broker: {first_complaint(error)}") from None
