"""Into images that the test makes; what came of it is read back by the file systems' own tools."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.filesystems import Ext
from fedmq_edge_agent.flashing.network import Wifi
from fedmq_edge_agent.flashing.partitions import read_partitions
from fedmq_edge_agent.flashing.sdcard import FIRST_BOOT, Card, check_target, customise, open_card
from tests.edge_agent.flashing.images import MB, make_image, make_root

BOOT = {"config.txt": "arm_64bit=1\n", "cmdline.txt": "console=tty1 root=PARTUUID=1 rootwait\n"}
WANTED = "/etc/systemd/system/multi-user.target.wants/fedmq-firstboot.service"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "a bundle.run"
    path.write_bytes(os.urandom(3 * MB + 17))
    path.chmod(0o600)
    return path


def raspberry(tmp_path: Path, files: Mapping[str, bytes | str] | None = None, **options: object) -> Path:
    files = {"etc/NetworkManager/NetworkManager.conf": "", **(files or {})}
    root = make_root(tmp_path / "tree", files)
    return make_image(tmp_path / "card.img", root, boot=BOOT, **options)  # type: ignore[arg-type]


def root_of(card: Card) -> Ext:
    ext = next(one for one in read_partitions(card.path) if one.kind == "ext")
    return Ext(card.path, ext)


def test_an_image_is_known(tmp_path: Path) -> None:
    card = open_card(raspberry(tmp_path))
    assert card.system == "Raspberry Pi OS (of a test)"
    assert (card.platform.arch, card.python) == ("arm64", "3.11")
    assert card.boot is not None
    assert 10 * MB < card.free_bytes < 24 * MB


def test_a_debian_image_with_gpt_and_no_boot_partition_is_known_too(tmp_path: Path) -> None:
    image = make_image(tmp_path / "debian.raw", make_root(tmp_path / "tree"), gpt=True)
    assert [(one.number, one.kind) for one in read_partitions(image)] == [(1, "ext")]
    card = open_card(image)
    assert card.boot is None
    assert card.platform.arch == "arm64"


def test_the_table_is_read_as_another_program_reads_it(tmp_path: Path) -> None:
    program = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        pytest.skip("there is no sfdisk here (apt-get install fdisk)")
    tree = make_root(tmp_path / "tree")
    for gpt in (False, True):
        image = make_image(tmp_path / f"{gpt}.img", tree, boot=BOOT, gpt=gpt)
        shown = json.loads(subprocess.run([program, "-J", image], capture_output=True, check=True).stdout)
        theirs = [(512 * one["start"], 512 * one["size"]) for one in shown["partitiontable"]["partitions"]]
        assert [(one.offset, one.size) for one in read_partitions(image)] == theirs


@given(
    noise=st.binary(max_size=200),
    at=st.sampled_from([0, 446, 450, 454, 510, 512, 584, 592, 1024, 1056]),
    count=st.integers(1, 4),
)
@example(noise=bytes(15) + b"\1" + bytes(16) + b"\1", at=1024, count=1)  # ends before it begins
def test_nonsense_is_no_image(noise: bytes, at: int, count: int) -> None:
    disk = bytearray(4096)
    disk[446:462] = bytes([0, 0, 0, 0, 0xEE, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255])
    disk[510:512] = b"\x55\xaa"
    disk[512:520] = b"EFI PART"
    disk[584:600] = struct.pack("<QII", 2, count, 128)
    disk[at : at + len(noise)] = noise
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disk.img"
        path.write_bytes(disk)
        with contextlib.suppress(FlashError):
            assert all(one.offset >= 0 and one.size > 0 for one in read_partitions(path))
            open_card(path)


def test_what_goes_into_a_raspberry_pis_image(tmp_path: Path, bundle: Path) -> None:
    card = open_card(raspberry(tmp_path))
    told = dict(customise(card, bundle, wifi=Wifi("Zu Hause", "geheim: 'es\"geht", "DE"), hostname="dev-1"))
    assert set(told) == {"bundle", "host name", "Wi-Fi"}
    assert "geheim" not in str(told)
    root = root_of(card)
    assert root.read(FIRST_BOOT) == bundle.read_bytes()
    entry = root.entry(FIRST_BOOT)
    assert entry is not None
    assert (entry.mode, entry.owner) == (0o100600, (0, 0))
    assert root.read("/etc/hostname") == b"dev-1\n"
    assert root.read("/etc/hosts") == b"127.0.0.1\tlocalhost\n127.0.1.1\tdev-1\n"
    keyfile = "/etc/NetworkManager/system-connections/fedmq-wifi.nmconnection"
    text = (root.read(keyfile) or b"").decode()
    assert "ssid=Zu Hause\n" in text
    assert "psk=geheim: 'es\"geht\n" in text
    entry = root.entry(keyfile)
    assert entry is not None
    assert (entry.mode, entry.owner) == (0o100600, (0, 0))
    link = root.entry(WANTED)
    assert link is not None
    assert link.mode & 0o170000 == 0o120000
    assert b"firstboot.run" in (root.read(WANTED) or b"")
    assert card.boot is not None
    line = (card.boot.read("cmdline.txt") or b"").decode()
    assert line == "console=tty1 root=PARTUUID=1 rootwait cfg80211.ieee80211_regdom=DE\n"
    assert not (tmp_path / "card.img.flashing").exists()


def test_twice_is_as_once(tmp_path: Path, bundle: Path) -> None:
    image = raspberry(tmp_path)
    customise(open_card(image), bundle, hostname="dev-1")
    free = open_card(image).free_bytes
    bundle.write_bytes(bundle.read_bytes()[::-1])
    customise(open_card(image), bundle, hostname="dev-1")
    card = open_card(image)
    assert card.free_bytes == free
    assert root_of(card).read(FIRST_BOOT) == bundle.read_bytes()
    root_of(card).check()


def test_cloud_init_is_told_on_the_boot_partition(tmp_path: Path, bundle: Path) -> None:
    root = make_root(tmp_path / "tree", {"etc/cloud/cloud.cfg": ""})
    card = open_card(make_image(tmp_path / "card.img", root, boot=BOOT))
    customise(card, bundle, wifi=Wifi("net", "12345678", "GB"), hostname="dev-1")
    assert card.boot is not None
    config = json.loads(card.boot.read("network-config") or b"")
    assert config["wifis"]["wlan0"]["access-points"] == {"net": {"password": "12345678"}}
    assert config["wifis"]["wlan0"]["regulatory-domain"] == "GB"
    assert root_of(card).read("/etc/cloud/cloud.cfg.d/99-fedmq.cfg") == b"preserve_hostname: true\n"


def test_what_is_refused(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(FlashError, match="no table of partitions"):
        open_card(bundle)
    with pytest.raises(FlashError, match="cannot read"):
        check_target(tmp_path / "nothing.img", yes=False)
    with pytest.raises(FlashError, match="neither an image nor a disk"):
        check_target(Path("/dev/null"), yes=True)
    fedora = make_root(tmp_path / "fedora", {"usr/lib/os-release": 'PRETTY_NAME="Fedora 44"\nID=fedora\n'})
    with pytest.raises(FlashError, match="Fedora 44, and cards are made with Debian"):
        open_card(make_image(tmp_path / "fedora.img", fedora))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FlashError, match="holds no Debian"):
        open_card(make_image(tmp_path / "empty.img", empty))
    old = make_root(tmp_path / "old")
    (old / "usr/bin/python3.11").rename(old / "usr/bin/python3.9")
    with pytest.raises(FlashError, match="no python3 of"):
        open_card(make_image(tmp_path / "old.img", old))
    plain = open_card(make_image(tmp_path / "plain.img", make_root(tmp_path / "plain")))
    with pytest.raises(FlashError, match="nobody knows how to tell it of a Wi-Fi"):
        customise(plain, bundle, wifi=Wifi("net", "12345678"))
    bundle.write_bytes(bytes(20 * MB))
    with pytest.raises(FlashError, match="make the image larger"):
        customise(plain, bundle)


def test_a_disk_is_not_taken_for_an_image() -> None:
    mounted = [line.split()[0] for line in Path("/proc/mounts").read_text().splitlines()]
    disks = [name for name in mounted if name.startswith("/dev/") and Path(name).is_block_device()]
    if not disks:
        pytest.skip("no disk is mounted here")
    with pytest.raises(FlashError, match="is mounted at"):
        check_target(Path(disks[0]), yes=True)


@pytest.mark.parametrize(
    "wifi", [("", "12345678"), ("x" * 33, None), ("net", "short"), ("net", "x" * 64), ("a\nb", None)]
)
def test_what_is_no_wifi_is_refused(wifi: tuple[str, str | None]) -> None:
    with pytest.raises(FlashError, match="Wi-Fi"):
        Wifi(*wifi)


CUT = """
import sys
from pathlib import Path
from fedmq_edge_agent.flashing import filesystems, sdcard
run = filesystems._run
def cut(command, data=b""):
    if command[:2] == ["debugfs", "-w"]:
        import os, signal, subprocess, time
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(sys.argv[3]))
        process.kill()
        process.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return run(command, data)
filesystems._run = cut
sdcard.customise(sdcard.open_card(Path(sys.argv[1])), Path(sys.argv[2]), hostname="dev-1")
"""


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03])
def test_killed_while_it_writes_and_flashed_again(tmp_path: Path, bundle: Path, after_s: float) -> None:
    image = raspberry(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(image), str(bundle), str(after_s)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (tmp_path / "card.img.flashing").exists()
    card = open_card(image)
    customise(card, bundle, hostname="dev-1")
    root = root_of(card)
    root.check()
    assert root.read(FIRST_BOOT) == bundle.read_bytes()
    assert root.read("/etc/hostname") == b"dev-1\n"
    assert not (tmp_path / "card.img.flashing").exists()


def test_the_unit_is_one(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze here")
    unit = Path(sys.modules[Ext.__module__].__file__ or "").with_name("fedmq-firstboot.service")
    done = subprocess.run([program, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if re.search(r"firstboot\.service:\d+", line)], (
        done.stderr
    )
