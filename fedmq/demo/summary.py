"""What a demo prints at its end: the measures of the field, in a few lines."""

from __future__ import annotations

from pathlib import Path

from fedmq.report.figures import LAST_ROUNDS, Report
from fedmq.report.sizes import bytes_text


def summary(report: Report, out: Path) -> list[tuple[str, str]]:
    """Name and text, a line each."""
    word = "round" if report.mode == "sync" else "version"
    lines = [("accuracy", _accuracy(report))]
    if report.accuracy_centralised is not None and report.accuracy_gap is not None:
        side = "below" if report.accuracy_gap >= 0 else "above"
        points = f"{abs(report.accuracy_gap) * 100:.1f} points {side} centralised training"
        lines.append(("gap", f"{points} ({report.accuracy_centralised:.1%})"))
    if report.target is not None:
        lines.append((f"to {report.target:.0%}", _to_target(report, word)))
    lines.append(("on the wire", f"{bytes_text(report.bytes_up)} up, {bytes_text(report.bytes_down)} down"))
    if report.compression_ratio is not None:
        lines.append(
            ("float32", f"{report.compression_ratio:.0f} times as much: {bytes_text(report.bytes_float32)}")
        )
    if report.participation_rate is not None:
        late = f", {report.late_updates} late" if report.late_updates else ""
        rejected = f", {report.rejected_updates} rejected" if report.rejected_updates else ""
        lines.append(
            ("participation", f"{report.participation_rate:.0%} of {_leases(report)} leases{late}{rejected}")
        )
    if report.round_seconds_median is not None:
        first = report.time_to_first_round_s
        after = "" if first is None else f"; the first was done {first:.1f} s after the start"
        lines.append((f"a {word}", f"{report.round_seconds_median:.2f} s (median){after}"))
    lines += [("model", str(out / "model.safetensors")), ("report", str(out / "report.html"))]
    return lines


def _accuracy(report: Report) -> str:
    if report.accuracy_final is None or report.accuracy_best is None:
        return "not measured"
    last = min(LAST_ROUNDS, len(report.accuracy))
    return f"{report.accuracy_final:.1%}, mean of the last {last}; best {report.accuracy_best:.1%}"


def _to_target(report: Report, word: str) -> str:
    if report.rounds_to_target is None or report.bytes_to_target is None or report.seconds_to_target is None:
        return "not reached"
    plural = "" if report.rounds_to_target == 1 else "s"
    return (
        f"{report.rounds_to_target} {word}{plural}, {bytes_text(report.bytes_to_target)}, "
        f"{report.seconds_to_target:.1f} s"
    )


def _leases(report: Report) -> int:
    return sum(figures.leased for figures in report.rounds)
