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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedmq.demo.options import DEFAULT_TARGET, DemoOptions
from fedmq.demo.stage import Stage
from fedmq.demo.story import Story
from fedmq_protocol.errors import ConfigError, FedmqError

if TYPE_CHECKING:
    from fedmq.demo.faults import Reaper
    from fedmq.demo.view import View
    from fedmq.report.figures import Report
    from fedmq_coordinator.shell.client import Client

_POLL_S: Final = 0.25
_CLOSE_POLL_S: Final = 0.04
_GATHER_POLL_S: Final = 0.1
_FIRST_WITHIN_S: Final = 120.0
_OTHERS_WITHIN_S: Final = 10.0
_RUN: Final = "demo"
_OVER: Final = frozenset({"finished", "stopped"})


class InterruptedBySignal(Exception):  # noqa: N818 - nothing is wrong: somebody wants it to end
    """SIGINT, SIGTERM or SIGHUP came, and everything has been ended."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class IncompleteError(FedmqError):
    """The run did not reach its end."""


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
    story = Story(options, started_at)
    with _out_folder(options.out), _folder(keep=options.keep) as folder:
        if options.keep:
            story.news.append(f"journal, logs and the devices' state stay in {folder}")
        federation = "demo"
        outside = options.outside_broker
        if outside is not None:
            from fedmq.demo.outside_broker import check_broker

            await check_broker(outside)
            federation = f"demo-{secrets.token_hex(3)}"  # others may play on that broker
        stage = Stage(options, folder, federation, story.tell)
        try:
            opening = asyncio.create_task(stage.open())
            try:
                view = await asyncio.to_thread(make_view)
                with view:
                    await _show_until(opening, view, story)
                    return await _run(options, settings, stage, story, view)
            finally:
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
        finally:
            await stage.close()
            if outside is not None:
                from fedmq.demo.outside_broker import tidy_up

                await tidy_up(outside, federation)


async def _run(
    options: DemoOptions, settings: dict[str, Any], stage: Stage, story: Story, view: View
) -> Report:
    from fedmq.report import from_run
    from fedmq_coordinator.shell.client import Client

    story.broker = stage.broker_name
    with Client(stage.state_dir) as client:
        story.tell("loading PyTorch, once for all")
        await _show_until(
            asyncio.create_task(_gather(options, story, client)), view, story, check=stage.check
        )
        starting = asyncio.create_task(
            asyncio.to_thread(client.start_run, options.task_module, name=_RUN, settings=settings)
        )
        await _show_until(starting, view, story, check=stage.check)
        await _watch(options, stage, story, view, client)
        assert story.run is not None
        if story.run.state != "finished":
            raise IncompleteError(f"the run was {story.run.state}: {story.run.end_reason}")
        story.tell("fetching the model and the figures")
        finishing = asyncio.create_task(_finish(options, stage, client, story, from_run.figures))
        await _show_until(finishing, view, story)
        return finishing.result()


async def _finish(options: DemoOptions, stage: Stage, client: Client, story: Story, figures: Any) -> Report:  # noqa: ANN401
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
            epochs=max(1, round(train.local_epochs * story.run.accepted / options.devices)),
            train=train.model_dump(),
            seed=options.seed,
            devices=[options.data_settings(number) for number in range(options.devices)],
        )
    finally:
        await host.close()
    report = story.added_to(add_centralised(report, curve), broker=stage.broker_name)
    await asyncio.to_thread(write, report, options.out)
    return report


# ---------------------------------------------------------------------------------------------- watching


async def _watch(options: DemoOptions, stage: Stage, story: Story, view: View, client: Client) -> None:
    """Look at the run until it is over; let devices vanish whose moment has come."""
    from fedmq.demo.faults import Reaper, plan_dropouts

    steady = [device for device in options.device_ids if device not in set(options.slow_ids)]
    candidates = steady if len(steady) >= options.dropouts else options.device_ids
    story.run = await asyncio.to_thread(client.run, _RUN)
    plan = plan_dropouts(candidates, options.dropouts, rounds=story.rounds, seed=options.seed)
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
            _take_news(stage, story)
            view.show(story.scene())
            shown_at = time.monotonic()
        if over:
            return
        await asyncio.sleep(_CLOSE_POLL_S if reaper.watches_closely else _POLL_S)


async def _gather(options: DemoOptions, story: Story, client: Client) -> None:
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


def _reap(reaper: Reaper, stage: Stage, story: Story) -> None:
    assert story.run is not None
    assert story.federation is not None
    for dropout, device in reaper.due(story.run.round, story.federation.devices, now=time.monotonic()):
        stage.kill_device(dropout.device)
        story.killed(device)


def _take_news(stage: Stage, story: Story) -> None:
    """Take in what the fleet has told.

    Raises:
        IncompleteError: there is no device left.
    """
    ended = [message["ended"] for message in stage.fleet_news if "ended" in message]
    stage.fleet_news.clear()
    for device in ended:
        story.ended(device, stage.folder / f"{device}.log")
    if len(story.killed_at) >= story.options.devices:
        raise IncompleteError(f"no device is left; the last: {story.news[-1]}")


async def _show_until(
    task: asyncio.Task[Any],
    view: View,
    story: Story,
    *,
    check: Callable[[], None] | None = None,
) -> None:
    """Keep the view alive while something goes on; raises what it raises."""
    try:
        while not task.done():
            view.show(story.scene())
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
    except BaseException:
        if is_new:  # a model without its report is of no use
            shutil.rmtree(out, ignore_errors=True)
        raise
