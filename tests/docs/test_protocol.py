"""docs/protocol.md says of each message what the code does: fields, types, bounds, defaults, limits, topics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from fedmq_protocol import limits, messages
from fedmq_protocol.messages import KINDS
from tests.docs.message_tables import Row, rows

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
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
