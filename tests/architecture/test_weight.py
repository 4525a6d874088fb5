"""What a process carries. import-linter reads our imports; only running them shows what a library brings along."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedmq_protocol.ed25519 import OpenSSL, library

SHOW = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for inner in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
        importlib.import_module(inner.name)
print(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(*modules: str) -> set[str]:
    """The top-level modules that a new interpreter has loaded after importing `modules` and all that is in them."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *modules], capture_output=True, text=True, check=True, timeout=110
    )
    return set(done.stdout.split())


def test_a_supervisor_carries_neither_pytorch_nor_numpy_nor_a_server() -> None:
    loaded = loaded_by("fedmq_edge_agent.core", "fedmq_edge_agent.shell", "fedmq.commands.agent")
    assert "paho" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "fastapi", "sqlalchemy", "sklearn", "matplotlib", "rich"})
    assert "cryptography" not in loaded or not isinstance(library(), OpenSSL)


def test_the_coordinator_carries_no_pytorch() -> None:
    loaded = loaded_by("fedmq_coordinator", "fedmq.commands.coordinator")
    assert "numpy" in loaded
    assert loaded.isdisjoint({"torch", "sklearn", "matplotlib"})


@pytest.mark.parametrize("core", ["fedmq_coordinator.core", "fedmq_edge_agent.core"])
def test_a_core_brings_no_network_and_no_store(core: str) -> None:
    assert loaded_by(core).isdisjoint({"paho", "sqlalchemy", "sqlite3", "fastapi", "httpx", "torch"})


def test_the_command_itself_is_light() -> None:
    """`fedmq --help` answers at once, also on a board."""
    assert loaded_by("fedmq.cli").isdisjoint(
        {"torch", "numpy", "pydantic", "paho", "fastapi", "sqlalchemy", "rich"}
    )
