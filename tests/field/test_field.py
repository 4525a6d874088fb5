"""A clean system becomes a device, trains over mutual TLS, and is thrown out: the whole way, each time on x86-64.

So that it stays quick, PyTorch does not travel: the system has this machine's, as a board may have its own. All else
comes out of the bundle. `python -m tests.field` goes the long way, PyTorch included, on either architecture.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge_agent.flashing.roots import Root, overlaid
from tests.field.proof import programs_missing, prove
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


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Root]:
    if os.uname().machine != "x86_64":
        pytest.skip("the quick way is for x86-64")
    if missing := programs_missing():
        pytest.skip(f"there is no {', '.join(missing)} here")
    lower = clean_system()
    binds: dict[Path, str] = {}
    for name in OF_TORCH:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            binds[Path(spec.submodule_search_locations[0])] = (
                f"/usr/local/lib/python3.11/dist-packages/{name}"
            )
    (tmp_path / "system").mkdir()
    with overlaid(lower, tmp_path / "system", binds=binds) as root:
        yield root


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.mosquitto
def test_a_clean_system_becomes_a_device_trains_and_is_thrown_out(board: Root, tmp_path: Path) -> None:
    folder = tmp_path / "operator"
    folder.mkdir()
    outcome = prove(folder, board, arch="x86-64", torch=False)
    assert outcome.facts["rounds completed"] == 3
    assert outcome.facts["started again"] == "refused"
    assert outcome.facts["bundle"] < 60
