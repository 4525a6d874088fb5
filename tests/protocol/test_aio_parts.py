"""The parts under a connection, each alone: the publish window, the inbox, the wire, the reasons."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.aio_events import Connected, Disconnected, Message
from fedmq_protocol.aio_inbox import Inbox
from fedmq_protocol.aio_reasons import Fault, explain_failed_connect, explain_loss, explain_refusal
from fedmq_protocol.aio_window import Window
from fedmq_protocol.aio_wire import TrafficMeter, Wire
from fedmq_protocol.broker_settings import BrokerSettings

HELLO = Connected(session_present=False, protocol=5, max_packet_bytes=None)


# ------------------------------------------------------------------------------------- the window


@given(
    st.lists(st.tuples(st.integers(0, 150), st.booleans()), max_size=40),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_the_window_keeps_its_bounds_and_order_and_gives_all_back(
    requests: list[tuple[int, bool]], max_messages: int, rng: random.Random
) -> None:
    """Whoever is cancelled, waiting or just admitted, takes nothing along."""

    async def play() -> None:
        window = Window(max_messages, 100)
        inside: dict[int, int] = {}
        entered: list[int] = []

        async def request(number: int, size: int) -> None:
            cost = await window.acquire(size)
            inside[number] = cost
            entered.append(number)
            assert len(inside) <= max_messages
            assert sum(inside.values()) <= 100

        tasks = []
        for number, (size, cancel) in enumerate(requests):
            task = asyncio.create_task(request(number, size))
            tasks.append(task)
            await asyncio.sleep(0)
            if cancel:
                task.cancel()
            if inside and rng.random() < 0.5:
                window.release(inside.pop(rng.choice(sorted(inside))))
            if cancel and rng.random() < 0.5:
                await asyncio.sleep(0)
        while not all(task.done() for task in tasks) or inside:
            await asyncio.sleep(0)
            if inside:
                window.release(inside.pop(min(inside)))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert entered == sorted(entered)
        assert (window._free_messages, window._free_bytes) == (max_messages, 100)
        assert not window._waiting

    asyncio.run(play())


# ------------------------------------------------------------------------------------- the inbox


async def test_the_announcement_stands_before_what_came_early() -> None:
    inbox = Inbox(10_000)
    inbox.put(Disconnected("earlier"))
    inbox.hold()
    inbox.put(Message("early", b""))
    inbox.announce(HELLO)
    inbox.announce(HELLO)  # the second does nothing
    inbox.put(Message("late", b""))
    taken = [await inbox.take() for _ in range(4)]
    assert taken == [Disconnected("earlier"), HELLO, Message("early", b""), Message("late", b"")]


async def test_what_an_attempt_brought_is_forgotten_with_it() -> None:
    inbox = Inbox(1_000)
    inbox.hold()
    inbox.put(Message("early", bytes(5_000)))
    assert inbox.overfull
    inbox.forget_held()
    assert not inbox.full
    inbox.put(HELLO)
    assert await inbox.take() == HELLO


async def test_small_messages_fill_it_too() -> None:
    inbox = Inbox(10_000)
    for _ in range(25):
        inbox.put(Message("t", b""))
    assert inbox.full
    assert not inbox.overfull


async def test_closing_ends_the_stream_or_raises() -> None:
    inbox = Inbox(1_000)
    waiting = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    inbox.close()
    assert await waiting is None
    inbox.close(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await inbox.take()


# ------------------------------------------------------------------------------------- the wire


@pytest.fixture
def pair() -> tuple[Wire, socket.socket, TrafficMeter]:
    ours, theirs = socket.socketpair()
    meter = TrafficMeter()
    return Wire(ours, meter, max_receive_bytes=100_000), theirs, meter


async def test_the_wire_takes_everything_and_sends_it_as_fast_as_it_is_read(
    pair: tuple[Wire, socket.socket, TrafficMeter],
) -> None:
    wire, theirs, meter = pair
    theirs.setblocking(False)  # noqa: FBT003
    loop = asyncio.get_running_loop()
    wire.start(loop, on_readable=lambda: None, on_broken=lambda: None)
    data = random.Random(1).randbytes(3_000_000)
    for start in range(0, len(data), 100_000):
        piece = data[start : start + 100_000]
        assert wire.send(piece) == len(piece)
    assert wire.unsent_bytes > 0
    received = bytearray()
    draining = asyncio.create_task(wire.drain())
    while len(received) < len(data):
        received += await loop.sock_recv(theirs, 65_536)
    await draining
    assert received == data
    assert meter == TrafficMeter(len(data), 0)
    wire.abort()
    theirs.close()


async def test_small_writes_of_one_turn_leave_together(
    pair: tuple[Wire, socket.socket, TrafficMeter],
) -> None:
    wire, theirs, _ = pair
    theirs.setblocking(False)  # noqa: FBT003
    loop = asyncio.get_running_loop()
    wire.start(loop, on_readable=lambda: None, on_broken=lambda: None)
    for _ in range(20):
        wire.send(b"ack!")
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    assert await loop.sock_recv(theirs, 1_000) == b"ack!" * 20
    wire.abort()
    theirs.close()


async def test_a_paused_wire_reads_nothing_and_goes_on_where_it_was(
    pair: tuple[Wire, socket.socket, TrafficMeter],
) -> None:
    wire, theirs, meter = pair
    readable = asyncio.Event()
    wire.start(asyncio.get_running_loop(), on_readable=readable.set, on_broken=lambda: None)
    theirs.sendall(b"0123456789")
    await readable.wait()
    assert wire.recv(4) == b"0123"
    wire.pause()
    assert not wire.readable
    with pytest.raises(BlockingIOError):
        wire.recv(1)
    readable.clear()
    wire.resume()
    await readable.wait()  # for what is in memory, though the kernel has nothing
    assert wire.recv(100) == b"456789"
    with pytest.raises(BlockingIOError):
        wire.recv(1)
    assert meter.bytes_received == 10
    theirs.close()
    readable.clear()
    await readable.wait()
    assert wire.recv(1) == b""
    assert wire.ended
    wire.abort()


def test_no_memory_is_taken_for_a_packet_above_the_limit(
    pair: tuple[Wire, socket.socket, TrafficMeter],
) -> None:
    wire, theirs, _ = pair
    with pytest.raises(OSError, match="a packet of 100001 bytes, above the limit of 100000"):
        wire.recv(100_001)
    wire.abort()
    theirs.close()


async def test_a_broken_write_is_told(pair: tuple[Wire, socket.socket, TrafficMeter]) -> None:
    wire, theirs, _ = pair
    broken = asyncio.Event()
    wire.start(asyncio.get_running_loop(), on_readable=lambda: None, on_broken=broken.set)
    theirs.close()
    wire.send(b"x")
    await broken.wait()
    assert isinstance(wire.error, BrokenPipeError)
    await wire.drain()  # returns, as there is nothing to wait for
    with pytest.raises(ConnectionAbortedError):
        wire.send(b"y")
    wire.abort()


def refusing(folder: Path) -> ssl.SSLContext:
    """A server that wants a certificate of its client; its own is nobody's."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    folder.joinpath("server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_an_alert_that_nobody_has_read_is_why_a_write_fails(
    pair: tuple[Wire, socket.socket, TrafficMeter], tmp_path: Path
) -> None:
    """In TLS 1.3 the client may write before it reads that its certificate was refused, and find a closed door."""
    wire, theirs, _ = pair
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    wire._tls = trusting.wrap_bio(wire._tls_in, wire._tls_out)
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = refusing(tmp_path).wrap_bio(heard, said, server_side=True)
    with contextlib.suppress(ssl.SSLWantReadError):
        wire._tls.do_handshake()
    heard.write(wire._tls_out.read())
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    wire._tls_in.write(said.read())
    wire._tls.do_handshake()
    heard.write(wire._tls_out.read())
    with pytest.raises(ssl.SSLError):
        server.do_handshake()
    theirs.sendall(said.read())
    theirs.close()
    broken = asyncio.Event()
    wire.start(asyncio.get_running_loop(), on_readable=lambda: None, on_broken=broken.set)
    wire.send(b"CONNECT")
    await broken.wait()
    assert wire.error is not None
    assert "refuses our TLS handshake" in explain_failed_connect(wire.error, SETTINGS).text
    wire.abort()


# ------------------------------------------------------------------------------------- reasons

SETTINGS = BrokerSettings(url="mqtts://user:secret@broker.example")


@pytest.mark.parametrize(
    ("error", "text", "fault"),
    [
        (ConnectionRefusedError(), "fedmq broker start", Fault.UNREACHABLE),
        (socket.gaierror(-2, "x"), "cannot be resolved", Fault.UNREACHABLE),
        (TimeoutError(), "firewall", Fault.UNREACHABLE),
        (ConnectionResetError(), "does it speak TLS", Fault.UNREACHABLE),
        (OSError(113, "No route to host"), "no route to host", Fault.UNREACHABLE),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
            "does not speak TLS",
            Fault.REFUSED,
        ),
    ],
)
def test_failures_are_one_line_without_secrets(error: OSError, text: str, fault: Fault) -> None:
    reason = explain_failed_connect(error, SETTINGS)
    assert text in reason.text
    assert "broker.example" in reason.text
    assert "secret" not in reason.text
    assert "\n" not in reason.text
    assert reason.fault is fault


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (0x84, Fault.WRONG_VERSION),
        (0x85, Fault.REFUSED),
        (0x86, Fault.REFUSED),
        (0x87, Fault.REFUSED),
        (0x88, Fault.UNREACHABLE),
        (0x89, Fault.UNREACHABLE),
        (0x8A, Fault.REFUSED),
    ],
)
def test_refusals_that_pass_are_told_from_those_that_do_not(code: int, fault: Fault) -> None:
    assert explain_refusal(code, "Some name", SETTINGS, "user").fault is fault


def test_what_ended_a_connection() -> None:
    def text(*, error: OSError | None = None, ended: bool = False, said: str | None = None) -> str:
        return explain_loss(SETTINGS, "dev-1", error=error, ended=ended, said=said).text

    assert "another client named 'dev-1'" in text(said="Session taken over")
    assert "ended the connection: server shutting down" in text(said="Server shutting down")
    assert "look for a second client named 'dev-1'" in text(ended=True)
    assert "broke: connection reset by peer" in text(
        error=ConnectionResetError(104, "Connection reset by peer")
    )
    assert "silent for too long" in text()
