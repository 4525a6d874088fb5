"""The whole way of one device, with the commands that an operator types: enrolled, flashed, training, thrown out.

The broker is a Mosquitto over mutual TLS, the coordinator a process, the device a clean system of its own, in which the
agent runs as the installed unit says: its command line, its user, its folders.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fedmq_edge_agent.flashing.partitions import read_partitions
from tests.edge_agent.flashing.images import make_image
from tests.edge_agent.flashing.roots import Root, overlaid

ROOT: Final = Path(__file__).parents[2]
SUMS: Final = str(Path(__file__).with_name("sums.py"))
UNIT: Final = "/etc/systemd/system/fedmq-agent.service"
SETTINGS: Final = """
[federation]
name = "field"

[mosquitto]
hosts = ["127.0.0.1"]
port = {port}
websockets_port = 0
password_port = 0
devices = 10
parameters = 400_000

[coordinator]
state_dir = "coordinator"
listen = "127.0.0.1:0"

[run]
rounds = {rounds}

[run.selection]
min_available_devices = 1

[run.compression]
density = {density}
"""


class ProofError(AssertionError):
    """The device did not do what it should."""


@dataclass
class Outcome:
    """What was seen, and how long it took, in seconds.

    Attributes:
        facts: in the order in which they were found.
    """

    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, name: str, value: Any, *, unit: str = "") -> None:
        """Keep a fact, and tell it."""
        self.facts[name] = value
        shown = f"{value:.1f}" if isinstance(value, float) else value
        print(f"{name:<44} {shown} {unit}".rstrip(), flush=True)  # noqa: T201 - the long run is watched


@dataclass
class Operator:
    """A machine with the authority, the broker and the coordinator."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def fedmq(self, *arguments: str, timeout_s: float = 600) -> str:
        """A command, to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "fedmq", *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise ProofError(
                f"fedmq {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command that stays, with its log in a file."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedmq", *arguments],
                cwd=self.folder,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End all of it, the last first."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _environment(self) -> dict[str, str]:
        parts = (".", "protocol", "broker", "coordinator", "edge_agent")
        return {**os.environ, "PYTHONPATH": ":".join(str(ROOT / part) for part in parts)}


@contextlib.contextmanager
def federation(folder: Path, *, rounds: int, density: float) -> Iterator[Operator]:
    """A Mosquitto and a coordinator, as `fed.toml` in `folder` says."""
    operator = Operator(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = SETTINGS.format(port=port, rounds=rounds, density=density)
    (folder / "fed.toml").write_text(text)
    try:
        operator.fedmq("broker", "init", "--config", "fed.toml")
        operator.start("broker", "broker", "start", "--config", "fed.toml")
        until("Mosquitto listens", lambda: _listens(port), 60)
        operator.start("coordinator", "coordinator", "start", "--config", "fed.toml")
        until("the coordinator has a key", (folder / "coordinator" / "key").exists, 120)
        yield operator
    finally:
        operator.stop()


def until(
    what: str, holds: Callable[[], object], timeout_s: float, *, tell: Callable[[], str] = str
) -> float:
    """Wait for something; how long it took, in seconds.

    Raises:
        ProofError: it did not come.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > timeout_s:
            raise ProofError(f"{what}: not after {timeout_s:.0f} s\n{tell()}")
        time.sleep(0.05)
    return time.monotonic() - began


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Device:
    """The agent in its system, started as its unit would start it."""

    def __init__(self, root: Root, folder: Path) -> None:
        self._root = root
        self._log = folder / "agent.log"
        self._unit = dict(
            line.split("=", 1)
            for line in root.run("cat", UNIT).stdout.splitlines()
            if re.match(r"[A-Z]\w+=", line)
        )
        self._process: subprocess.Popen[bytes] | None = None
        # Abstract: it is found from within another root, too.
        self._name = f"fedmq-field-{os.getpid()}-{id(self)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{self._name}")
        self._notices: list[str] = []

    def start(self) -> float:
        """Run the unit's command line as its user; returns when that was."""
        environment = [word for word in self._unit.get("Environment", "").split() if "=" in word]
        environment.append(f"NOTIFY_SOCKET=@{self._name}")
        command = [
            "env",
            "-C",
            self._unit["WorkingDirectory"],
            *environment,
            *self._unit["ExecStart"].split(),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._root.inside(*command, user=f"{self._unit['User']}:{self._unit['Group']}"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return time.monotonic()

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def notices(self) -> list[str]:
        """What it has told systemd so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notices += self._socket.recv(4096).decode().splitlines()
        return self._notices

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def resident(self) -> tuple[int, int]:
        """Bytes resident of the agent, and of the largest process that it started."""
        assert self._process is not None
        children = subprocess.run(
            ["ps", "-o", "rss=", "--ppid", str(self._process.pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        own = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self._process.pid}/status").read_text())
        assert own is not None
        return 1024 * int(own[1]), 1024 * max((int(child) for child in children), default=0)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """End it, if it still runs, and what it was heard by."""
        self.stop()
        self._socket.close()


@dataclass(frozen=True)
class Board:
    """What is flashed, and how.

    Attributes:
        system: a clean one; it is not changed.
        arch: its architecture.
        way: `bundle`, run in it; or `sdcard`, an image made of it, whose first start is gone through by hand.
        torch: whether PyTorch goes along; otherwise `binds` brings it.
        binds: folders of this machine that are seen there.
        keep: where what is installed lies; else in memory.
    """

    system: Path
    arch: str
    way: Literal["bundle", "sdcard"] = "bundle"
    torch: bool = True
    binds: dict[Path, str] = field(default_factory=dict)
    keep: Path | None = None


def prove(
    folder: Path,
    board: Board,
    scratch: Path,
    *,
    task: str = SUMS,
    rounds: int = 3,
    density: float = 0.2,
    patience: float = 1.0,
) -> Outcome:
    """Go the whole way, and raise where it does not lead on.

    Args:
        folder: an empty one, for the operator.
        board: what is flashed.
        scratch: an empty one, where the board's system is seen.
        task: what is trained.
        rounds: how many.
        density: of updates.
        patience: all time limits times this.
    """
    outcome = Outcome()
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(federation(folder, rounds=rounds, density=density))
        operator.fedmq(
            *("device", "enroll", "dev-1", "--config", "fed.toml", "--task", task),
            *("--data", "partition_id=0", "--data", "num_partitions=2"),
        )
        go = _flash_bundle if board.way == "bundle" else _flash_card
        root = go(operator, board, scratch, outcome, stack)
        size = root.run("du", "-s", "-B1", "/opt/fedmq").stdout.split()[0]
        outcome.note("installed", int(size) / 1e6, unit="MB")
        version = root.run("/opt/fedmq/bin/fedmq", "--version", user="fedmq").stdout.strip()
        outcome.note("the device says", f"{version}, {root.run('uname', '-m').stdout.strip()}")
        device = stack.enter_context(contextlib.closing(Device(root, folder)))
        operator.start("run", "run", "start", task, "--config", "fed.toml", "--watch")
        try:
            _train(operator, device, outcome, rounds=rounds, patience=patience)
            _throw_out(operator, device, outcome, patience=patience)
        except ProofError as error:
            logs = "".join(
                f"\n--- {name}\n{operator.log(name)[-3000:]}" for name in ("broker", "coordinator", "run")
            )
            raise ProofError(f"{error}\n--- agent\n{device.log()[-4000:]}{logs}") from None
        device.stop()
        if board.way == "bundle":
            root.run("env", "SYSTEMD_OFFLINE=1", "sh", "/srv/bundle.run", "--uninstall", "--purge")
            left = root.tree("/opt", "/etc/fedmq", "/var/lib/fedmq", UNIT)
            if "fedmq" in left:
                raise ProofError(f"after --uninstall --purge there is still {left}")
            outcome.note("uninstalled", "nothing left")
    return outcome


def _flash(operator: Operator, board: Board, target: str, *options: str) -> None:
    operator.fedmq(
        *("device", "flash", "dev-1", "--config", "fed.toml", "--target", target, *options),
        *(() if board.torch else ("--without-torch",)),
    )


def _flash_bundle(
    operator: Operator, board: Board, scratch: Path, outcome: Outcome, stack: contextlib.ExitStack
) -> Root:
    began = time.monotonic()
    _flash(operator, board, "bundle", "--arch", board.arch)
    outcome.note("bundle made in", time.monotonic() - began, unit="s")
    (bundle,) = operator.folder.glob("fedmq-dev-1-*.run")
    outcome.note("bundle", bundle.stat().st_size / 1e6, unit="MB")
    root = stack.enter_context(overlaid(board.system, scratch, keep=board.keep, binds=board.binds))
    root.write("/srv/bundle.run", bundle.read_bytes(), mode=0o600)
    began = time.monotonic()
    told = root.run("env", "SYSTEMD_OFFLINE=1", "sh", "/srv/bundle.run").stdout
    outcome.note("installed in", time.monotonic() - began, unit="s")
    assert told.endswith("done\n"), told
    return root


def _flash_card(
    operator: Operator, board: Board, scratch: Path, outcome: Outcome, stack: contextlib.ExitStack
) -> Root:
    image = make_image(operator.folder / "card.img", board.system, root_mb=900)
    began = time.monotonic()
    _flash(operator, board, f"sdcard:{image}", "--hostname", "dev-1")
    outcome.note("card made in", time.monotonic() - began, unit="s")
    lower = scratch.with_name(f"{scratch.name}-card")
    lower.mkdir()
    where = next(one for one in read_partitions(image) if one.kind == "ext")
    loop = f"loop,ro,offset={where.offset},sizelimit={where.size}"
    subprocess.run(["mount", "-o", loop, str(image), str(lower)], check=True)
    stack.callback(subprocess.run, ["umount", str(lower)], check=True)
    root = stack.enter_context(overlaid(lower, scratch, keep=board.keep, binds=board.binds))
    assert root.run("cat", "/etc/hostname").stdout == "dev-1\n"
    unit = root.run("cat", "/etc/systemd/system/multi-user.target.wants/fedmq-firstboot.service").stdout
    began = time.monotonic()
    for line in re.findall(r"^ExecStart(?:Post)?=(.*)$", unit, re.MULTILINE):
        root.run("env", "SYSTEMD_OFFLINE=1", *line.split())
    outcome.note("first start's work took", time.monotonic() - began, unit="s")
    if root.run("test", "-e", "/opt/fedmq/firstboot.run", check=False).returncode == 0:
        raise ProofError("the bundle, and the key in it, is still on the card")
    return root


def _train(operator: Operator, device: Device, outcome: Outcome, *, rounds: int, patience: float) -> None:
    started = device.start()

    def said(text: str) -> Callable[[], bool]:
        def look() -> bool:
            if not device.runs:
                raise ProofError("the agent ended")
            return text in device.log()

        return look

    until("READY=1 to systemd", lambda: "READY=1" in device.notices(), 120 * patience)
    outcome.note("ready, from the command's start on", time.monotonic() - started, unit="s")
    for what, line in (
        ("connected", "connected to the broker"),
        ("task open", " is open, with "),
        ("first update made", "trained on version 0"),
    ):
        until(what, said(line), 300 * patience)
        outcome.note(f"{what}, from the command's start on", time.monotonic() - started, unit="s")
    watch = operator.processes[-1]
    until("the end of the run", lambda: watch.poll() is not None, 120 * rounds * patience)
    agent, trainer = device.resident()
    outcome.note("supervisor resident", agent / 1e6, unit="MB")
    outcome.note("trainer resident", trainer / 1e6, unit="MB")
    told = operator.log("run").splitlines()
    if f"finished: all {rounds} rounds are done" not in told:
        raise ProofError(f"the run did not end well: {told[-1:]}")
    outcome.note("rounds completed", rounds)


def _throw_out(operator: Operator, device: Device, outcome: Outcome, *, patience: float) -> None:
    before = len(device.log())
    began = time.monotonic()
    operator.fedmq("device", "revoke", "dev-1", "--config", "fed.toml")
    outcome.note("revoked in", time.monotonic() - began, unit="s")
    # By the plugin it is ended, by a session in its place closed.
    gone = re.compile(r"(ended|closed) the connection")
    until("the agent is thrown out", lambda: gone.search(device.log()[before:]), 120 * patience)
    outcome.note("thrown out, from the command on", time.monotonic() - began, unit="s")
    # It tries again, and by then its certificate is on the list. How TLS says so may be lost with the connection: the
    # agent hears of it at one of its attempts.
    until("the agent is refused", lambda: "revoked" in device.log()[before:], 120 * patience)
    if not device.runs:
        raise ProofError("the agent ended when it was refused")
    device.stop()
    before = len(device.log())
    device.start()
    until(
        "the agent is refused at its next start", lambda: "revoked" in device.log()[before:], 120 * patience
    )
    outcome.note("started again", "refused")


def programs_missing() -> list[str]:
    """What the proof needs besides debootstrap."""
    return [
        name
        for name in ("mosquitto", "ps")
        if shutil.which(name, path="/usr/sbin:/usr/bin:/bin:/sbin") is None
    ]
