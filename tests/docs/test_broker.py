"""The figures of docs/broker.md are what the code computes."""

from __future__ import annotations

import re
from pathlib import Path

from fedmq_broker.sizing import plan

TEXT = (Path(__file__).parents[2] / "docs/broker.md").read_text(encoding="utf-8")


def row(devices: int, parameters: int) -> str:
    limits = plan(devices, parameters)
    return (
        f"| {devices:,} | {parameters:,} | {limits.max_queued_messages:,} | {limits.max_queued_bytes / 2**20:,.0f} MB"
        f" | {limits.resident_bytes / 2**20:,.0f} MB | {limits.open_files:,} |"
    )


def test_the_table_of_limits() -> None:
    rows = re.findall(r"^\| ([0-9,]+) \| ([0-9,]+) \|.*$", TEXT, flags=re.MULTILINE)
    assert len(rows) == 4
    for devices, parameters in rows:
        assert row(int(devices.replace(",", "")), int(parameters.replace(",", ""))) in TEXT
