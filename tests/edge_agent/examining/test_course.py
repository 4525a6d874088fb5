"""The order of checks: what is skipped and why, and that none ends the others."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fedmq_edge_agent.examining.checks import CHECKS
from fedmq_edge_agent.examining.course import Check, examine, in_thread
from fedmq_edge_agent.examining.findings import (
    Finding,
    Level,
    exit_code,
    failed,
    fine,
    plain,
    skipped,
    warning,
    worst,
)
from fedmq_protocol.errors import StoreError


async def say(finding: Finding) -> Finding:
    return finding


async def hang(_: Finding) -> Finding:
    await asyncio.Event().wait()
    raise AssertionError


async def refuse(_: Finding) -> Finding:
    raise StoreError("damaged; remove it")


async def fall_over(_: Finding) -> Finding:
    raise ZeroDivisionError("by zero")


async def test_what_stands_on_a_failure_is_skipped() -> None:
    async def broken(_: Finding) -> Finding:
        return failed("gone", "mend it")

    async def uneasy(_: Finding) -> Finding:
        return warning("old", "renew it")

    checks = [
        Check("a", broken),
        Check("b", say, needs=("a",)),
        Check("c", say, needs=("b",)),
        Check("d", uneasy),
        Check("e", say, needs=("d",)),
        Check("f", hang, limit_s=0.01),
        Check("g", refuse),
        Check("h", fall_over),
        Check("i", say),
    ]
    found = [finding async for finding in examine(checks, fine("well"))]
    assert [(one.name, one.level) for one in found] == [
        ("a", "failed"),
        ("b", "skipped"),
        ("c", "skipped"),
        ("d", "warning"),
        ("e", "ok"),
        ("f", "failed"),
        ("g", "failed"),
        ("h", "failed"),
        ("i", "ok"),
    ]
    assert found[1].found == "needs a"
    assert found[2].found == "needs b"
    assert "0.01 s" in found[5].found
    assert found[6].found == "damaged; remove it"
    assert "ZeroDivisionError" in found[7].found


@pytest.mark.parametrize(
    ("levels", "verdict", "code"),
    [
        ([], "ok", 0),
        (["ok", "skipped"], "ok", 0),
        (["skipped"], "ok", 0),
        (["ok", "warning"], "warning", 3),
        (["warning", "failed", "ok"], "failed", 1),
    ],
)
def test_the_verdict_is_the_gravest(levels: list[Level], verdict: str, code: int) -> None:
    findings = [Finding("x", level, "") for level in levels]
    assert plain(findings, device="dev-1")["verdict"] == verdict
    assert plain(findings, device="dev-1")["device"] == "dev-1"
    assert exit_code(findings) == code
    assert worst([skipped("")]) in {"ok", "skipped"}


def test_every_check_stands_on_earlier_ones() -> None:
    names: list[str] = []
    for check in CHECKS:
        assert set(check.needs) <= set(names), check.name
        names.append(check.name)
    assert len(set(names)) == len(names)


async def test_a_thread_that_hangs_holds_nobody_up() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_thread(release.wait)
    release.set()
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)
