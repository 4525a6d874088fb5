"""Running checks in order: each within its time, none that stands on one that failed, and none that ends the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from fedmq_edge_agent.examining.findings import Finding, failed, skipped
from fedmq_protocol.errors import FedmqError

Given = ParamSpec("Given")
Result = TypeVar("Result")
Patient = TypeVar("Patient")


@dataclass(frozen=True)
class Check(Generic[Patient]):
    """One look at something.

    Attributes:
        name: of the finding.
        look: takes the look.
        needs: checks without which this one makes no sense: where one failed or was skipped, this is skipped.
        limit_s: longer than that is a failure by itself; or what gives the limit, where settings decide.
    """

    name: str
    look: Callable[[Patient], Awaitable[Finding]]
    needs: tuple[str, ...] = ()
    limit_s: float = 5.0


async def examine(
    checks: Sequence[Check[Patient]], patient: Patient, *, begun: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Finding]:
    """Take the looks one after the other, and say what each found as soon as it has.

    Args:
        checks: in an order in which none comes before what it needs.
        patient: what they look at.
        begun: told the name of each check that is begun.
    """
    usable: set[str] = set()
    for check in checks:
        since = time.monotonic()
        hindrance = next((name for name in check.needs if name not in usable), None)
        if hindrance is not None:
            finding = skipped(f"needs {hindrance}")
        else:
            begun(check.name)
            finding = await _within(check, patient)
            if finding.level in {"ok", "warning"}:
                usable.add(check.name)
        yield finding.named(check.name, time.monotonic() - since)


async def _within(check: Check[Patient], patient: Patient) -> Finding:
    try:
        async with asyncio.timeout(check.limit_s):
            return await check.look(patient)
    except TimeoutError:
        found = f"took longer than {check.limit_s:g} s"
        return failed(found, "try again on a quieter machine or network; if it stays, look at what hangs")
    except FedmqError as error:
        return failed(str(error), "")
    except Exception as error:  # noqa: BLE001 - a doctor that falls over helps nobody
        found = f"this should not have happened: {type(error).__name__}: {error}"
        return failed(found, "report it, with the output of --json")


async def in_thread(work: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Result:
    """What may hang in the system, in a thread that nobody waits for at the end: a name server, a dying disk.

    Raises:
        Exception: what `work` raised.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None where that is the result

    def run() -> None:
        try:
            result = work(*given, **named)
        except BaseException as error:  # noqa: BLE001 - the caller's
            outcome: tuple[Result | None, BaseException | None] = (None, error)
        else:
            outcome = (result, None)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="examining", daemon=True).start()
    return await done
