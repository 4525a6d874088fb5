"""Which wheels a board needs, where they come from, and what is said where there are none."""

from __future__ import annotations

import os
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement as TheirRequirement
from packaging.utils import parse_wheel_filename

from fedmq_broker.probe import find_free_port
from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.platforms import PLATFORMS, PYTHONS, of_machine
from fedmq_edge_agent.flashing.requirements import parse
from fedmq_edge_agent.flashing.wheels import Gathering, Wheel, pins
from tests.edge_agent.flashing.boards import Index, make_wheel

ARM = PLATFORMS["arm64"]


def gathering(tmp_path: Path, index: Index, arch: str = "arm64", python: str = "3.11") -> Gathering:
    return Gathering(PLATFORMS[arch], python, tmp_path, fetch=index)


def test_what_wheels_need_is_followed_for_the_board_and_not_for_this_machine(tmp_path: Path) -> None:
    index = Index(
        {
            "a": ("1.0", ["b>=2", "c; platform_machine == 'x86_64'", "d; extra == 'more'"]),
            "b": ("2.1", ["e; python_version >= '3.12'"]),
            "c": ("1.0", []),
            "d": ("1.0", []),
            "e": ("1.0", []),
        }
    )
    assert [w.name for w in gathering(tmp_path, index).gather([parse("a")])] == ["a", "b"]
    assert [w.name for w in gathering(tmp_path, index, python="3.12").gather([parse("a")])] == ["a", "b", "e"]
    assert [w.name for w in gathering(tmp_path, index, "x86-64").gather([parse("a")])] == ["a", "b", "c"]
    assert [w.name for w in gathering(tmp_path, index).gather([parse("a[more]")])] == ["a", "b", "d"]


def test_wheels_are_fetched_once(tmp_path: Path) -> None:
    index = Index({"a": ("1.0", ["b"]), "b": ("1.0", ["a"])})
    gathering(tmp_path, index).gather([parse("a")])
    assert index.asked == ["a", "b"]
    again = Index({})
    assert len(gathering(tmp_path, again).gather([parse("a")])) == 2
    assert again.asked == []


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    index = Index({"a": ("1.0", ["gone>=3", "b", "lost"]), "b": ("1.0", [])})
    with pytest.raises(FlashError, match=r"no wheels for armhf and Python 3\.11 of gone>=3, lost;"):
        gathering(tmp_path, index, "armhf").gather([parse("a")])


def test_an_index_that_is_not_reached_is_not_one_without_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{find_free_port('127.0.0.1')}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    with pytest.raises(FlashError, match=r"does not reach an index that it looks into for msgpack"):
        Gathering(PLATFORMS["arm64"], "3.11", tmp_path).gather([parse("msgpack>=1")])


def test_versions_that_clash_are_refused(tmp_path: Path) -> None:
    index = Index({"a": ("1.0", ["b<2", "c"]), "b": ("1.9", []), "c": ("1.0", ["b>=2"])})
    with pytest.raises(FlashError, match=r"c needs b>=2, and 1\.9 is what there is"):
        gathering(tmp_path, index).gather([parse("a")])


def test_pytorch_that_drags_cuda_along_is_refused(tmp_path: Path) -> None:
    index = Index({"torch": ("2.10.0", ["nvidia-cublas; platform_system == 'Linux'", "triton"])})
    with pytest.raises(FlashError, match="CPU-only"):
        gathering(tmp_path, index).gather([parse("torch>=2.4")])
    assert not any(name.startswith("nvidia") for name in index.asked)


def test_a_version_that_the_task_asks_for_goes_before_ours(tmp_path: Path) -> None:
    index = Index({"numpy": ("2.1.0", [])})
    found = gathering(tmp_path, index).gather([parse("numpy>=1.26")], [parse("numpy==2.1.0")])
    assert [wheel.version for wheel in found] == ["2.1.0"]
    assert index.asked == ["numpy==2.1.0"]


def test_names_of_wheels_are_read_as_packaging_reads_them(tmp_path: Path) -> None:
    for name, version, tag in (
        ("typing-extensions", "4.16.0", "py3-none-any"),
        ("torch", "2.13.0+cpu", "cp311-cp311-manylinux_2_28_x86_64"),
        ("x", "1", "1-py3-none-any"),
    ):
        path = make_wheel(tmp_path, name, version, tag=tag)
        theirs = parse_wheel_filename(path.name)
        assert (Wheel(path).name, Wheel(path).version) == (theirs[0], str(theirs[1]))


@pytest.mark.parametrize("arch", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_one_version_of_each_is_pinned_and_it_satisfies_what_we_require(arch: str, python: str) -> None:
    pinned = pins(PLATFORMS[arch], python)
    assert all(specifier.startswith("==") for specifier in pinned.values())
    ours = [TheirRequirement(line) for line in requires("fedmq") or []]
    base = [one for one in ours if one.marker is None or "trainer" in str(one.marker)]
    for one in base:
        if one.name != "torch" or arch != "armhf":
            assert one.specifier.contains(pinned[one.name].removeprefix("==")), one


def test_a_board_says_what_it_is() -> None:
    assert of_machine("aarch64", 64).arch == "arm64"
    assert of_machine("aarch64", 32).arch == "armhf"  # a 64-bit kernel under a 32-bit system
    assert of_machine("x86_64", 64).arch == "x86-64"
    with pytest.raises(FlashError, match="riscv64"):
        of_machine("riscv64", 64)
