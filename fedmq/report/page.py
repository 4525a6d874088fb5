"""`report.html`: the figures and pictures of a run in one file that needs nothing else."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from fedmq.report.figures import Report
from fedmq.report.pictures import all_pictures
from fedmq.report.sizes import bytes_text


def render(report: Report) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("fedmq.report"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = bytes_text
    environment.filters["percent"] = lambda value, digits=1: "–" if value is None else f"{value:.{digits}%}"
    environment.filters["seconds"] = seconds_text
    template = environment.get_template("report.html.j2")
    return template.render(
        report=report,
        pictures=all_pictures(report),
        median_participants=_median([figures.participants for figures in report.rounds]),
        settings=json.dumps(report.settings, indent=2, sort_keys=True, default=str),
    )


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures, page = folder / "report.json", folder / "report.html"
    figures.write_text(to_json(report), encoding="utf-8")
    page.write_text(render(report), encoding="utf-8")
    return figures, page


def to_json(report: Report) -> str:
    """The text of `report.json`."""
    return json.dumps(report.model_dump(mode="json"), indent=2) + "\n"


def seconds_text(seconds: float | None) -> str:
    """0.4 s, 12 s, 3 min 20 s."""
    if seconds is None:
        return "–"
    minute, short = 60, 10
    if seconds < short:
        return f"{seconds:.2f} s"
    if seconds < 2 * minute:
        return f"{seconds:.0f} s"
    return f"{seconds // minute:.0f} min {seconds % minute:.0f} s"


def _median(values: list[int]) -> float | None:
    return statistics.median(values) if values else None
