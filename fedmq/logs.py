"""What the long-running verbs say of themselves: a line an event on standard error, for people or for programs.

Records carry `device`, `run` and `round` as fields where they are about one. As `line`:

    2026-11-23 07:41:19,123 info    device=dev-1 run=digits-1 round=7 trained on 180 examples in 0.4 s

and as `json` one object a line, for whatever collects logs:

    {"time":"2026-11-23T07:41:19.123Z","level":"info","logger":"fedmq_edge_agent","device":"dev-1",...,"message":"..."}

A device's supervisor uses it: nothing is imported here that is not loaded anyway.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Final, Literal, TextIO

LogFormat = Literal["line", "json"]
LOG_FORMATS: Final = ("line", "json")

FIELDS: Final = ("device", "run", "round")
"""Of a record, in the order in which they are shown; empty where it is about none."""

_OURS: Final = ("fedmq", "fedmq_broker", "fedmq_coordinator", "fedmq_edge_agent")
# Coordinator and agent tell themselves when a connection breaks, and why.
_QUIET: Final = ("alembic", "asyncio", "fedmq_protocol.aio", "httpcore", "httpx", "uvicorn")


class LineFormatter(logging.Formatter):
    """One line a record: when, how grave, which device, run and round, and what."""

    def __init__(self, always: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._always = dict(always or {})

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = self._always | _fields(record)
        where = " ".join(f"{name}={fields[name]}" for name in FIELDS if name in fields)
        parts = [self.formatTime(record), f"{record.levelname.lower():7}", where, record.getMessage()]
        line = " ".join(part for part in parts if part)
        if (
            not line.isprintable()
        ):  # what others say of themselves is no line of ours, and commands no terminal
            line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, the fields, `message`, and an `exception` if any.

    Whatever else the core noted beside its text, such as the reason of a refusal, is in `fields`.
    """

    def __init__(self, always: Mapping[str, str] | None = None) -> None:
        import json  # for those who ask for it

        super().__init__()
        self._always = dict(always or {})
        self._dumps = json.dumps

    def format(self, record: logging.LogRecord) -> str:
        """The object; a line break in the text is escaped, so that a record stays one line."""
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, object] = {
            "time": f"{whole}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._always,
            **_fields(record),
            "message": record.getMessage(),
        }
        more = getattr(record, "fields", None)
        if isinstance(more, dict) and (rest := {k: v for k, v in more.items() if k not in FIELDS}):
            told["fields"] = rest
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return self._dumps(told, ensure_ascii=False, default=str, separators=(",", ":"))


def begin_logging(
    log_format: LogFormat = "line",
    *,
    verbose: bool = False,
    always: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Let this process's records go to standard error.

    Args:
        log_format: for people, or for programs.
        verbose: say everything; else what matters, and of other libraries only warnings.
        always: fields of every record, where it does not say otherwise: a device's own id.
        stream: in place of standard error.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter(always) if log_format == "json" else LineFormatter(always))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in _QUIET:
        ours = verbose and name.startswith("fedmq")
        logging.getLogger(name).setLevel(logging.DEBUG if ours else logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    told = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in told.items() if value is not None and value != ""}
