"""The installer in a real system: this machine's own, seen through an overlay, with small wheels.

What stands in for a power cut is a kill of the whole installation between any two of its commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq_edge_agent.flashing import bundle, own, settings
from tests.edge_agent.flashing.boards import fetch_stand_ins
from tests.edge_agent.flashing.roots import Root, modes, overlaid, require_root
from tests.edge_agent.flashing.test_settings import write_member

PYTHON = Path("/usr/bin/python3")
INSTALLED = ("/opt/fedmq", "/etc/fedmq", "/var/lib/fedmq", "/etc/systemd/system", "/var/tmp")
SHIMMED = (
    *("chmod", "chown", "groupadd", "ln", "mkdir", "mv", "readlink", "rm", "sync", "tar", "useradd"),
    *("cat", "head", "python3"),
)


def system_python() -> str:
    """The version of the Python that Debian's root has, as in "3.11"; skips where there is none that will do."""
    if not PYTHON.exists():
        pytest.skip("this machine has no Python of the system's own")
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run(
        [PYTHON, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    if version not in ("3.11", "3.12", "3.13"):
        pytest.skip(f"the system's own Python is {version}")
    return version


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bundle.Bundle:
    """A bundle for this machine, small: of our own code the protocol alone, and stand-ins for what others made."""
    monkeypatch.setattr(own, "PACKAGES", ("fedmq_protocol",))
    return make_bundle(tmp_path)


def make_bundle(tmp_path: Path, *, arch: str | None = None, python: str | None = None) -> bundle.Bundle:
    member_folder = tmp_path / "site" / "members" / "dev-1"
    if not member_folder.exists():
        (tmp_path / "sums.py").write_text("task = 'none yet'\n")
        write_member(tmp_path, task="../../../sums.py")
    member = settings.read_member(member_folder, "dev-1")
    arch = arch or {"x86_64": "x86-64", "aarch64": "arm64"}[_machine()]
    plan = bundle.plan(member, arch, python or system_python(), torch=False)
    path = tmp_path / f"{arch}-{plan.python}.run"
    return bundle.write(plan, path, cache=tmp_path / "cache" / arch, fetch=fetch_stand_ins)


def _machine() -> str:
    return os.uname().machine


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    require_root()
    (tmp_path / "overlay").mkdir()
    with overlaid(Path("/"), tmp_path / "overlay") as system:
        system.run("rm", "-rf", "/var/tmp")
        system.run("mkdir", "-m", "1777", "/var/tmp")
        yield system


def install(
    root: Root, made: bundle.Bundle, *options: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Copy the bundle into that system, and run it there."""
    root.write("/srv/bundle.run", made.path.read_bytes(), mode=0o600)
    return root.run("env", "SYSTEMD_OFFLINE=1", "sh", "/srv/bundle.run", *options, check=check)


def test_what_lies_where_and_who_may_read_it(root: Root, make: bundle.Bundle) -> None:
    told = install(root, make).stdout
    assert "starts with this system" in told or "there is no systemd here" in told
    tree = root.tree(*INSTALLED)
    assert modes(
        tree,
        [
            *("/etc/fedmq", "/etc/fedmq/device.toml", "/etc/fedmq/identity", "/etc/fedmq/identity/key.pem"),
            *("/opt/fedmq/bin/fedmq", f"/opt/fedmq/releases/{make.release}", "/var/lib/fedmq"),
        ],
    ) == {
        "/etc/fedmq": "drwxr-x--- root:fedmq",
        "/etc/fedmq/device.toml": "-rw-r----- root:fedmq",
        "/etc/fedmq/identity": "drwxr-x--- root:fedmq",
        "/etc/fedmq/identity/key.pem": "-rw-r----- root:fedmq",
        "/opt/fedmq/bin/fedmq": "-rwxr-xr-x root:root",
        f"/opt/fedmq/releases/{make.release}": "drwxr-xr-x root:root",
        "/var/lib/fedmq": "drwxr-x--- fedmq:fedmq",
    }
    assert f"/opt/fedmq/current releases/{make.release}" in tree
    assert "multi-user.target.wants/fedmq-agent.service /etc/systemd/system/fedmq-agent.service" in tree
    assert ".incoming" not in tree
    assert "/var/tmp/" not in tree
    key = root.run("cat", "/etc/fedmq/identity/key.pem", user="fedmq")
    assert key.stdout == "the key"
    assert root.run("cat", "/etc/fedmq/identity/key.pem", user="nobody:nogroup", check=False).returncode != 0
    assert root.run("touch", "/etc/fedmq/identity/key.pem", user="fedmq", check=False).returncode != 0
    # What was installed is what is imported, and it was compiled then.
    where = root.run("cat", "/opt/fedmq/bin/fedmq").stdout
    assert f"exec {PYTHON}" in where
    code = "import fedmq_protocol.topics as t; print(t.__file__, t.__cached__)"
    library = f"/opt/fedmq/releases/{make.release}/lib"
    shown = root.run("env", f"PYTHONPATH={library}", str(PYTHON), "-c", code, user="fedmq").stdout.split()
    assert shown[0].startswith(library)
    root.run("test", "-f", shown[1])


def test_where_systemd_runs_it_is_asked_to_start_the_agent(root: Root, make: bundle.Bundle) -> None:
    """There is no systemd to run here; what stands in for it writes down what it is asked."""
    root.run("mkdir", "-p", "/run/systemd/system")
    root.write("/usr/local/bin/systemctl", b'#!/bin/sh\necho "$*" >>/srv/asked\n', mode=0o755)
    root.write("/srv/bundle.run", make.path.read_bytes(), mode=0o600)
    assert "agent:    started" in root.run("sh", "/srv/bundle.run").stdout
    assert "not started, as asked" in root.run("sh", "/srv/bundle.run", "--no-start").stdout
    root.run("sh", "/srv/bundle.run", "--uninstall")
    assert root.run("cat", "/srv/asked").stdout.splitlines() == [
        "daemon-reload",
        "restart --no-block fedmq-agent.service",
        "disable --now fedmq-agent.service",
        "daemon-reload",
    ]


def test_twice_is_as_once(root: Root, make: bundle.Bundle) -> None:
    install(root, make)
    once = root.tree(*INSTALLED)
    assert "here already" in install(root, make).stdout
    assert root.tree(*INSTALLED) == once


def test_what_changed_on_the_device_is_kept_beside(root: Root, make: bundle.Bundle) -> None:
    install(root, make)
    root.run("sh", "-c", "echo '# mine' >>/etc/fedmq/device.toml")
    assert "device.toml.old" in install(root, make).stdout
    assert root.run("tail", "-n", "1", "/etc/fedmq/device.toml.old").stdout == "# mine\n"
    assert "# mine" not in root.run("cat", "/etc/fedmq/device.toml").stdout


def test_an_upgrade_keeps_the_release_before_and_no_older(
    root: Root, make: bundle.Bundle, tmp_path: Path
) -> None:
    install(root, make)
    releases = [make.release]
    for number in range(2):
        (tmp_path / "sums.py").write_text(f"task = {number}\n")
        newer = make_bundle(tmp_path)
        install(root, newer)
        releases.append(newer.release)
    assert len(set(releases)) == 3
    kept = root.run("ls", "/opt/fedmq/releases").stdout.split()
    assert sorted(kept) == sorted(releases[1:])
    assert root.run("readlink", "/opt/fedmq/current").stdout.strip() == f"releases/{releases[2]}"
    assert root.run("cat", "/opt/fedmq/current/task/sums.py").stdout == "task = 1\n"


def test_uninstall_undoes_and_keeps_what_was_learned(root: Root, make: bundle.Bundle) -> None:
    before = root.tree(*INSTALLED)
    users = root.run("cat", "/etc/passwd", "/etc/group").stdout
    install(root, make)
    root.run("touch", "/var/lib/fedmq/residual", user="fedmq")
    assert "kept /var/lib/fedmq" in install(root, make, "--uninstall").stdout
    after = root.tree(*INSTALLED)
    assert "/var/lib/fedmq/residual" in after
    assert "/opt/fedmq" not in after
    assert "/etc/fedmq" not in after
    install(root, make)
    install(root, make, "--uninstall", "--purge")
    links = {"/etc/systemd/system/multi-user.target.wants"}
    assert [line for line in root.tree(*INSTALLED).splitlines() if not links & set(line.split())] == [
        line for line in before.splitlines() if not links & set(line.split())
    ]
    assert root.run("cat", "/etc/passwd", "/etc/group").stdout == users
    assert install(root, make, "--uninstall", "--purge").returncode == 0


def refused(root: Root, made: bundle.Bundle, *options: str) -> str:
    """What the installer says where it refuses; it must not have changed anything."""
    before = root.tree(*INSTALLED)
    done = install(root, made, *options, check=False)
    assert done.returncode == 1
    assert root.tree(*INSTALLED) == before
    assert done.stderr.startswith("cannot install: ")
    return done.stderr


def test_another_board_is_refused_before_anything_is_changed(
    root: Root, make: bundle.Bundle, tmp_path: Path
) -> None:
    other = "x86-64" if _machine() == "aarch64" else "arm64"
    assert f"this bundle is for {other}" in refused(root, make_bundle(tmp_path, arch=other))
    version = "3.13" if system_python() != "3.13" else "3.12"
    told = refused(root, make_bundle(tmp_path, python=version))
    assert f"this bundle is for Python {version}, and here is {system_python()}" in told


def test_a_damaged_file_is_refused(root: Root, make: bundle.Bundle) -> None:
    content = bytearray(make.path.read_bytes())
    content[-5000] ^= 1
    make.path.write_bytes(content)
    assert "is damaged" in refused(root, make)
    make.path.write_bytes(content[:-20_000])
    assert "is damaged" in refused(root, make)


def test_another_root_is_left_alone_where_it_is_none_or_the_file_is_damaged(
    root: Root, make: bundle.Bundle, tmp_path: Path
) -> None:
    def told(path: Path) -> str:
        done = subprocess.run(
            root.outside("sh", str(make.path), "--root", str(path)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        return done.stderr

    empty = tmp_path / "empty"
    empty.mkdir()
    assert told(empty) == f"cannot install: no system lies in {empty}: it has no /bin/sh\n"
    make.path.write_bytes(make.path.read_bytes()[:-5000])
    before = root.tree(*INSTALLED)
    assert told(root.path) == f"cannot install: {make.path} is damaged: copy it again\n"
    assert root.tree(*INSTALLED) == before


def test_a_full_disk_is_refused(root: Root, make: bundle.Bundle) -> None:
    root.run("mkdir", "-p", "/opt/fedmq")
    subprocess.run(
        root.outside("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", f"{root.path}/opt/fedmq"), check=True
    )
    assert "MB below /opt/fedmq, and 0 MB are free" in refused(root, make)


def test_nobody_but_root_installs(root: Root, make: bundle.Bundle) -> None:
    root.write("/srv/bundle.run", make.path.read_bytes())
    done = root.run("sh", "/srv/bundle.run", user="nobody:nogroup", check=False)
    assert "only root can" in done.stderr
    told = root.run("sh", "/srv/bundle.run", "--check", user="nobody:nogroup").stdout
    assert told.startswith("dev-1 can be installed here")


def test_what_others_left_where_root_stands_is_not_run(root: Root, make: bundle.Bundle) -> None:
    root.write("/srv/bundle.run", make.path.read_bytes(), mode=0o600)
    for name in ("struct", "tarfile", "zipfile", "compileall", "asyncio"):
        root.write(f"/var/tmp/{name}.py", b"open('/srv/strangers-were-here', 'w')\n")
    root.run("sh", "-c", "cd /var/tmp && SYSTEMD_OFFLINE=1 exec sh /srv/bundle.run")
    assert "strangers-were-here" not in root.tree("/srv")


def test_into_a_root_in_a_folder(root: Root, make: bundle.Bundle) -> None:
    done = subprocess.run(
        root.outside("sh", str(make.path), "--root", str(root.path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"installing dev-1 in {root.path}" in done.stdout
    tree = root.tree(*INSTALLED)
    assert f"/opt/fedmq/current releases/{make.release}" in tree
    assert "/var/tmp/" not in tree
    subprocess.run(
        root.outside("sh", str(make.path), "--root", str(root.path), "--uninstall", "--purge"), check=True
    )
    assert "/opt/fedmq" not in root.tree(*INSTALLED)


SHIM = """#!/bin/sh
count=$(($(/bin/cat /srv/count 2>/dev/null || echo 0) + 1))
echo $count >/srv/count
[ $count -ne {at} ] || kill -9 0
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec {name} "$@"
"""


EVERY = int(os.environ.get("KILLS_EVERY", "8"))
"""Kills at each so-many-th command; 1 takes a minute and more."""


def test_killed_anywhere_and_run_again_it_completes(root: Root, make: bundle.Bundle) -> None:
    install(root, make)
    whole = root.tree(*INSTALLED)
    shims = [f"/usr/local/bin/{name}" for name in SHIMMED]
    at, kills = 1, 0
    while True:
        install(root, make, "--uninstall", "--purge")
        for name, path in zip(SHIMMED, shims, strict=True):
            root.write(path, SHIM.format(at=at, name=name).encode(), mode=0o755)
        done = install(root, make, check=False)
        root.run("/bin/rm", "-f", "/srv/count", *shims)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        kills += 1
        # What is not there yet is missing as a whole: whoever starts the agent now gets a release, or none.
        if root.run("test", "-e", "/opt/fedmq/current", check=False).returncode == 0:
            root.run("test", "-f", "/opt/fedmq/current/manifest")
        install(root, make)
        assert root.tree(*INSTALLED) == whole, f"after a kill at command {at}"
        assert root.run("cat", "/etc/passwd", "/etc/group").stdout.count("\nfedmq:") == 2
        at += EVERY
    assert kills > 3


def test_the_installer_is_plain_shell() -> None:
    """Each shell that is here reads it; dash is Debian's."""
    text = Path(sys.modules[bundle.__name__].__file__ or "").with_name("install.sh")
    for shell in ("/bin/dash", "/bin/bash", "/usr/bin/busybox"):
        if Path(shell).exists():
            command = [shell, "sh", "-n"] if shell.endswith("busybox") else [shell, "-n"]
            subprocess.run([*command, str(text)], check=True)
