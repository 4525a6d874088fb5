"""The example in docs/simulation.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_the_example_trains_a_run_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(example, "docs/simulation.md", "exec"), {"__name__": "example"})
    said = capsys.readouterr().out.split()
    assert int(said[0]) >= 20  # FedBuff takes two at the least for each of 20 versions, or flushes
    assert 10 < float(said[3]) < 600
