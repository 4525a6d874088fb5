"""What only a server can do: go away in mid-transaction, come back, refuse, and be shared."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from sqlalchemy import Connection, event

from fedmq_coordinator.core.blobs import PIECE_BYTES
from fedmq_coordinator.core.facts import EpochBegun, Fact, VersionPublished
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.shell import store_postgresql
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_database import AwayError
from fedmq_coordinator.shell.store_fence import FencedError
from fedmq_protocol.errors import ConfigError, StoreError
from tests.coordinator.shell.places import Place, opening_process
from tests.coordinator.shell.some_facts import accepted, created, published
from tests.postgres_fixtures import PostgresServer


@pytest.fixture
def journal(postgres_place: Place) -> Iterator[Journal]:
    opened = postgres_place.open()
    yield opened
    opened.close()


def batch(number: int) -> list[Fact]:
    """Facts with something beside them, that belong together."""
    return [EpochBegun(at=float(number), epoch=0), accepted(number, os.urandom(30_000), at=float(number))]


def end_sessions(place: Place) -> None:
    """What an administrator does, and a server that goes down."""
    place.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@contextlib.contextmanager
def refusal(match: str) -> Iterator[None]:
    """Another session has the lock, and that is said without waiting whether it goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_postgresql, "_SETTLING_S", 0.0)
        with pytest.raises(StoreError, match=match):
            yield


@contextlib.contextmanager
def away(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The server has gone, and comes back once it is missed."""

    def come_back() -> None:
        until = time.monotonic() + 60
        while "trying again" not in caplog.text and time.monotonic() < until:
            time.sleep(0.05)
        postgres.start()

    back = threading.Thread(target=come_back)
    back.start()
    try:
        yield
    finally:
        back.join()


class TestLostConnections:
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_commit_of_which_nobody_heard_counts_once(
        self, journal: Journal, postgres_place: Place, moment: Literal["before", "after"]
    ) -> None:
        """The connection breaks just before the commit reaches the server, or just before its answer reaches us."""
        journal.append(batch(1))
        losses: list[str] = []

        def lose(connection: Connection) -> None:
            if not losses:
                losses.append(moment)
                driver: Any = connection.connection.dbapi_connection
                if moment == "after":
                    driver.commit()
                driver.close()

        facts = [*batch(2), published(0, private=bytes(PIECE_BYTES + 5))]
        event.listen(journal.database.engine, "commit", lose)
        journal.append(facts)
        event.remove(journal.database.engine, "commit", lose)
        assert losses == [moment]
        journal.append(batch(3))
        assert journal.num_facts == 7
        found = postgres_place.query("SELECT seq FROM facts ORDER BY seq")
        assert found == [(seq,) for seq in range(1, 8)]
        assert list(journal.read())[2:5] == facts

    def test_every_write_and_read_survives_a_lost_session(
        self, journal: Journal, postgres_place: Place
    ) -> None:
        end_sessions(postgres_place)
        journal.append([created(), published(0, private=b"p")])
        end_sessions(postgres_place)
        journal.keep_note("standing", b"here")
        end_sessions(postgres_place)
        assert journal.note("standing") == b"here"
        end_sessions(postgres_place)
        writing = journal.begin_blob()
        writing.write(bytes(2 * PIECE_BYTES))
        end_sessions(postgres_place)
        writing.write(b"the end")
        blob = writing.done()
        end_sessions(postgres_place)
        journal.append([published(1, private=b"").model_copy(update={"private": blob})])
        end_sessions(postgres_place)
        plan = journal.plan(RetentionSettings(), best={"r": None}, now=10.0)
        assert [(each.fact, each.field) for each in plan.going] == [(2, "private")]
        end_sessions(postgres_place)
        journal.drop(plan)
        end_sessions(postgres_place)
        *_, newest = journal.read()
        assert isinstance(newest, VersionPublished)
        assert newest.private is not None
        assert newest.private.data == bytes(2 * PIECE_BYTES) + b"the end"

    def test_a_session_that_ends_while_rows_are_streamed_leaves_nothing_open(
        self, journal: Journal, postgres_place: Place
    ) -> None:
        """Else psycopg warns of a leak, whenever the garbage is collected."""
        journal.append([created(), published(0, private=b"p"), published(1, private=b"q")])
        lost: list[str] = []

        def lose(_connection: object, cursor: object, statement: str, *_: object) -> None:
            if isinstance(cursor, psycopg.ServerCursor) and not lost:
                lost.append(statement)
                end_sessions(postgres_place)

        event.listen(journal.database.engine, "before_cursor_execute", lose)
        plan = journal.plan(RetentionSettings(), best={"r": None}, now=10.0)
        assert [(each.fact, each.field) for each in plan.going] == [(2, "private")]
        assert len(lost) == 1
        gc.collect()

    def test_sessions_that_end_at_any_moment_lose_nothing_and_write_nothing_twice(
        self, journal: Journal, postgres_place: Place
    ) -> None:
        done, appending = threading.Event(), threading.Event()
        kills = 0
        rng = random.Random(5)

        def harass() -> None:
            """Once an append at the most, so that there is always an end to it, however slow the machine."""
            nonlocal kills
            assert postgres_place.settings is not None
            with psycopg.connect(postgres_place.settings.url, autocommit=True) as own:
                while appending.wait(60) and not done.wait(rng.uniform(0.0, 0.008)):
                    appending.clear()
                    ended = own.execute(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = "
                        "current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
                    ).fetchone()
                    assert ended is not None
                    kills += int(ended[0])

        thread = threading.Thread(target=harass)
        thread.start()
        facts: list[Fact] = []
        try:
            while kills < 10 and len(facts) < 2_000:
                more = batch(len(facts))
                appending.set()
                journal.append(more)
                facts += more
        finally:
            done.set()
            appending.set()
            thread.join()
        assert kills >= 10
        assert list(journal.read()) == facts
        assert postgres_place.query("SELECT count(*), max(seq) FROM facts") == [(len(facts), len(facts))]

    def test_a_restart_of_the_server_is_waited_for(
        self,
        journal: Journal,
        postgres_place: Place,
        postgres: PostgresServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        journal.append(batch(1))
        postgres.stop("immediate")
        with away(postgres, caplog):
            journal.append(batch(2))
        assert "trying again for 60 s" in caplog.text
        assert re.search(r"is back after \d+\.\d s", caplog.text)
        assert journal.num_facts == 4
        with refusal("another coordinator"):  # the lock was taken again
            postgres_place.elsewhere.open()

    def test_a_start_waits_too(
        self, postgres_place: Place, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        postgres.stop("fast")
        with away(postgres, caplog):
            postgres_place.open().close()
        assert "trying again for 60 s" in caplog.text

    def test_bytes_come_as_bytes(self, journal: Journal) -> None:
        formats = []

        def note(_connection: object, cursor: psycopg.Cursor[Any], *_: object) -> None:
            formats.append(cursor.format)

        event.listen(journal.database.engine, "after_cursor_execute", note)
        journal.note("standing")
        assert formats == [psycopg.pq.Format.BINARY]

    def test_patience_ends(self, postgres: PostgresServer, tmp_path: Path) -> None:
        settings = DatabaseSettings(url=postgres.create_database(), timeout_s=0.5)
        journal = Journal.open(tmp_path, federation="home", settings=settings)
        journal.append(batch(1))
        postgres.stop("immediate")
        try:
            with pytest.raises(
                StoreError, match=r"cannot write to the journal postgresql://.* after \d+ s of trying: "
            ):
                journal.append(batch(2))
        finally:
            postgres.start()
        journal.append(batch(2))  # the same facts again
        assert journal.num_facts == 4
        journal.close()

    @pytest.mark.parametrize("notices", ["append", "read"])
    def test_facts_that_the_server_forgot_are_missed(
        self, journal: Journal, postgres_place: Place, notices: str
    ) -> None:
        """A standby that took over without the last transactions, or a backup that was restored."""
        journal.append(batch(1))
        journal.note("standing")
        postgres_place.query("DELETE FROM facts WHERE seq = 2")
        end_sessions(postgres_place)
        if notices == "read":
            journal.note("standing")
        with pytest.raises(StoreError, match="facts up to number 2 had been written, and are not there"):
            journal.append(batch(2))

    def test_bytes_written_ahead_that_the_server_forgot_are_missed(
        self, journal: Journal, postgres_place: Place
    ) -> None:
        journal.append(batch(1))
        writing = journal.begin_blob()
        writing.write(bytes(PIECE_BYTES + 1))
        fact = published(0, private=b"").model_copy(update={"private": writing.done()})
        postgres_place.query("DELETE FROM bulk WHERE seq < 0 AND piece = 1")
        end_sessions(postgres_place)
        with pytest.raises(StoreError, match="bytes of number -1 had been written, and are not there"):
            journal.append([fact])
        assert postgres_place.query("SELECT max(seq) FROM facts") == [(2,)]


class TestHolding:
    def test_a_second_coordinator_is_refused_with_host_and_pid_and_may_take_over(
        self, postgres_place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        body = """
            import sys
            from fedmq_coordinator.core.facts import EpochBegun
            from fedmq_coordinator.shell.store_fence import FencedError
            journal.append([EpochBegun(at=1.0, epoch=journal.epoch)])
            print("ready", flush=True)
            sys.stdin.readline()
            try:
                journal.append([EpochBegun(at=2.0, epoch=99)])
            except FencedError as error:
                print(error, flush=True)
        """
        holder = opening_process(postgres_place, body)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            with refusal(rf"another coordinator \(pid {holder.pid} on \S+, since 2.*--take-over"):
                postgres_place.elsewhere.open()
            newer = postgres_place.elsewhere.open(take_over=True)
            assert f"from pid {holder.pid} on" in caplog.text
            newer.append([EpochBegun(at=3.0, epoch=newer.epoch)])
            said, _ = holder.communicate(b"\n", timeout=60)
        finally:
            holder.kill()
            holder.wait()
        assert re.search(
            rf"another coordinator \(pid {os.getpid()} on \S+\) has begun epoch {newer.epoch} on ",
            said.decode(),
        )
        assert list(newer.read()) == [EpochBegun(at=1.0, epoch=1), EpochBegun(at=3.0, epoch=newer.epoch)]
        newer.close()

    def test_who_only_looks_does_not_hold_the_lock_after_a_lost_connection(
        self, postgres_place: Place
    ) -> None:
        postgres_place.open().close()
        looking = postgres_place.look()
        end_sessions(postgres_place)
        assert looking.note("standing") is None
        postgres_place.open().close()
        looking.close()

    def test_a_killed_holder_is_gone_at_once(self, postgres_place: Place) -> None:
        holder = opening_process(postgres_place, "import sys; print('ready', flush=True); sys.stdin.read()")
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        holder.kill()
        holder.communicate()
        postgres_place.elsewhere.open().close()

    def test_two_schemas_of_one_database_are_two_journals(
        self, postgres_place: Place, tmp_path: Path
    ) -> None:
        assert postgres_place.settings is not None
        postgres_place.query("CREATE SCHEMA office")
        url = f"{postgres_place.settings.url}&options=-csearch_path%3Doffice"
        office = Journal.open(tmp_path / "o", federation="office", settings=DatabaseSettings(url=url))
        home = postgres_place.open()
        home.append(batch(1))
        assert (home.num_facts, office.num_facts) == (2, 0)
        home.close()
        office.close()


class TestRefusals:
    @pytest.fixture
    def guarded(self, postgres: PostgresServer) -> Iterator[str]:
        """The URL of a database of a user who needs a password, without it."""
        url = postgres.create_database()
        name = url.partition("@/")[2].partition("?")[0]
        postgres.execute("CREATE ROLE guarded LOGIN PASSWORD 'first'")
        postgres.execute(f"ALTER DATABASE {name} OWNER TO guarded")
        yield url.replace("fedmq@", "guarded@", 1)
        postgres.drop_database(url)
        postgres.execute("DROP ROLE guarded")

    def test_a_wrong_password_is_said_at_once_and_never_shown(self, guarded: str, tmp_path: Path) -> None:
        for settings in (
            DatabaseSettings(url=guarded.replace("guarded@", "guarded:geheim@")),
            DatabaseSettings(url=guarded, password="geheim"),
        ):
            assert "geheim" not in repr(settings)
            with pytest.raises(
                StoreError, match=r"cannot open the journal postgresql://guarded@.*guarded"
            ) as found:
                Journal.open(tmp_path, federation="home", settings=settings)
            assert "geheim" not in str(found.value)

    def test_the_password_file_is_read_at_each_connection(
        self, guarded: str, postgres: PostgresServer, tmp_path: Path
    ) -> None:
        path = tmp_path / "password"
        settings = DatabaseSettings(url=guarded, password_file=path, timeout_s=60)
        with pytest.raises(ConfigError, match=r"password_file cannot be read: .*password"):
            Journal.open(tmp_path / "state", federation="home", settings=settings)
        path.write_text("first\n")
        journal = Journal.open(tmp_path / "state", federation="home", settings=settings)
        postgres.execute("ALTER ROLE guarded PASSWORD 'second'")
        path.write_text("second\n")
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guarded'")
        journal.append(batch(1))
        journal.close()

    def test_a_database_that_is_not_there(self, postgres: PostgresServer, tmp_path: Path) -> None:
        settings = DatabaseSettings(url=postgres.url("nowhere"))
        with pytest.raises(StoreError, match='database "nowhere" does not exist'):
            Journal.open(tmp_path, federation="home", settings=settings)
        Journal.open(tmp_path, federation="home").close()  # the folder was let go

    @pytest.mark.parametrize(
        ("state", "said"),
        [("disk_full", "cannot write to .*no room"), ("data_corrupted", "is damaged .*no room")],
    )
    def test_what_the_server_cannot_write_is_said_and_not_there(
        self, journal: Journal, postgres_place: Place, state: str, said: str
    ) -> None:
        journal.append(batch(1))
        postgres_place.query(
            "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '{state}'; END $$"
        )
        postgres_place.query("CREATE TRIGGER fails BEFORE INSERT ON bulk EXECUTE FUNCTION fails()")
        with pytest.raises(StoreError, match=said):
            journal.append(batch(2))
        assert journal.num_facts == 2
        postgres_place.query("DROP TRIGGER fails ON bulk")
        journal.append(batch(2))
        assert len(list(journal.read())) == 4

    def test_a_server_that_may_only_be_read(self, postgres: PostgresServer, tmp_path: Path) -> None:
        settings = DatabaseSettings(
            url=postgres.create_database() + "&options=-cdefault_transaction_read_only%3Don"
        )
        with pytest.raises(StoreError, match=r"cannot open .*read-only transaction"):
            Journal.open(tmp_path, federation="home", settings=settings)

    def test_a_write_that_is_stopped_in_the_middle_does_not_hold_up_the_newer(
        self, postgres_place: Place
    ) -> None:
        """A process that hangs while it holds the fence's row."""
        older = postgres_place.open()
        connection = older.database.engine.connect()
        older._fence.lock(connection)
        newer = postgres_place.elsewhere.open(take_over=True)
        newer.append(batch(1))
        connection.invalidate()
        connection.close()
        with pytest.raises(FencedError):
            older.append(batch(2))
        assert newer.num_facts == len(list(newer.read())) == 2
        older.close()
        newer.close()


class TestInALoop:
    async def test_an_event_loop_is_not_kept_waiting(self, journal: Journal, postgres_place: Place) -> None:
        """Reading in a loop fails at once, and does well in a thread; the outbox reads so."""
        await asyncio.to_thread(journal.append, [published(0, private=bytes(PIECE_BYTES))])
        (fact,) = await asyncio.to_thread(lambda: list(journal.read()))
        assert isinstance(fact, VersionPublished)
        assert fact.private is not None
        await asyncio.to_thread(end_sessions, postgres_place)
        with pytest.raises(AwayError, match="is out of reach: "):
            fact.private.read(0, 5)
        assert await asyncio.to_thread(fact.private.read, 0, 5) == bytes(5)
        with refusal("another coordinator"):  # the lock was taken again
            await asyncio.to_thread(postgres_place.elsewhere.open)
