"""A site's own Mosquitto: set up, started, told to read its files again, stopped; what its members notice of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import getpass
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fedmq_broker import membership
from fedmq_broker.checking import check
from fedmq_broker.errors import BrokerStartError
from fedmq_broker.mosquitto import find_mosquitto, mosquitto_version
from fedmq_broker.preparing import Plan, prepare
from fedmq_broker.probe import find_free_port
from fedmq_broker.running import running_pid
from fedmq_broker.service import hand_over, start_detached, start_site, stop
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan as limits_for
from fedmq_broker.standing import look
from fedmq_protocol.access import COORDINATOR, OPERATOR
from fedmq_protocol.errors import ConnectionFailedError, UsageError
from fedmq_protocol.topics import Topics
from tests.broker_fixtures import PATIENCE_S, Connect, MakeSite, next_message, require_mosquitto

pytestmark = pytest.mark.mosquitto
TOPICS = Topics("home")


def own_plan(**other: object) -> Plan:
    ports = {name: find_free_port("127.0.0.1") for name in ("port", "websockets_port", "password_port")}
    plan = Plan("home", ("localhost",), limits_for(10, 1_000), listen="127.0.0.1", user=getpass.getuser())
    return replace(plan, **{**ports, **other})  # type: ignore[arg-type]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    require_mosquitto()
    return Site(tmp_path / "site")


# ------------------------------------------------------------------------------------- setting up


def files_of(site: Site) -> dict[str, bytes]:
    return {
        str(path.relative_to(site.folder)): path.read_bytes()
        for path in sorted(site.folder.rglob("*"))
        if path.is_file()
    }


def test_doing_it_twice_changes_nothing(site: Site) -> None:
    plan = own_plan()
    first = prepare(site, plan, running=False)
    before = files_of(site)
    assert any("authority" in line for line in first.made)
    again = prepare(site, plan, running=False)
    assert (again.made, again.at_start) == ((), ())
    assert files_of(site) == before


def test_a_change_of_the_file_is_rendered_and_no_key_is_made_anew(site: Site) -> None:
    plan = own_plan()
    prepare(site, plan, running=False)
    before = files_of(site)
    changed = prepare(site, replace(plan, limits=limits_for(4_000, 1_000), websockets_port=0), running=False)
    after = files_of(site)
    assert {name for name in before if before[name] != after[name]} == {
        "mosquitto/mosquitto.conf",
        "mosquitto/fedmq-broker.service",
    }
    assert "listener" in changed.at_start
    assert "max_connections" in changed.at_start
    assert "max_queued_messages" not in changed.at_start


def test_new_keys_are_made_when_they_are_asked_for(site: Site) -> None:
    plan = own_plan()
    prepare(site, plan, running=False)
    before = files_of(site)
    prepare(site, plan, running=False, renew=True)
    after = files_of(site)
    for name in ("mosquitto/server.key", "members/@operator/key.pem"):
        assert before[name] != after[name]
    assert before["authority/ca.key"] == after["authority/ca.key"]


def test_secrets_are_for_nobody_else(site: Site) -> None:
    prepare(site, own_plan(), running=False)
    for path in site.folder.rglob("*"):
        if path.suffix == ".key" or path.name in {"key.pem", "dynamic-security.json", "members.json"}:
            assert path.stat().st_mode & 0o077 == 0, path
    assert site.mosquitto.folder.stat().st_mode & 0o077 == 0


def test_what_is_rendered_passes_the_check(site: Site) -> None:
    plan = own_plan()
    prepare(site, plan, running=False)
    program = find_mosquitto()
    assert program is not None
    found = check(
        site.mosquitto.configuration, devices=10, limits=plan.limits, version=mosquitto_version(program)
    )
    assert [one for one in found if one.rule != "user-root"] == []  # who tests may be root; see below


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
def test_nothing_is_written_through_a_link_that_lies_in_its_folder(site: Site, tmp_path: Path) -> None:
    """The folder is Mosquitto's own, and whoever prepares and starts it may be root."""
    plan = own_plan()
    prepare(site, plan, running=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    nowhere = tmp_path / "nowhere"
    site.mosquitto.folder.joinpath(".mosquitto.conf.part").symlink_to(elsewhere)
    prepare(site, replace(plan, limits=limits_for(20, 1_000)), running=False)
    assert elsewhere.read_text() == "precious"
    site.mosquitto.log.symlink_to(nowhere)
    with start_site(site):
        assert not nowhere.exists()
        assert site.mosquitto.log.is_file()


def test_a_user_without_a_name_prepares_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as some number."""
    monkeypatch.setattr(os, "geteuid", lambda: 54_321_012)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321_012)
    assert Plan("home", ("localhost",), limits_for(10, 1_000)).user == "54321012"


# ------------------------------------------------------------------------------------- running


async def test_members_come_in_and_nobody_else(site_broker: MakeSite, connect: Connect) -> None:
    broker = site_broker("dev-1")
    await connect(client_id="x", **dict(broker.settings(COORDINATOR)))
    device = await connect(client_id="y", **dict(broker.settings("dev-1")))
    await device.publish(TOPICS.presence("dev-1"), b"here", retain=True)
    nobody = {**dict(broker.settings("dev-1")), "cert_file": None, "key_file": None}
    with pytest.raises(ConnectionFailedError):
        await connect(client_id="z", **nobody)


async def test_a_board_without_certificates_comes_in_by_password(
    site_broker: MakeSite, connect: Connect
) -> None:
    broker = site_broker()
    await broker.enrol("old-board", password=True)
    device = await connect(client_id="any", **dict(broker.settings("old-board")))
    await device.publish(TOPICS.presence("old-board"), b"here", retain=True)
    websockets = broker.settings("old-board", url=f"wss://localhost:{broker.plan.websockets_port}/mqtt")
    browser = await connect(client_id="any", **dict(websockets))
    await browser.publish(TOPICS.presence("old-board"), b"here too", retain=True)
    everybody = await connect(client_id="c", **dict(broker.settings("@coordinator")))
    await everybody.subscribe([TOPICS.presence("old-board")])
    message = await next_message(everybody.events())
    assert (message.payload, message.retained) == (b"here too", True)


async def test_reading_the_files_again_cuts_nobody_off(
    site_broker: MakeSite, connect: Connect, tmp_path: Path
) -> None:
    """New limits, a new server certificate, a revoked member: those who stay keep their connections."""
    broker = site_broker("dev-1", "dev-2")
    kept = tmp_path / "kept"
    shutil.copytree(broker.site.member("dev-2").folder, kept)
    coordinator = await connect(client_id="x", **dict(broker.settings(COORDINATOR)))
    device = await connect(client_id="y", **dict(broker.settings("dev-1")))
    events = coordinator.events()
    await coordinator.subscribe(TOPICS.coordinator_filters())
    prepare(broker.site, replace(broker.plan, limits=limits_for(500, 1_000)), running=True, renew=True)
    await membership.revoke(broker.site, ["dev-2"], live=broker.settings(OPERATOR))
    assert membership.signal_reload(broker.site)
    await broker.enrol("dev-3")  # by the new certificates
    await device.publish(TOPICS.up("dev-1", "hello"), b"still here")
    assert (await next_message(events)).topic == TOPICS.presence("dev-2")  # cleared, as it was revoked
    assert (await next_message(events)).payload == b"still here"
    assert broker.site.mosquitto.log.read_text().count("u'dev-1'") == 1  # it came in once
    revoked = {
        "ca_file": broker.site.authority.ca,
        "cert_file": kept / "cert.pem",
        "key_file": kept / "key.pem",
        "reconnect_min_s": 0.05,
        "reconnect_max_s": 0.5,
    }
    with pytest.raises(ConnectionFailedError):
        await connect(client_id="z", url=f"mqtts://localhost:{broker.plan.port}", **revoked)


async def test_what_is_retained_survives_a_restart(site: Site, connect: Connect) -> None:
    plan = own_plan()
    prepare(site, plan, running=False)
    settings = {
        "url": f"mqtts://localhost:{plan.port}",
        "ca_file": site.authority.ca,
        "cert_file": site.member(COORDINATOR).certificate,
        "key_file": site.member(COORDINATOR).key,
    }
    with start_site(site):
        coordinator = await connect(client_id="x", **settings)
        await coordinator.publish(TOPICS.coordinator_status, b"up", retain=True)
        await coordinator.stop()
    with start_site(site):
        again = await connect(client_id="x", **settings)
        await again.subscribe([TOPICS.coordinator_status])
        assert (await next_message(again.events())).payload == b"up"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_started_by_root_it_becomes_its_own_user_and_reads_what_it_needs(site: Site) -> None:
    try:
        pwd.getpwnam("mosquitto")
    except KeyError:
        pytest.skip("there is no user mosquitto")
    plan = own_plan(user="mosquitto")
    prepare(site, plan, running=False)
    version = mosquitto_version(require_mosquitto())
    assert check(site.mosquitto.configuration, devices=10, limits=plan.limits, version=version) == []
    with start_site(site) as broker:
        assert psutil.Process(broker.pid).username() == "mosquitto"
        assert membership.signal_reload(site)
    assert {path.owner() for path in site.mosquitto.folder.rglob("*")} <= {"mosquitto", "root"}
    assert site.mosquitto.key.owner() == site.mosquitto.dynamic_security.owner() == "mosquitto"
    assert site.authority.key.owner() == "root"


def test_it_may_open_as_many_files_as_it_takes_connections(site: Site) -> None:
    plan = own_plan(limits=limits_for(2_000, 1_000))
    prepare(site, plan, running=False)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1_024, before[1]), before[1]))
    try:
        with start_site(site) as broker:
            soft, hard = psutil.Process(broker.pid).rlimit(psutil.RLIMIT_NOFILE)
        assert soft == min(plan.limits.open_files, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


DETACHED = """
import sys
from pathlib import Path
from fedmq_broker.service import start_detached
from fedmq_broker.site import Site
print(start_detached(Site(Path(sys.argv[1]))))
"""


def test_detached_it_lives_on_and_is_found_and_stopped(site: Site) -> None:
    prepare(site, own_plan(), running=False)
    run = subprocess.run(
        [sys.executable, "-c", DETACHED, site.folder], capture_output=True, text=True, timeout=60, check=True
    )
    pid = int(run.stdout)
    try:
        assert running_pid(site) == pid
        with pytest.raises(UsageError, match=rf"it runs already, as process {pid}: fedmq broker stop"):
            start_detached(site)
    finally:
        assert stop(site)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert running_pid(site) is None
    assert not stop(site)


def test_who_may_not_look_is_not_told_that_it_does_not_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path, **_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", closed)
    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(PermissionError):
        stop(site)


def test_another_process_with_its_number_is_left_alone(site: Site) -> None:
    prepare(site, own_plan(), running=False)
    site.mosquitto.pid.write_text(str(os.getpid()))
    assert running_pid(site) is None
    assert not stop(site)


def test_one_that_does_not_listen_to_terminate_is_killed(site: Site) -> None:
    prepare(site, own_plan(), running=False)
    with start_site(site) as broker:
        os.kill(broker.pid, signal.SIGSTOP)
        assert stop(site, grace_s=0.2)
        assert broker.wait(PATIENCE_S) == -signal.SIGKILL


def test_what_keeps_it_from_starting_is_said(site: Site) -> None:
    with pytest.raises(UsageError, match="was never set up: fedmq broker init"), start_site(site):
        pass
    plan = own_plan()
    prepare(site, plan, running=False)
    with start_site(site):
        other = Site(site.folder.parent / "other")
        prepare(other, plan, running=False)
        with pytest.raises(UsageError, match=rf"port {plan.port} on 127.0.0.1 is taken"), start_site(other):
            pass
    site.mosquitto.certificate.write_text("no certificate")
    with (
        pytest.raises(BrokerStartError, match=r"(?s)ended at its start .*Unable to load server certificate"),
        start_site(site),
    ):
        pass
    hand_over(site)  # without a user to become, or as nobody in particular, it does nothing


# ------------------------------------------------------------------------------------- how it stands


async def test_its_standing_while_it_runs_and_when_it_does_not(
    site_broker: MakeSite, connect: Connect
) -> None:
    broker = site_broker("dev-1")
    await connect(client_id="x", **dict(broker.settings("dev-1")))
    standing = await look(broker.site, broker.settings(OPERATOR), resident_limit=2**40)
    assert standing.answers
    assert standing.pid == broker.running.pid
    assert standing.counters["version"].startswith("mosquitto version")
    assert standing.number("publish/messages/dropped") == 0
    assert standing.resident_bytes is not None
    assert 2**20 < standing.resident_bytes < 2**30
    assert set(standing.expires) == {
        "the server's certificate",
        "the authority",
        "the list of revoked certificates",
    }
    assert standing.troubles == ()
    tight = await look(broker.site, broker.settings(OPERATOR), resident_limit=2**20)
    assert [text for text in tight.troubles if "bytes of memory" in text]
    late = dt.datetime.now(dt.UTC) + dt.timedelta(days=820)
    near = await look(broker.site, broker.settings(OPERATOR), resident_limit=2**40, now=late)
    assert any(text.startswith("the server's certificate expires on") for text in near.troubles)
    broker.running.stop()
    stopped = await look(broker.site, broker.settings(OPERATOR, connect_timeout_s=3), resident_limit=2**40)
    assert not stopped.answers
    assert stopped.pid is None
    assert "no broker at localhost" in stopped.why_not


async def test_two_that_ask_at_once_wait_for_each_other(site_broker: MakeSite) -> None:
    """`@operator` has one session: without turns, each would push the other out."""
    broker = site_broker()
    both = await asyncio.gather(
        *(look(broker.site, broker.settings(OPERATOR), resident_limit=2**40) for _ in range(3))
    )
    assert all(standing.answers for standing in both)
