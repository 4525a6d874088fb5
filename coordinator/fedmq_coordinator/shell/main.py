"""One coordinator process, from its folder on disk to its last word to the broker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.turns import Turns
from fedmq_coordinator.shell.api import make_app
from fedmq_coordinator.shell.api_server import ApiServer, bind, load_or_create_token
from fedmq_coordinator.shell.backup import EPOCHS_AHEAD
from fedmq_coordinator.shell.clock import Clock
from fedmq_coordinator.shell.model_host import ModelHost
from fedmq_coordinator.shell.resume import Resumed, resume
from fedmq_coordinator.shell.service import HaltedError, OutrunError, Service
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_coordinator.shell.shelf import StoreShelf
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_fence import FencedError
from fedmq_protocol.aio import Connection, Will
from fedmq_protocol.envelope import COORDINATOR, Sealer
from fedmq_protocol.messages import Status
from fedmq_protocol.signing import load_or_create_key
from fedmq_protocol.topics import Topics

_log = logging.getLogger(__name__)

_KEY: Final = "public-key"
"""The note of the key with which the journal began."""

_SPREAD: Final = 16
"""Two that begin again at the same time should not meet again."""


async def run_coordinator(
    settings: CoordinatorSettings,
    *,
    model_host: ModelHost,
    stop: asyncio.Event | None = None,
    take_over: bool = False,
) -> None:
    """Run one coordinator until `stop` is set.

    An unreachable broker is no error: the API is up meanwhile, and says so.

    Args:
        settings: where everything is.
        model_host: who describes tasks and evaluates models; closed at the end.
        stop: end well when it is set; None: run until cancelled.
        take_over: end the hold of another coordinator on the database, which hangs or is out of reach.

    Raises:
        StoreError: the state folder or the journal cannot be used.
        UsageError: the API's address cannot be had.
        ConfigError: the broker's password or certificate files cannot be read.
        HaltedError: another coordinator has taken over; the broker told.
        FencedError: another coordinator has taken over; the store told.
    """
    stop = asyncio.Event() if stop is None else stop
    least_epoch = 0
    try:
        while True:
            try:
                return await _run_once(
                    settings, model_host, stop, take_over=take_over, least_epoch=least_epoch
                )
            except OutrunError as outrun:
                _log.warning("%s: beginning again with a newer epoch", outrun)
                least_epoch = outrun.epoch + 1 + secrets.randbelow(_SPREAD)
    finally:
        await model_host.close()


async def _run_once(
    settings: CoordinatorSettings,
    model_host: ModelHost,
    stop: asyncio.Event,
    *,
    take_over: bool,
    least_epoch: int,
) -> None:
    """One epoch's life."""
    async with contextlib.AsyncExitStack() as stack:
        journal = await asyncio.to_thread(
            Journal.open,
            settings.state_dir,
            federation=settings.federation,
            settings=settings.database,
            take_over=take_over,
        )
        stack.callback(journal.close)
        beside = settings.state_dir / "journal.sqlite"
        if settings.database is not None and beside.exists():
            _log.warning("%s is not read: the journal is %s, as `database` says", beside, journal.name)
        shelf = StoreShelf(journal, settings.state_dir)
        found = await asyncio.to_thread(resume, journal)
        turns = Turns(max_under_way=settings.updates_under_way)
        core = Coordinator(federation=settings.federation, shelf=shelf, state=found.state, turns=turns)
        clock = Clock(not_before=journal.last_at or 0.0)
        resumed = _resumed(core, journal, found)
        _warn_of_another_journal(settings, journal)
        key = load_or_create_key(settings.key_path)
        await asyncio.to_thread(_compare_keys, journal, key.public_key, settings.key_path)
        service = Service(
            core,
            journal,
            shelf,
            clock=clock,
            model_host=model_host,
            sources=await asyncio.to_thread(journal.sources),
            num_folded=found.num_folded,
            retention=settings.retention,
            max_packet_bytes=settings.broker.max_packet_bytes,
        )
        # A fence that was damaged is no reason to go back.
        epoch = max(journal.epoch, core.state.epoch + 1, least_epoch)
        since = datetime.fromtimestamp(clock(), UTC).isoformat(sep=" ", timespec="milliseconds")
        who = f"{socket.gethostname()}, pid {os.getpid()}, since {since}"
        outrun = least_epoch > 0 or epoch > core.state.epoch + EPOCHS_AHEAD  # or on a backup
        await service.begin(epoch, key.public_key, who, outrun=outrun)
        sealer = Sealer(sender=COORDINATOR, epoch=core.state.epoch, key=key)

        app = make_app(service, defaults=settings.run, token=load_or_create_token(settings.state_dir))
        api = ApiServer(app, bind(settings), settings.state_dir)
        await api.start()
        stack.push_async_callback(api.stop)

        topics = Topics(settings.federation)
        gone = Status(
            online=False, session=sealer.epoch, public_key=sealer.public_key, detail=f"vanished: {who}"
        )
        will = Will(topics.coordinator_status, sealer.seal(topics.coordinator_status, gone), retain=True)
        client_id = f"{settings.federation}-coordinator"
        connection = Connection(settings.broker, client_id=client_id, will=will)
        await connection.subscribe(topics.coordinator_filters())
        _log.info("%s; the API listens at %s; broker %s", resumed, api.url, settings.broker.shown_url)
        gc.collect()
        gc.freeze()  # what was imported stays: looking through it again and again would cost rounds their time
        async with connection:
            try:
                await service.run(connection, sealer, topics, stop)
            except asyncio.CancelledError:
                await connection.stop(
                    graceful=False
                )  # nothing was said: the last will says that nobody is here
                raise
            except (HaltedError, FencedError):
                await (
                    connection.stop()
                )  # take leave: the last will would hide the coordinator that has taken over
                raise


async def run_coordinator_forever(
    settings: CoordinatorSettings, *, model_host: ModelHost, take_over: bool = False
) -> None:
    """`run_coordinator` until SIGINT or SIGTERM; a second signal does not wait for a good end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        await run_coordinator(settings, model_host=model_host, stop=stop, take_over=take_over)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        task.uncancel()
        _log.warning("stopped at the second signal, without a good end: the next start folds a little more")
        return
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    _log.info("stopped")


def _compare_keys(journal: Journal, public_key: bytes, path: Path) -> None:
    """Say so where the journal's devices know another key: a journal on a server comes to a machine without its key."""
    known = journal.note(_KEY)
    if known is None:
        journal.keep_note(_KEY, public_key)
    elif known != public_key:
        _log.error(
            "the key in %s is not the one that this federation began with: devices that trust that one do not follow; "
            "copy the file `key` from where the coordinator ran before",
            path,
        )


def _warn_of_another_journal(settings: CoordinatorSettings, journal: Journal) -> None:
    """Say so where a key is older than the journal: a database was named or left out by mistake, or should be moved."""
    if journal.num_facts or not settings.key_path.exists():
        return
    file = settings.state_dir / "journal.sqlite"
    aside = (
        f"; {file}, which is there, is not used" if settings.database is not None and file.exists() else ""
    )
    _log.warning(
        "the journal %s is new, but the key %s is not: what a coordinator with this key did before is not in it%s",
        journal.name,
        settings.key_path,
        aside,
    )


def _resumed(core: Coordinator, journal: Journal, resumed: Resumed) -> str:
    """What a start finds, in a line."""
    if not journal.num_facts or journal.first_at is None:
        return f"a new journal in {journal.name}"
    folded = "1 fact" if resumed.num_folded == 1 else f"{resumed.num_folded:,} facts"
    how = f"{folded} folded"
    if resumed.checkpoint is not None:
        made = f"{resumed.checkpoint.number:,} of {_moment(resumed.checkpoint.at)}"
        how = f"checkpoint of fact {made} and {folded} after it"
    facts = "1 fact" if journal.num_facts == 1 else f"{journal.num_facts:,} facts"
    found = f"journal of {facts} since {_moment(journal.first_at)}; {how}, in {resumed.seconds:.2f} s"
    run = core.active
    if run is None:
        return f"no run to resume; {found}"
    waiting = run.accumulator.num_updates
    buffer = f"{waiting} of {run.goal} updates in the buffer" if run.goal else "no round open"
    return f"resumed run {run.id} at round {run.round}, {buffer}; {found}"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
