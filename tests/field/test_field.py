"""A clean system becomes a device, trains over mutual TLS, and is thrown out: the whole way, each time on x86-64.

So that it stays quick, PyTorch does not travel: the system has this machine's, as a board may have its own. All else
comes out of the bundle. `python -m tests.field` goes the long way, PyTorch included, on either architecture.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.platforms import PLATFORMS, Platform
from fedmq_edge_agent.flashing.requirements import Requirement, parse
from fedmq_edge_agent.flashing.wheels import Gathering, fetch_with_pip
from tests.edge_agent.flashing.roots import Root, overlaid
from tests.edge_agent.flashing.sshd import Sshd, sshd_into
from tests.field.proof import (
    SUMS,
    Board,
    Device,
    Operator,
    ProofError,
    federation,
    programs_missing,
    prove,
    until,
)
from tests.field.systems import clean_system

OF_TORCH = (
    "torch",
    "torchgen",
    "functorch",
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "sympy",
)
"""Seen read-only in the system, where Debian's Python looks for what others installed."""


def systems_torch() -> dict[Path, str]:
    """What of this machine a system sees, so that it has a PyTorch."""
    binds: dict[Path, str] = {}
    for name in OF_TORCH:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            binds[Path(spec.submodule_search_locations[0])] = (
                f"/usr/local/lib/python3.11/dist-packages/{name}"
            )
    return binds


def fetch_or_give_up(
    platform: Platform, python: str, wanted: list[Requirement], folder: Path
) -> list[Requirement]:
    """As a bundle's wheels are fetched, but that one failure is enough: an index that is away is away for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "1")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "15")
        if fetch_with_pip(platform, python, wanted[:1], folder):
            return wanted
    return fetch_with_pip(platform, python, wanted[1:], folder) if wanted[1:] else []


@pytest.fixture(scope="module")
def wheels() -> None:
    """Skip where neither the cache nor the network has the wheels that travel."""
    try:
        needs = [parse(line) for line in requires("fedmq") or [] if "extra" not in line]
        Gathering(PLATFORMS["x86-64"], "3.11", fetch=fetch_or_give_up).gather(needs)
    except FlashError as error:
        pytest.skip(f"wheels cannot be fetched: {error}")


@pytest.fixture(scope="module")
def made_system() -> Path:
    if os.uname().machine != "x86_64":
        pytest.skip("the quick way is for x86-64")
    if missing := programs_missing():
        pytest.skip(f"there is no {', '.join(missing)} here")
    return clean_system()


@pytest.fixture
def system(made_system: Path, wheels: None) -> Path:
    """Asks for the system first, since what misses there costs nothing to find out."""
    return made_system


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where no other user may write: sshd locks nobody in elsewhere."""
    with tempfile.TemporaryDirectory(prefix="fedmq-field-", dir="/run") as folder:
        Path(folder, "system").mkdir(mode=0o755)
        Path(folder).chmod(0o755)
        yield Path(folder, "system")


@pytest.fixture
def board(system: Path, scratch: Path) -> Iterator[Root]:
    with overlaid(system, scratch, binds=systems_torch()) as root:
        yield root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "operator").mkdir()
    return tmp_path / "operator"


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.mosquitto
def test_a_clean_system_becomes_a_device_trains_and_is_thrown_out(
    system: Path, scratch: Path, folder: Path
) -> None:
    board = Board(system, "x86-64", torch=False, binds=systems_torch())
    outcome = prove(folder, board, scratch)
    assert outcome.facts["rounds completed"] == 3
    assert outcome.facts["started again"] == "refused"
    assert outcome.facts["bundle"] < 60


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.mosquitto
def test_a_card_installs_itself_at_its_first_start(system: Path, scratch: Path, folder: Path) -> None:
    board = Board(system, "x86-64", way="sdcard", torch=False, binds=systems_torch())
    outcome = prove(folder, board, scratch, rounds=1)
    assert outcome.facts["rounds completed"] == 1


def flash(operator: Operator, sshd: Sshd, name: str) -> str:
    return operator.fedmq(
        *("device", "flash", name, "--config", "fed.toml", "--target", f"ssh:root@127.0.0.1:{sshd.port}"),
        *(
            "--ssh-config",
            str(sshd.config),
            "--without-torch",
            "--task",
            SUMS,
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.mosquitto
def test_over_ssh_the_key_is_made_on_the_board_and_stays_there(
    board: Root, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "ssh").mkdir()
    with (
        federation(folder, rounds=1, density=0.2) as operator,
        sshd_into(board, tmp_path / "ssh", chroot=True) as sshd,
    ):
        told = flash(operator, sshd, "dev-1")
        assert "it never left it" in told
        member = folder / "site" / "members" / "dev-1"
        assert {path.name for path in member.iterdir()} >= {"cert.pem", "device.toml"}
        key = board.run("cat", "/etc/fedmq/identity/key.pem").stdout
        assert key.startswith("-----BEGIN PRIVATE KEY-----")
        secret = key.splitlines()[1]
        for path in (*folder.rglob("*"), *(tmp_path / "ssh").rglob("*")):
            assert not path.is_file() or secret not in path.read_text(errors="replace"), path
        assert comes_in(board, folder, "connected to the broker")
        # Once more: the same key, and another certificate for it.
        before = (member / "cert.pem").read_bytes()
        flash(operator, sshd, "dev-1")
        assert board.run("cat", "/etc/fedmq/identity/key.pem").stdout == key
        assert (member / "cert.pem").read_bytes() != before
        assert comes_in(board, folder, "connected to the broker")
        # A board that was flashed with another identity gets what it is told now; a key that lay here opens no more.
        operator.fedmq("device", "enroll", "dev-2", "--config", "fed.toml")
        old = folder / "site" / "members" / "dev-2" / "key.pem"
        assert old.exists()
        board.run("rm", "/etc/fedmq/identity/key.pem")
        flash(operator, sshd, "dev-2")
        assert not old.exists()
        assert comes_in(board, folder, "device=dev-2 connected to the broker")
        operator.fedmq("device", "revoke", "dev-2", "--config", "fed.toml")
        with pytest.raises(ProofError, match="does not come in"):
            comes_in(board, folder, "connected to the broker", timeout_s=2)


def comes_in(board: Root, folder: Path, line: str, *, timeout_s: float = 120) -> bool:
    """Whether the device's agent says so when it is started as its unit says."""
    device = Device(board, folder)
    before = len(device.log())
    device.start()
    try:
        until(
            "it does not come in",
            lambda: line in device.log()[before:],
            timeout_s,
            tell=lambda: device.log()[before:],
        )
    finally:
        device.close()
    return True
