"""`fedmq store`: look after the coordinator's journal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fedmq.commands.options import config_option, database_option, json_option
from fedmq.extras import needs
from fedmq.tables import CoordinatorTable, read
from fedmq_protocol.errors import StoreError, UsageError

if TYPE_CHECKING:
    from fedmq_coordinator.core.retention import RetentionSettings
    from fedmq_coordinator.shell.settings import DatabaseSettings
    from fedmq_coordinator.shell.store import Journal
    from fedmq_coordinator.shell.store_retention import Plan

_FAILED: Final = 1
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_KILO: Final = 1000

state_dir_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), help="The coordinator's folder: journal, keys, token."
)
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")


@click.group()
def store() -> None:
    """Look after the coordinator's journal.

    `info`, `verify`, `backup` and `gc --dry-run` work beside a running coordinator, and write nothing. `gc` and
    `vacuum` need it stopped.
    """


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a journal lies, and what the settings say of it."""

    state_dir: Path
    key_path: Path
    database: DatabaseSettings | None
    retention: RetentionSettings

    @contextlib.contextmanager
    def look(self) -> Iterator[Journal]:
        from fedmq_coordinator.shell.store import Journal

        with contextlib.closing(Journal.look(self.state_dir, settings=self.database)) as journal:
            yield journal

    @property
    def holder(self) -> str | None:
        from fedmq_coordinator.shell.lock import holder

        return holder(self.state_dir)


def _place(config_path: Path | None, state_dir: Path | None, database: str | None) -> _Place:
    with needs("coordinator"):
        from fedmq_coordinator.core.retention import RetentionSettings
        from fedmq_coordinator.shell.settings import CoordinatorSettings

    flags = {
        "coordinator.state_dir": ("--state-dir", state_dir),
        "coordinator.database": ("--database", database),
    }
    configuration = read(config_path, flags=flags)
    table = configuration.table("coordinator", CoordinatorTable)
    retention = RetentionSettings(
        versions_days=table.keep_versions_days, updates_days=table.keep_updates_days
    )
    settings = configuration.checked(
        CoordinatorSettings,
        {"state_dir": table.state_dir, "key_file": table.key_file, "database": table.database_settings()},
        table="coordinator",
    )
    return _Place(settings.state_dir, settings.key_path, settings.database, retention)


# ------------------------------------------------------------------------------------------------- info


@store.command()
@config_option
@state_dir_option
@database_option
@json_option
def info(config_path: Path | None, state_dir: Path | None, database: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Tell what the journal holds, what takes how much room, and what `gc` and `vacuum` would give back."""
    place = _place(config_path, state_dir, database)
    from fedmq_coordinator.core.facts import JOURNAL_VERSION
    from fedmq_coordinator.shell.inventory import take_inventory

    with place.look() as journal:
        found = take_inventory(journal)
        plan = _plan(journal, place)
        if as_json:
            rest = {
                "journal": journal.name,
                "journal_version": JOURNAL_VERSION,
                "federation": journal.federation,
                "num_facts": journal.num_facts,
                "first_at": journal.first_at,
                "last_at": journal.last_at,
                "held_by": place.holder,
                "collectable": plan.size,
            }
            click.echo(json.dumps(rest | dataclasses.asdict(found), indent=2))
            return
        click.echo(f"{journal.name}: the journal of {journal.federation!r}, version {JOURNAL_VERSION}")
        if place.holder is not None:
            click.echo(f"a coordinator ({place.holder}) is at work on it")
        since = "" if journal.first_at is None else f", from {_moment(journal.first_at)}"
        until = "" if journal.last_at is None else f" to {_moment(journal.last_at)}"
        click.echo(f"{journal.num_facts:,} facts{since}{until}; {_size(found.database)} on disk\n")
    for run in found.runs.values():
        newest = "no version yet" if run.version < 0 else f"newest version {run.version}"
        click.echo(f"  {run.run:<24} {run.state:<7} {run.facts:>9,} facts {_size(run.size):>9}  {newest}")
    click.echo("\nfacts")
    _table(found.facts)
    click.echo("beside them")
    _table(found.beside)
    click.echo(f"  {'checkpoints':<24} {'':>9} {_size(found.checkpoints):>9}")
    click.echo(
        f"\n`fedmq store gc` would drop {_size(plan.size)}; {_size(found.unused)} of the file are unused"
    )


# --------------------------------------------------------------------------------------------------- gc


@store.command()
@config_option
@state_dir_option
@database_option
@click.option("--dry-run", is_flag=True, help="Say what would go, and drop nothing.")
@json_option
def gc(
    config_path: Path | None,
    state_dir: Path | None,
    database: str | None,
    dry_run: bool,  # noqa: FBT001 - click's signature
    as_json: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Drop what neither a replay, nor a device, nor an export of a run's newest and best version needs.

    A running coordinator does so by itself, at its start, at each snapshot, and daily. How long things are kept all the
    same: coordinator.keep_versions_days and coordinator.keep_updates_days.
    """
    place = _place(config_path, state_dir, database)
    with place.look() as journal:
        federation = journal.federation
        if dry_run:
            plan = _plan(journal, place)
            _tell(plan, "would drop", as_json=as_json)
            return
    if place.holder is not None:
        raise UsageError(
            f"a coordinator ({place.holder}) is at work on {place.state_dir}, and collects by itself: stop it first, "
            "or look with --dry-run"
        )
    from fedmq_coordinator.shell.store import Journal

    with contextlib.closing(
        Journal.open(place.state_dir, federation=federation, settings=place.database)
    ) as journal:
        plan = _plan(journal, place)
        journal.drop(plan)
    _tell(plan, "dropped", as_json=as_json)


def _plan(journal: Journal, place: _Place) -> Plan:
    from fedmq_coordinator.shell.retention import best_versions

    return journal.plan(place.retention, best=best_versions(journal), now=time.time())


def _tell(plan: Plan, did: str, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"run": run, "what": what, "facts": count, "bytes": size}
            for run, what, count, size in plan.summary()
        ]
        click.echo(json.dumps({"bytes": plan.size, "of": rows}, indent=2))
        return
    for run, what, count, size in plan.summary():
        click.echo(f"  {run:<24} {what:<24} {count:>9,} {_size(size):>9}")
    click.echo(f"{did} {_size(plan.size)}" if plan.going else "nothing to drop")


# ----------------------------------------------------------------------------------------------- verify


@store.command()
@config_option
@state_dir_option
@database_option
@json_option
@quiet_option
def verify(
    config_path: Path | None,
    state_dir: Path | None,
    database: str | None,
    as_json: bool,  # noqa: FBT001 - click's signature
    quiet: bool,  # noqa: FBT001 - click's signature
) -> int:
    """Read everything, and see that it is what was written and gives the models that were published, bit for bit.

    The exit code is 1 if anything is not.
    """
    place = _place(config_path, state_dir, database)
    from fedmq_coordinator.shell.verifying import verify as verified

    with place.look() as journal, _progress(quiet=quiet or as_json) as progress:
        verdict = verified(journal, progress)
        name = journal.name
    if as_json:
        click.echo(
            json.dumps({"journal": name, "good": verdict.is_good} | dataclasses.asdict(verdict), indent=2)
        )
        return 0 if verdict.is_good else _FAILED
    for note in verdict.notes:
        click.echo(f"note: {note}")
    for finding in verdict.findings:
        click.echo(f"damaged: {finding}")
    click.echo(
        f"{name}: {verdict.facts:,} facts; {verdict.pieces:,} pieces beside them ({_size(verdict.size)}), and "
        f"{verdict.dropped:,} that retention dropped; chained hashes of {verdict.versions:,} versions, "
        f"{verdict.rebuilt:,} of them rebuilt; replayed, with the same weights at {verdict.anchors:,} snapshots and "
        f"the same state as {verdict.checkpoints:,} checkpoints"
    )
    click.echo("all of it is as it was written" if verdict.is_good else "restore it from a backup")
    return 0 if verdict.is_good else _FAILED


# ----------------------------------------------------------------------------------------------- backup


@store.command()
@click.argument("folder", type=click.Path(path_type=Path))
@config_option
@state_dir_option
@database_option
@quiet_option
def backup(
    folder: Path,
    config_path: Path | None,
    state_dir: Path | None,
    database: str | None,
    quiet: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Copy the journal, the signing key and the API's token into the new FOLDER, also while the coordinator works.

    `fedmq coordinator start --state-dir FOLDER` goes on from there; a coordinator on the original is sent home.
    """
    place = _place(config_path, state_dir, database)
    from fedmq_coordinator.shell.backup import back_up

    with _progress(quiet=quiet) as progress:
        made = back_up(
            place.state_dir, folder, key_path=place.key_path, settings=place.database, progress=progress
        )
    beside = "".join(f", {name}" for name in made.files)
    click.echo(f"{made.folder}: {made.facts:,} facts, {_size(made.size)}{beside}; read back whole")
    if "key" not in made.files:
        click.echo(
            f"there was no signing key at {place.key_path}: devices will not know a coordinator on the copy"
        )


# ----------------------------------------------------------------------------------------------- vacuum


@store.command()
@config_option
@state_dir_option
def vacuum(config_path: Path | None, state_dir: Path | None) -> None:
    """Give the room that nothing needs back to the disk. The coordinator must not run."""
    place = _place(config_path, state_dir, None)
    if place.database is not None:
        raise UsageError("PostgreSQL shrinks its tables by itself, or by VACUUM FULL in psql")
    from fedmq_coordinator.shell.backup import vacuum as shrink
    from fedmq_coordinator.shell.lock import FolderLock

    with place.look():
        pass  # or say what is wrong with it
    lock = FolderLock(place.state_dir)
    try:
        before, after = shrink(place.state_dir)
    except OSError as error:
        raise StoreError(f"cannot shrink the journal in {place.state_dir}: {error.strerror}") from error
    finally:
        lock.release()
    click.echo(f"{_size(before)} before, {_size(after)} now")


# ---------------------------------------------------------------------------------------------- printing


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is counted, where somebody looks on."""
    bar: Any = None
    of = ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal bar, of
        if what != of:
            close()
            of = what
            bar = click.progressbar(length=max(1, total), label=f"{what:<6}", file=sys.stderr)
            bar.__enter__()
        bar.update(done - bar.pos)

    def close() -> None:
        if bar is not None:
            bar.__exit__(None, None, None)

    try:
        yield (lambda *_: None) if quiet or not sys.stderr.isatty() else show
    finally:
        close()


def _table(sums: dict[str, tuple[int, int]]) -> None:
    for name, (count, size) in sorted(sums.items(), key=lambda each: -each[1][1]):
        click.echo(f"  {name:<24} {count:>9,} {_size(size):>9}")


def _size(size: float) -> str:
    for unit in _UNITS:
        if size < _KILO or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == _UNITS[0] else f"{size:.1f} {unit}"
        size /= _KILO
    raise AssertionError


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
