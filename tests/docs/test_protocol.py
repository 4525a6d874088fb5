"""docs/protocol.md says of each message what the code does: fields, types, bounds, defaults, limits, topics."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from fedmq_coordinator.core import conversation, dedupe, progress, uploads
from fedmq_edge_agent.core import contact, download, following, outbox
from fedmq_protocol import limits, messages, replays
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.messages import KINDS
from tests.docs.message_tables import Row, rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
PARTS: dict[str, type[BaseModel]] = {
    name: model
    for name, model in vars(messages).items()
    if isinstance(model, type)
    and issubclass(model, messages.Body)
    and model is not messages.Body
    and model not in KINDS.values()
}
DESCRIBED = {**KINDS, **PARTS}


def section(title: str) -> str:
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,4}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/protocol.md has no section {title!r}"
    return found[2]


def table(text: str) -> list[list[str]]:
    """The cells of a section's first table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("title", DESCRIBED)
def test_the_table_of_a_message_is_the_model_s(title: str) -> None:
    written = [Row(cells[0].strip("`"), cells[1], cells[2]) for cells in table(section(title))]
    assert written == rows(DESCRIBED[title]), f"mend the table under '#### {title}' in docs/protocol.md"


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_says_on_which_topic_it_comes(kind: str) -> None:
    introduction = section(kind).split("|")[0]
    assert f"Kind `{kind}`, on `" in introduction


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_place_among_the_replays(kind: str) -> None:
    firsts = [row[0] for row in table(section("Signatures and replays"))]
    assert any(f"`{kind}`" in first for first in firsts)


def test_the_limits_are_the_code_s() -> None:
    text = section("Limits").replace(",", "")
    powers = {2**24: "2^24", 2**31 - 1: "2^31 - 1"}
    for bound in (
        limits.MAX_PACKET_BYTES,
        limits.PACKET_OVERHEAD_BYTES,
        limits.MAX_ENVELOPE_BYTES,
        limits.MAX_INLINE_DELTA_BYTES,
        limits.MAX_CHUNKS,
        limits.MAX_PARAMETERS,
        limits.MAX_TENSORS,
        limits.MAX_TENSOR_DIMS,
        limits.MAX_COHORT_LIST,
        limits.MAX_STORED_UPLOADS,
        limits.MAX_METRICS,
        limits.MAX_NESTING,
    ):
        assert powers.get(bound, str(bound)) in text


def test_every_reason_of_a_report_is_explained() -> None:
    codes = {cell for row in table(section("In reports")) for cell in re.findall(r"`([a-z-]+)`", row[0])}
    shown = re.findall(
        r"`\"([a-z-]+)\"`", next(row for row in table(section("report")) if "code" in row[0])[1]
    )
    assert codes == set(shown)


def reasons() -> set[str]:
    """Every word that a refusal is known by: `reason=` in protocol and cores, and a strategy's `Rejection`."""
    found: set[str] = set()
    folders = (
        "protocol/fedmq_protocol",
        "coordinator/fedmq_coordinator/core",
        "edge_agent/fedmq_edge_agent/core",
    )
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            values = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            if isinstance(node.func, ast.Name) and node.func.id == "Rejection":
                values += node.args[:1]
            for value in values:
                branches = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                found |= {str(branch.value) for branch in branches if isinstance(branch, ast.Constant)}
    return found - {""}


def test_every_reason_is_explained() -> None:
    explained = set(re.findall(r"`([a-z-]+)`", section_with_parts("Errors")))
    assert reasons() <= explained


def section_with_parts(title: str) -> str:
    """A section of the second level with those below it."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_timings_are_the_code_s() -> None:
    rows_of = {row[0]: " ".join(row[1:]) for row in table(section("Timings"))}

    def row(beginning: str) -> str:
        return next(text for name, text in rows_of.items() if name.startswith(beginning))

    waits = {
        "for an announcement": contact.HELLO,
        "for a chunk, before `get`": download.ANSWER,
        "for a receipt or a credit": outbox.RESEND,
    }
    for beginning, backoff in waits.items():
        assert f"{backoff.first_s:g} s {backoff.longest_s:g} s" in row(beginning)
        assert backoff.factor == 2
    assert f"{contact.SILENCE_S:g} s" in row("for any word")
    assert f"{download.CHAIN_ATTEMPTS} attempts" in row("for a delta's chunk")
    assert f"{download.REPORT_ATTEMPTS} attempts" in row("for a chunk, before `report`")
    again = row("before starting over")
    assert f"{following.AGAIN.longest_s:g} s, from {following.AGAIN.first_s:g} s on" in again
    assert f"{BrokerSettings.model_fields['reconnect_min_s'].default:g} s" in row("between attempts")


def test_other_figures_of_the_flows_are_the_code_s() -> None:
    flat = " ".join(PAGE.split())
    assert f"stands still for {uploads.IDLE_S:g} s" in flat
    assert f"stays on the broker for {progress._CLEAR_GRACE_S:g} s" in flat
    assert f"alone for {conversation._PAUSE_S:g} s, doubling to {conversation._PAUSE_MAX_S:g} s" in flat
    assert f"a device's last {dedupe.WINDOW} in a run" in flat
    assert f"the coordinator {replays.FROM_DEVICE:,} of them back" in flat
    assert f"a device {replays.FROM_COORDINATOR:,} back" in flat
