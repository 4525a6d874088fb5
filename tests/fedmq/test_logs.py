"""The log: a line a record for people, an object a line for programs, and fields that say what it is about."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from fedmq.cli import cli
from fedmq.logs import JsonFormatter, LineFormatter, begin_logging


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """What a test says of the process's logging is gone with it."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    known = set(logging.root.manager.loggerDict)
    levels = {name: logging.getLogger(name).level for name in known}
    yield
    root.handlers[:], root.level = before
    for name in set(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


def record(text: str, **fields: object) -> logging.LogRecord:
    made = {"msg": text, "levelname": "INFO", "name": "fedmq_edge_agent", "created": 1_795_419_679.25}
    return logging.makeLogRecord(made | {"msecs": 250.0} | fields)


def test_a_record_is_a_line_that_says_where() -> None:
    told = LineFormatter().format(record("trained", device="dev-1", run="r1", round=7))
    assert told.endswith("info    device=dev-1 run=r1 round=7 trained")
    assert (
        LineFormatter()
        .format(record("started", device="dev-1", run=""))
        .endswith("info    device=dev-1 started")
    )


def test_what_others_say_stays_in_its_line() -> None:
    said = "refused\n2026-11-23 08:00:00,000 info    all is well \x1b[2J"
    line = LineFormatter().format(record(said, device="dev-1\r"))
    assert line.isprintable()
    assert line.endswith(r"device=dev-1\r refused\n2026-11-23 08:00:00,000 info    all is well \x1b[2J")


def test_what_always_holds_gives_way_to_what_the_record_says() -> None:
    formatter = LineFormatter({"device": "dev-1"})
    assert formatter.format(record("x")).endswith("device=dev-1 x")
    assert formatter.format(record("x", device="dev-2")).endswith("device=dev-2 x")


def test_an_object_a_line() -> None:
    made = record("refused\nby the broker", run="r1", round=0, fields={"reason": "norm", "run": "r1"})
    line = JsonFormatter({"device": "dev-1"}).format(made)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-11-23T07:41:19.250Z",
        "level": "info",
        "logger": "fedmq_edge_agent",
        "device": "dev-1",
        "run": "r1",
        "round": 0,
        "message": "refused\nby the broker",
        "fields": {"reason": "norm"},
    }


def test_an_exception_stays_in_its_record() -> None:
    try:
        int("no")
    except ValueError:
        made = record("it broke", exc_info=sys.exc_info())
    told = json.loads(JsonFormatter().format(made))
    assert told["exception"].endswith("ValueError: invalid literal for int() with base 10: 'no'")
    assert LineFormatter().format(made).endswith("base 10: 'no'")


@pytest.mark.usefixtures("logging_restored")
def test_libraries_are_heard_when_something_is_wrong_with_them() -> None:
    stream = io.StringIO()
    begin_logging("json", stream=stream)
    for name in ("fedmq_coordinator.shell.main", "fedmq_protocol.aio", "httpx", "somebody.else"):
        logging.getLogger(name).debug("quiet")
        logging.getLogger(name).info("usual")
        logging.getLogger(name).warning("wrong")
    said = [(told["logger"], told["message"]) for told in map(json.loads, stream.getvalue().splitlines())]
    assert said == [
        ("fedmq_coordinator.shell.main", "usual"),
        ("fedmq_coordinator.shell.main", "wrong"),
        ("fedmq_protocol.aio", "wrong"),
        ("httpx", "wrong"),
        ("somebody.else", "usual"),
        ("somebody.else", "wrong"),
    ]


@pytest.mark.usefixtures("logging_restored")
def test_verbose_is_about_ourselves() -> None:
    stream = io.StringIO()
    begin_logging(verbose=True, stream=stream)
    logging.getLogger("fedmq_protocol.aio").debug("ours")
    logging.getLogger("httpx").info("theirs")
    assert "ours" in stream.getvalue()
    assert "theirs" not in stream.getvalue()


def test_a_device_pays_nothing_for_it() -> None:
    """The supervisor has all that the module imports."""
    code = (
        "import sys, fedmq, fedmq_edge_agent.shell.main; before = set(sys.modules); import fedmq.logs; "
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fedmq.logs"]


@pytest.mark.parametrize(
    "verb", [["agent", "start"], ["coordinator", "start"], ["broker", "start"], ["broker", "exporter"]]
)
def test_every_long_running_verb_offers_both(verb: list[str]) -> None:
    told = CliRunner().invoke(cli, [*verb, "--help"]).output
    assert "--log-format [line|json]" in told
