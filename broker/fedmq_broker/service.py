"""A federation's own Mosquitto, started, stopped and told to read its files again.

    with start_site(site) as broker:        # a child of ours, in the foreground
        broker.wait()
    pid = start_detached(site)              # lives on when we end
    stop(site)

Mosquitto runs in its own folder, since its configuration names files without a path, and writes its process id there.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final

from fedmq_broker import membership
from fedmq_broker.checking.reading import Reading, read_file
from fedmq_broker.child import Child, signals_set, tail
from fedmq_broker.errors import BrokerStartError
from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.preparing import give_to
from fedmq_broker.probe import port_is_free, reachable_host
from fedmq_broker.running import has_ended, pid_or_closed, running_pid
from fedmq_broker.site import MemberFiles, MosquittoFiles, Site
from fedmq_protocol.access import OPERATOR
from fedmq_protocol.errors import UsageError

NOT_INSTALLED: Final = "mosquitto is not installed: apt-get install mosquitto, or brew install mosquitto"
_POLL_S: Final = 0.02
_START_S: Final = 20.0
_GRACE_S: Final = 30.0
_OWN_FILES: Final = 64


class RunningSite:
    """A Mosquitto of a site that is a child of ours. A context manager: leaving it stops the broker.

    Attributes:
        site: its files.
        port: the one for client certificates.
    """

    def __init__(self, site: Site, child: Child, port: int) -> None:
        self.site = site
        self.port = port
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for it to end by itself; its exit code, or None when the time is over first."""
        self._child.ended.wait(timeout_s)
        return self._child.exit_code

    def stop(self, *, grace_s: float = _GRACE_S) -> None:
        """Ask it to end, insist after `grace_s`. A second call does nothing."""
        self._child.stop(grace_s)
        self.site.mosquitto.pid.unlink(missing_ok=True)


@contextlib.contextmanager
def start_site(site: Site, *, timeout_s: float = _START_S) -> Iterator[RunningSite]:
    """Start a site's Mosquitto as a child of ours, until the block is left.

    Raises:
        UsageError: the site was never set up, it runs already, or a port is taken.
        BrokerStartError: it did not start; the text ends with its last words.
    """
    start = _Start(site)
    with start.log() as log:
        child = Child(start.command, log, folder=site.mosquitto.folder)
    try:
        start.await_answer(lambda: child.exit_code, timeout_s)
        running = RunningSite(site, child, start.port)
        yield running
    finally:
        child.stop(_GRACE_S)
        site.mosquitto.pid.unlink(missing_ok=True)


def run_in_foreground(site: Site, *, echo: Callable[[str], None] = print) -> None:
    """Run a site's Mosquitto until Ctrl-C or SIGTERM; SIGHUP is passed on.

    Raises:
        UsageError: see `start_site`.
        BrokerStartError: it did not start, or ended by itself.
    """
    stopping = threading.Event()
    with signals_set(stopping), start_site(site) as broker, _passing_on_hangups(broker.pid):
        echo(f"Mosquitto listens on {_ports_of(read_file(site.mosquitto.configuration))}")
        echo(f"its log is {site.mosquitto.log}; stop it with Ctrl-C")
        while not stopping.is_set():
            code = broker.wait(0.2)  # short waits: on some systems a blocked wait does not see signals
            if code is not None:
                raise BrokerStartError(
                    f"Mosquitto ended by itself (exit code {code}):\n{tail(site.mosquitto.log)}"
                )
        echo("stopping")


def start_detached(site: Site, *, timeout_s: float = _START_S) -> int:
    """Start a site's Mosquitto so that it lives on when we end; returns its process id once it answers.

    Raises:
        UsageError: see `start_site`.
        BrokerStartError: it did not start.
    """
    start = _Start(site)
    with start.log() as log:
        process = subprocess.Popen(  # noqa: S603 - the program that we found
            start.command,
            cwd=site.mosquitto.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        start.await_answer(process.poll, timeout_s)
    except BaseException:
        process.kill()
        process.wait()
        raise
    pid = process.pid
    process.returncode = 0  # it lives on: Popen is not to complain that nobody waited for it
    return pid


def stop(site: Site, *, grace_s: float = _GRACE_S) -> bool:
    """Ask a site's Mosquitto to end, and insist after `grace_s`. Returns whether it ran.

    Raises:
        UsageError: it is not ours to stop.
        PermissionError: the site's folder is closed to this user, who so cannot tell.
    """
    pid = pid_or_closed(site)
    if pid is None:
        return False
    for ask in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, ask)
        except ProcessLookupError:
            break
        except PermissionError:
            raise UsageError(f"Mosquitto (process {pid}) is not yours to stop: who started it can") from None
        until = time.monotonic() + grace_s
        while not has_ended(pid) and time.monotonic() < until:
            time.sleep(_POLL_S)
        if has_ended(pid):
            break
    site.mosquitto.pid.unlink(missing_ok=True)
    return True


def hand_over(site: Site) -> None:
    """Give the broker's folder to the user that the configuration names, where we are root."""
    user = read_file(site.mosquitto.configuration).common.text("user")
    if user is not None:
        give_to(site.mosquitto.folder, user)


# ---------------------------------------------------------------------------------------------- starting


@dataclass
class _Start:
    """What a start needs, looked up and made ready."""

    site: Site

    def __post_init__(self) -> None:
        files = self.site.mosquitto
        if not files.configuration.exists():
            raise UsageError(f"{files.folder} was never set up: fedmq broker init does that")
        program = find_mosquitto()
        if program is None:
            raise UsageError(NOT_INSTALLED)
        pid = running_pid(self.site)
        if pid is not None:
            raise UsageError(f"it runs already, as process {pid}: fedmq broker stop ends it")
        reading = read_file(files.configuration)
        for listener in reading.listeners:
            _require_port(listener.host or "0.0.0.0", listener.port or 0)  # noqa: S104 - looked at, not listened on
        self.command = [str(program), "-c", files.configuration.name]
        self.host = reading.listeners[0].host
        self.port = reading.listeners[0].port or 0
        _allow_files(reading)
        membership.render_files(self.site)
        hand_over(self.site)

    @contextlib.contextmanager
    def log(self) -> Iterator[IO[bytes]]:
        """An empty log; the last one is kept beside it.

        The folder is Mosquitto's, and we may be root: what lies there already is never written through.
        """
        path = self.site.mosquitto.log
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name(f"{path.name}.1"))
        with path.open("xb") as file:
            yield file

    def await_answer(self, exit_code: Callable[[], int | None], timeout_s: float) -> None:
        """Return once it speaks TLS.

        Raises:
            BrokerStartError: it ended, or stays mute.
        """
        files: MosquittoFiles = self.site.mosquitto
        deadline = time.monotonic() + timeout_s
        while not _speaks_tls(self.host, self.port, self.site.member(OPERATOR)):
            code = exit_code()
            if code is not None:
                raise BrokerStartError(f"Mosquitto ended at its start (exit code {code}):\n{tail(files.log)}")
            if time.monotonic() > deadline:
                raise BrokerStartError(f"Mosquitto does not answer after {timeout_s:g} s:\n{tail(files.log)}")
            time.sleep(_POLL_S)


def _allow_files(reading: Reading) -> None:
    """Let this process, and so the one that it starts, open as many files as all listeners may take connections.

    Mosquitto raises no limit by itself; many systems begin with 1,024 and allow more to who asks.
    """
    needed = _OWN_FILES + sum(max(0, one.integer("max_connections", 0)) for one in reading.listeners)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _require_port(host: str, port: int) -> None:
    where = f"port {port}" if host == "0.0.0.0" else f"port {port} on {host}"  # noqa: S104 - compared
    try:
        if not port_is_free(host, port):
            raise UsageError(f"{where} is taken by another program: choose another in [mosquitto]")
    except PermissionError:
        raise UsageError(f"{where} needs root: choose a port above 1023, or use the systemd unit") from None
    except OSError as error:
        raise UsageError(f"cannot listen on {where}: {error}") from None


def _speaks_tls(host: str, port: int, member: MemberFiles) -> bool:
    """Whether a TLS handshake succeeds. Nothing is sent that needs trust, so the certificate is not looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError):  # without, it is an answer too, and a complaint in the log
        context.load_cert_chain(member.certificate, member.key)
    try:
        with (
            socket.create_connection((reachable_host(host), port), timeout=1.0) as sock,
            context.wrap_socket(sock) as tls,
        ):
            with contextlib.suppress(OSError):
                tls.unwrap()  # a farewell: Mosquitto complains without
            return True
    except (OSError, ssl.SSLError):
        return False


def _ports_of(reading: Reading) -> str:
    said = []
    for listener in reading.listeners:
        if listener.flag("require_certificate", default=False):
            how = "certificates"
        else:
            how = "passwords, WebSockets" if listener.text("protocol") == "websockets" else "passwords"
        said.append(f"{listener.port} ({how})")
    return ", ".join(said)


@contextlib.contextmanager
def _passing_on_hangups(pid: int) -> Iterator[None]:
    """SIGHUP to us is meant for Mosquitto, where we may say so: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(_number: int, _frame: object) -> None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
