"""The operating system's limits against what a fleet needs."""

from __future__ import annotations

import dataclasses

import pytest

from fedmq_broker.checking import Machine, check_machine
from fedmq_broker.checking.machine import this_machine
from fedmq_broker.sizing import plan

LIMITS = plan(2_000, 300_000)
ENOUGH = Machine(
    open_files=524_288,
    somaxconn=4_096,
    conntrack=262_144,
    memory_bytes=8 * 2**30,
    file_max=9_223_372_036_854_775_807,
)


def test_a_large_machine_is_enough() -> None:
    assert list(check_machine(ENOUGH, LIMITS)) == []


def test_what_is_not_known_is_not_complained_about() -> None:
    assert list(check_machine(Machine(), LIMITS)) == []


@pytest.mark.parametrize(
    ("name", "value", "rule", "mend"),
    [
        ("open_files", 1_024, "open-files", f"LimitNOFILE={3 * 4_032 + 64}"),
        ("somaxconn", 16, "somaxconn", "net.core.somaxconn=100"),
        ("conntrack", 4_096, "nf-conntrack", f"nf_conntrack_max={4 * 4_032}"),
        ("memory_bytes", 2**29, "memory", "more memory"),
        ("file_max", 10_000, "file-max", "fs.file-max="),
    ],
)
def test_each_limit_that_is_short_is_named_with_its_mend(name: str, value: int, rule: str, mend: str) -> None:
    [finding] = check_machine(dataclasses.replace(ENOUGH, **{name: value}), LIMITS)
    assert finding.rule == rule
    assert mend in finding.mend
    assert list(
        check_machine(dataclasses.replace(ENOUGH, **{name: value}), plan(1, 1, 4_096, listeners=1))
    ) == ([finding] if rule == "somaxconn" else [])


def test_this_machine_tells_something() -> None:
    machine = this_machine()
    assert machine.memory_bytes is None or machine.memory_bytes > 2**27
    assert machine.open_files is None or machine.open_files > 0
