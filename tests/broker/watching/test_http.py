"""Pages over HTTP: enough for Prometheus, and nothing that hangs or breaks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.request
from collections.abc import AsyncIterator

import pytest

from fedmq_broker.watching import http
from fedmq_broker.watching.http import Pages
from fedmq_broker.watching.picture import DevicePicture, Picture


@pytest.fixture
async def url() -> AsyncIterator[str]:
    pages = Pages(lambda: Picture(at=1.0))
    yield await pages.start("127.0.0.1", 0)
    await pages.stop()


async def ask(url: str, request: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # so ends what was not read to its end
        answer = await reader.read()
    writer.close()
    return answer


def fetch(url: str) -> tuple[str, str]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


async def test_prometheus_is_answered(url: str) -> None:
    kind, text = await asyncio.to_thread(fetch, f"{url}/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    assert "fedmq_broker_up 0\n" in text


async def test_a_program_gets_the_picture(url: str) -> None:
    kind, text = await asyncio.to_thread(fetch, f"{url}/picture?x=1")
    assert kind == "application/json"
    assert Picture.model_validate_json(text).at == 1.0


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /nothing HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"nonsense", b"400"),
        (b"HEAD /metrics HTTP/1.0", b"200"),
        (b"GET / HTTP/1.1", b"200"),
    ],
)
async def test_other_requests(url: str, request_line: bytes, status: bytes) -> None:
    answer = await ask(url, request_line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert request_line.startswith(b"HEAD") == answer.endswith(b"\r\n\r\n")


async def test_whoever_says_too_much_or_nothing_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await ask(url, b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n") == b""
    with monkeypatch.context() as patch:
        patch.setattr(http, "_TIMEOUT_S", 0.1)
        assert await ask(url, b"GET / HT") == b""
    assert (await ask(url, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_whoever_asks_and_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_TIMEOUT_S", 0.2)
    devices = [DevicePicture(device=f"dev-{number}", state="idle") for number in range(40_000)]
    pages = Pages(lambda: Picture(at=1.0, devices=devices))
    url = await pages.start("127.0.0.1", 0)
    host, _, port = url.removeprefix("http://").partition(":")
    others = asyncio.all_tasks()
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.connect((host, int(port)))
        peer.sendall(b"GET /picture HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(60):
            while not (serving := asyncio.all_tasks() - others):  # noqa: ASYNC110 - until it is served
                await asyncio.sleep(0.01)
            await asyncio.gather(*serving)
        sent = peer.recv(1)
    assert sent, "it was being answered"
    await pages.stop()
