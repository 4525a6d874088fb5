"""The comparison of value codes measures what it says, at a tiny size."""

from __future__ import annotations

from benchmarks.value_codes import ROWS, measured


def test_eight_bits_are_more_precise_than_four_and_cost_more() -> None:
    found = {
        (codec, rounding): measured(codec, rounding, "iid", network="digits_tiny", density=0.05, rounds=(1,))
        for codec, rounding in ROWS
        if codec.startswith("topk-block")
    }
    nearest, precise = found["topk-block4", "nearest"], found["topk-block8", "nearest"]
    assert precise["error"] < nearest["error"] / 50, "16 times finer, squared, less what is not sent"
    assert nearest["bits"] < precise["bits"]
    assert nearest["error"] < found["topk-block4", "stochastic"]["error"] < 4 * nearest["error"]
    assert all(0 < row["sent"] <= 1 for row in found.values())
