"""The rendered configuration: every option known to both versions, each limit where it belongs, no path absolute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedmq_broker.render import Wanted, find_plugin, render
from fedmq_broker.sizing import plan

LIMITS = plan(200, 300_000)


def settings(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition(" ") for line in lines)]


def test_each_limit_stands_in_it_with_its_reason_above() -> None:
    text = render(Wanted("home", LIMITS))
    said = dict(settings(text))
    for name in (
        "max_packet_size",
        "max_queued_messages",
        "max_queued_bytes",
        "autosave_interval",
    ):
        assert said[name] == str(getattr(LIMITS, name))
        above = text[: text.index(f"\n{name} ")].rpartition("\n\n")[2]
        assert re.sub(r"\s*\n# ", " ", above).removeprefix("# ") == LIMITS.why[name]


def test_a_memory_limit_is_for_those_that_count_the_plugin() -> None:
    """See `memory-limit-and-plugin` among the rules."""
    for version, there in (((), False), ((2, 0, 22), False), ((2, 1, 0), True)):
        assert ("memory_limit" in dict(settings(render(Wanted("home", LIMITS, version=version))))) == there


def test_lines_fit_a_terminal_and_nothing_is_absolute() -> None:
    text = render(Wanted("home", LIMITS))
    assert max(map(len, text.splitlines())) <= 110
    assert not any(value.startswith("/") for _, value in settings(text))


@pytest.mark.parametrize(
    ("websockets_port", "password_port", "ports"),
    [(8884, 8885, ["8883", "8885", "8884"]), (0, 8885, ["8883", "8885"]), (0, 0, ["8883"])],
)
def test_a_port_of_zero_is_no_listener(websockets_port: int, password_port: int, ports: list[str]) -> None:
    said = settings(
        render(Wanted("home", LIMITS, websockets_port=websockets_port, password_port=password_port))
    )
    assert [value for name, value in said if name == "listener"] == ports
    assert (("protocol", "websockets") in said) == bool(websockets_port)


def test_only_the_door_for_certificates_takes_a_name_from_one() -> None:
    text = render(Wanted("home", LIMITS, listen="192.0.2.1"))
    doors = text.split("\nlistener ")[1:]
    assert [("require_certificate true" in door, "crlfile" in door) for door in doors] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    for door in doors:
        assert door.partition("\n")[0].endswith(" 192.0.2.1")
        assert "use_username_as_clientid true" in door
        assert f"max_connections {LIMITS.max_connections}" in door


def test_the_plugin_is_named_so_that_another_machine_finds_it_too() -> None:
    name = find_plugin()
    assert name == "mosquitto_dynamic_security.so" or Path(name).exists()
