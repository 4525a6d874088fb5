"""A picture on a terminal: 80 columns are enough, and of many devices the silent and the troubled come first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rich.console import Group, OverflowMethod, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedmq_broker.watching.picture import (
    DEVICE_STATES,
    BrokerPicture,
    ClientPicture,
    CoordinatorPicture,
    DevicePicture,
    Happening,
    Picture,
)

_MINUTE: Final = 60
_HOUR: Final = 3_600
_DAY: Final = 86_400
_STALE_S: Final = 30.0
_NEAR: Final = 0.5
_FULL: Final = 0.8
_SOON_S: Final = 14 * _DAY
_RECENT_S: Final = 900.0
_HAPPENINGS: Final = 4
_LEAST_ROWS: Final = 4
_STATE_STYLES: Final = {
    "training": "green",
    "idle": "cyan",
    "offline": "red",
    "unable": "red",
    "paused": "yellow",
}


@dataclass(frozen=True)
class Row:
    """A line of the table: a device, or another client of the broker that is in trouble."""

    name: str
    state: str
    silent_s: float
    updates: int | None
    at_broker: str
    remark: str


def rows(picture: Picture) -> list[Row]:
    """Everybody, those with trouble at the broker first, then by how long they are silent."""
    clients = {client.client: client for client in picture.clients}
    known = {device.device for device in picture.devices}
    others = [_other(client) for client in picture.clients if client.client not in known]
    troubled = [each for each in picture.devices if each.device in clients]
    rest = [each for each in picture.devices if each.device not in clients]
    return [*others, *(_row(each, clients.get(each.device)) for each in [*troubled, *rest])]


def draw(picture: Picture, *, height: int | None = None, note: str = "") -> RenderableType:
    """The picture.

    Args:
        picture: what is seen.
        height: lines that there are; None: as many as it takes.
        note: where the picture comes from, if not from the broker itself.
    """
    parts: list[RenderableType] = [_title(picture, note), *_broker(picture.broker), Text()]
    parts += [*_coordinator(picture.coordinator), Text()]
    below: list[RenderableType] = [*_happenings(picture.happenings), *_certificates(picture)]
    table = rows(picture)
    limit = len(table)
    if height is not None:
        taken = (
            len(parts) + len(below) + 5
        )  # the table's two headings, the line of what is left out, two lines that may be folded
        limit = max(_LEAST_ROWS, height - taken)
    return Group(*parts, *_table(table, limit, picture), *below)


# ------------------------------------------------------------------------------------------------- above


def _title(picture: Picture, note: str) -> Text:
    title = _text(f"fedmq {picture.coordinator.federation}", style="bold", no_wrap=True, overflow="ellipsis")
    return title.append(f"  {note}", style="dim not bold") if note else title


def _broker(broker: BrokerPicture) -> list[RenderableType]:
    if not broker.up:
        away = _line("broker", "red", f"AWAY for {span(broker.since_s)}: {broker.detail}")
        return [away, _more(broker.address)]
    parts = [
        broker.address,
        broker.version.removeprefix("mosquitto version ") or "",
        f"up {span(_uptime(broker))}",
    ]
    if broker.probe_s is not None:
        parts.append(f"{1000 * broker.probe_s:.1f} ms")
    lines: list[RenderableType] = [_line("broker", "green", " · ".join(filter(None, parts)))]
    if broker.figures_age_s is None:
        return [*lines, _more("it tells nothing of itself ($SYS is empty)")]
    if broker.figures_age_s > _STALE_S:
        lines.append(_more(f"it told nothing of itself for {span(broker.figures_age_s)}", "yellow"))
    return [*lines, *_figures(broker)]


def _figures(broker: BrokerPicture) -> list[RenderableType]:
    figures = broker.figures

    def rate(name: str) -> float:
        return figures.get(f"broker_load_{name}_1min", 0.0) / _MINUTE

    traffic = (
        f"{figures.get('broker_clients_connected', 0):.0f} clients · "
        f"in {rate('messages_received'):.1f}/s {size(rate('bytes_received'))}/s · "
        f"out {rate('messages_sent'):.1f}/s {size(rate('bytes_sent'))}/s"
    )
    dropped = figures.get("broker_publish_messages_dropped", 0.0)
    recently = figures.get("broker_load_publish_dropped_1min", 0.0)
    waiting = Text(" " * 12)
    waiting.append(
        _of("waiting", broker.queued_messages, broker.limits.get("max_queued_messages"), unit="messages")
    )
    if broker.queued_bytes:
        waiting.append(", ").append(_of("", broker.queued_bytes, broker.limits.get("max_queued_bytes")))
    waiting.append(" · ").append(f"dropped {dropped:.0f}", style="bold red" if recently else "")
    memory = Text(" " * 12)
    if broker.resident_bytes is not None:
        memory.append(_of("memory", broker.resident_bytes, broker.limits.get("resident_bytes")))
    else:
        memory.append(_of("memory", figures.get("broker_heap_current"), broker.limits.get("memory_limit")))
    memory.append(f" · retained {figures.get('broker_retained_messages_count', 0):.0f}")
    return [_more(traffic), waiting, memory]


def _of(word: str, value: float | None, limit: float | None, *, unit: str = "") -> Text:
    """«waiting 12 of 2600 messages», in red where that is near the limit."""

    def shown(number: float) -> str:
        return f"{number:.0f}" if unit else size(number)

    if value is None:
        return Text(f"{word}: not told")
    share = value / limit if limit else 0.0
    style = "bold red" if share >= _FULL else "yellow" if share >= _NEAR else ""
    text = shown(value) if not limit else f"{shown(value)} of {shown(limit)}"
    return Text(" ".join(filter(None, [word, text, unit])), style=style)


def _uptime(broker: BrokerPicture) -> float:
    return broker.figures.get("broker_uptime", broker.since_s)


def _coordinator(told: CoordinatorPicture) -> list[RenderableType]:
    if told.up:
        state = "up" if told.at_broker else "up, but NOT AT THE BROKER"
        lines: list[RenderableType] = [
            _line("coordinator", "green" if told.at_broker else "red", f"{state} · epoch {told.epoch}")
        ]
    else:
        lines = [_line("coordinator", "red", f"SILENT for {span(told.since_s)}: {told.detail}")]
        if told.told_by == "broker":
            seen = "online" if told.at_broker else "offline by its last will"
            lines.append(_more(f"the broker has it as {seen}; what follows is what the broker has"))
    run = told.run
    if run is None:
        return [*lines, _more("no run")]
    rounds = f" of {run.rounds}" if run.rounds else ""
    parts = [f"run {run.run} {run.state}", f"{run.mode}, round {run.round}{rounds}", f"version {run.version}"]
    if run.round_age_s is not None:
        parts.append(f"open {span(run.round_age_s)}")
    lines.append(_more(" · ".join(parts)))
    if run.state == "active" and run.goal:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            " " * 11,
            ProgressBar(total=run.goal, completed=run.answered, width=24),
            f"{run.answered} of {run.goal} updates, {run.leases} at work",
        )
        lines.append(bar)
    if run.waiting:
        lines.append(Padding(_text(f"waits for {run.waiting}"), (0, 0, 0, 12)))
    return lines


# ------------------------------------------------------------------------------------------------- the table


def _table(all_rows: list[Row], limit: int, picture: Picture) -> list[RenderableType]:
    states = picture.coordinator.states
    counted = ", ".join(f"{states[state]} {state}" for state in DEVICE_STATES if states.get(state))
    heading = _line("devices", "", f"{len(picture.devices)}" + (f": {counted}" if counted else ""))
    if not all_rows:
        return [heading]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("device", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("state", no_wrap=True)
    table.add_column("silent", justify="right", no_wrap=True)
    table.add_column("updates", justify="right", no_wrap=True)
    table.add_column("at the broker", no_wrap=True, overflow="ellipsis", style="red")
    table.add_column("remark", no_wrap=True, overflow="ellipsis")
    for row in all_rows[:limit]:
        table.add_row(
            _text(row.name),
            Text(row.state, style=_STATE_STYLES.get(row.state, "")),
            span(row.silent_s) if row.silent_s else "",
            "" if row.updates is None else str(row.updates),
            _text(row.at_broker),
            _text(row.remark),
        )
    left_out = len(all_rows) - limit
    return [heading, table, *([Text(f"and {left_out} more", style="dim")] if left_out > 0 else [])]


def _row(device: DevicePicture, client: ClientPicture | None) -> Row:
    remark = device.problem
    if not remark and device.state == "offline":
        remark = f"gone {span(device.since_s)} by its {'last will' if device.by_will else 'goodbye'}"
    if not remark and device.lease_age_s is not None:
        remark = f"at work for {span(device.lease_age_s)}"
    if device.rejections:
        remark = f"{device.rejections} refused; {remark}" if remark else f"{device.rejections} refused"
    troubles = "" if client is None else _troubles(client.troubles)
    return Row(device.device, device.state, device.silent_s, device.updates, troubles, remark)


def _other(client: ClientPicture) -> Row:
    since = "" if client.last_trouble_s is None else f"{span(client.last_trouble_s)} ago"
    return Row(client.client, "", 0.0, None, _troubles(client.troubles), since)


def _troubles(troubles: Mapping[str, int]) -> str:
    words = {"dropped": "queue full"}
    return ", ".join(
        words.get(kind, kind) + (f" {number}x" if number > 1 else "")
        for kind, number in sorted(troubles.items())
    )


# ------------------------------------------------------------------------------------------------- below


def _happenings(happenings: list[Happening]) -> list[RenderableType]:
    recent = [each for each in happenings if each.ago_s <= _RECENT_S][:_HAPPENINGS]
    return [
        _text(f"{span(each.ago_s):>8} ago  {each.text}", style="yellow", no_wrap=True, overflow="ellipsis")
        for each in recent
    ]


def _certificates(picture: Picture) -> list[RenderableType]:
    soon = [(at - picture.at, name) for name, at in picture.certificates.items() if at - picture.at < _SOON_S]
    return [
        Text(
            f"certificate of {name} " + (f"ends in {span(left)}" if left > 0 else f"ended {span(-left)} ago"),
            style="bold red",
        )
        for left, name in sorted(soon)
    ]


def _line(word: str, style: str, text: str) -> Text:
    line = Text(f"{word:<12}", style="bold", no_wrap=True, overflow="ellipsis")
    return line.append(_plain(text), style=f"not bold {style}".strip())


def _more(text: str, style: str = "") -> Text:
    return _text(" " * 12 + text, style=style, no_wrap=True, overflow="ellipsis")


def _text(
    text: str, *, style: str = "", no_wrap: bool = False, overflow: OverflowMethod | None = None
) -> Text:
    return Text(_plain(text), style=style, no_wrap=no_wrap, overflow=overflow)


def _plain(text: str) -> str:
    """What devices, and strangers at the broker, say of themselves must not command the terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def span(seconds: float) -> str:
    """A length of time: 0.4 s, 42 s, 3 min, 2 h 5 min, 9 days."""
    seconds = max(0.0, seconds)
    if seconds < 2 * _MINUTE:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004  # tenths matter below
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    return f"{seconds / _DAY:.0f} days"


def size(count: float) -> str:
    """1234567 as «1.2 MB»."""
    for unit in ("B", "KB", "MB"):
        if count < 1_000:  # noqa: PLR2004  # decimal units
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"  # noqa: PLR2004
        count /= 1_000
    return f"{count:.1f} GB"
