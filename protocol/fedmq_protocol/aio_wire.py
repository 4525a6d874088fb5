"""One TCP connection, with TLS where asked, in the shape of the socket that paho-mqtt expects.

It stands between paho and the kernel for four reasons:

- It counts what crosses the TCP connection, the TLS records included, on any system.
- It reads large pieces and serves paho's many small `recv` calls from memory: one system call a wake-up, not five
  a message.
- It gathers what is written within one turn of the event loop: twenty acknowledgements leave in one packet.
- It takes every packet whole. paho slices what is left of a large packet at each partial send, and loses packets when
  a WebSocket frame is sent in part; here a send is never partial. The publish window bounds what waits.

`pause` is the back-pressure: no byte is read, from memory or from the kernel, until `resume`, and TCP does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

_T = TypeVar("_T")
_READ_BYTES = 65_536
_DIRECT_BYTES = 16_384  # so much of one packet is read without a stop in the buffer
_FLUSH_BYTES = 65_536  # what is above this leaves at once instead of waiting for the end of the turn


@dataclass
class TrafficMeter:
    """What crossed the TCP connections that share it, in bytes: what the kernel took from us, and gave us."""

    bytes_sent: int = 0
    bytes_received: int = 0


class Wire:
    """A connected stream. Not started, it blocks up to its time-out; started, it never blocks.

    Attributes:
        error: what broke the stream, if something did.
        ended: the peer closed its half.
    """

    def __init__(self, sock: socket.socket, meter: TrafficMeter, *, max_receive_bytes: int) -> None:
        self.ended = False
        self.error: OSError | None = None
        self._sock = sock
        self._meter = meter
        self._max_receive_bytes = max_receive_bytes
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._head = self._tail = 0  # what was read and not yet asked for: _buffer[_head:_tail]
        self._out = bytearray()
        self._tls: ssl.SSLObject | None = None
        self._tls_in, self._tls_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_readable: Callable[[], None] = lambda: None
        self._on_broken: Callable[[], None] = lambda: None
        self._dry = False  # the kernel had nothing more when we last looked
        self._paused = self._reading = self._writing = self._flush_planned = self._closed = self._lingers = (
            False
        )
        self._drained: list[asyncio.Future[None]] = []

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        timeout_s: float,
        max_receive_bytes: int,
        meter: TrafficMeter,
    ) -> Wire:
        """Connect to the first address of `host` that answers, and shake hands.

        Raises:
            OSError: resolving (`socket.gaierror`), connecting, or the handshake (`ssl.SSLError`) failed.
            TimeoutError: a step took longer than `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failures: list[OSError] = []
        for family, kind, proto, _, address in addresses:
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)  # noqa: FBT003
            wire = cls(sock, meter, max_receive_bytes=max_receive_bytes)
            try:
                async with asyncio.timeout(timeout_s):
                    await loop.sock_connect(sock, address)
                # Small packets wait for nobody: an acknowledgement or an announcement is useful at once.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is not None:
                    async with asyncio.timeout(timeout_s):
                        await wire._shake_hands(loop, tls, host)
            except ssl.SSLError:
                wire.close()
                raise
            except OSError as error:  # TimeoutError is one
                wire.close()
                failures.append(error)
            except BaseException:
                wire.close()
                raise
            else:
                return wire
        raise failures[-1]

    async def _shake_hands(self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, host: str) -> None:
        self._tls = context.wrap_bio(self._tls_in, self._tls_out, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError:
                # The alert tells the broker's log why.
                with contextlib.suppress(OSError):
                    self._sock.send(self._tls_out.read())
                raise
            else:
                done = True
            record = self._tls_out.read()
            if record:
                await loop.sock_sendall(self._sock, record)
                self._meter.bytes_sent += len(record)
            if done:
                return
            data = await loop.sock_recv(self._sock, _READ_BYTES)
            if not data:
                raise ConnectionResetError("the TLS handshake was cut off")
            self._meter.bytes_received += len(data)
            self._tls_in.write(data)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_readable: Callable[[], None],
        on_broken: Callable[[], None],
    ) -> None:
        """From now on the event loop moves the bytes; `on_broken` is called when a write fails."""
        if self._closed:
            return
        self._sock.setblocking(False)  # noqa: FBT003
        self._loop, self._on_readable, self._on_broken = loop, on_readable, on_broken
        self._flush()
        self._arm()

    # ------------------------------------------------------------------------------ what paho calls

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end of the stream.

        Raises:
            BlockingIOError: there is nothing now, or reading is paused.
            OSError: the stream broke, or a packet larger than the limit is announced.
        """
        if size > self._max_receive_bytes:
            self.error = OSError(f"a packet of {size} bytes, above the limit of {self._max_receive_bytes}")
            raise self.error
        if self._closed:
            raise ConnectionAbortedError
        if self._paused:
            raise BlockingIOError
        if self._head == self._tail:
            if self._dry:
                raise BlockingIOError
            if self._tls is None and size >= _DIRECT_BYTES:
                return self._receive_directly(size)
            if not self._fill():
                return b""
        end = min(self._head + size, self._tail)
        data = bytes(self._view[self._head : end])
        self._head = end
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Take all of `data`; it leaves at the end of this turn of the event loop, or as fast as the peer reads."""
        if self._closed or self.error is not None:
            raise ConnectionAbortedError
        if self._tls is None:
            self._out += data
        else:
            self._tls.write(data)
            self._out += self._tls_out.read()
        if self._loop is None or len(self._out) >= _FLUSH_BYTES:
            self._flush()
            if self.error is not None:
                raise self.error
        elif not (self._writing or self._flush_planned):
            self._flush_planned = True
            self._loop.call_soon(self._flush)
        return len(data)

    def close(self) -> None:
        """Close, after trying to send what is left; with `linger` called before, keep the reading half open."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        self._disarm()
        self._wake_drained()
        if self._lingers:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
        else:
            self._close_socket()

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  # the socket's own signature, by which paho calls it
        self._sock.setblocking(flag)

    def settimeout(self, timeout_s: float | None) -> None:
        self._sock.settimeout(timeout_s)

    # ------------------------------------------------------------------------------ what we call

    @property
    def readable(self) -> bool:
        """Whether `recv` may have something."""
        return not (self._closed or self._paused) and (self._head < self._tail or not self._dry)

    @property
    def unsent_bytes(self) -> int:
        """Bytes taken from paho that the kernel has not taken yet."""
        return len(self._out)

    def pause(self) -> None:
        """Read nothing more, not even what is in memory."""
        if not self._paused:
            self._paused = True
            self._arm()

    def resume(self) -> None:
        """Read on, beginning in the next turn of the event loop."""
        if self._paused:
            self._paused = False
            self._arm()
            if self._loop is not None and not self._closed:
                self._loop.call_soon(self._read_on)

    async def drain(self) -> None:
        """Return once the kernel has taken all that was sent, or the stream is closed or broken."""
        while self._out and not self._closed and self.error is None:
            drained = asyncio.get_running_loop().create_future()
            self._drained.append(drained)
            await drained

    def linger(self) -> None:
        """Let the next `close` keep the reading half, for `wait_for_end`."""
        self._lingers = True

    async def wait_for_end(self, timeout_s: float) -> None:
        """After a lingering `close`: read until the peer closes too.

        A socket closed with unread data in it is reset by the kernel, and a reset may overtake the DISCONNECT.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                while data := await loop.sock_recv(self._sock, _READ_BYTES):
                    self._meter.bytes_received += len(data)
        self._close_socket()

    def abort(self) -> None:
        """Close without sending anything more; wakes a thread that is blocked in `recv`."""
        self._out.clear()
        self._lingers = False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.close()
        self._close_socket()

    # ------------------------------------------------------------------------------ the kernel's side

    def _receive_directly(self, size: int) -> bytes:
        data = self._receive(lambda: self._sock.recv(size))
        self._note_received(len(data), asked=size)
        return data

    def _fill(self) -> bool:
        """Refill the empty buffer; False at the end of the stream."""
        if self._tls is None:
            count = self._receive(lambda: self._sock.recv_into(self._buffer))
            self._note_received(count, asked=_READ_BYTES)
            self._head, self._tail = 0, count
            return count > 0
        while True:
            try:
                # Given a buffer, it returns how many bytes it wrote there; typeshed knows bytes only.
                count = cast("int", self._tls.read(_READ_BYTES, self._buffer))
            except ssl.SSLWantReadError:
                data = self._receive(lambda: self._sock.recv(_READ_BYTES))
                self._meter.bytes_received += len(data)
                if data:
                    self._tls_in.write(data)
                else:
                    self._tls_in.write_eof()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self.ended = True
                return False
            except ssl.SSLError as error:
                self.error = error
                raise
            else:
                if self._tls_out.pending:  # the answer to a key update
                    self._out += self._tls_out.read()
                    self._flush()
                self.ended = count == 0  # the peer took leave, as TLS wants it
                self._head, self._tail = 0, count
                return count > 0

    def _note_received(self, count: int, *, asked: int) -> None:
        self.ended = count == 0
        self._meter.bytes_received += count
        # Less than we asked for: the kernel has no more, and trying again would only cost a system call.
        self._dry = count < asked and self._loop is not None

    def _receive(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except BlockingIOError:
            self._dry = True
            raise
        except OSError as error:
            self.error = error
            raise

    def _flush(self) -> None:
        self._flush_planned = False
        while self._out and not self._closed and self.error is None:
            try:
                with memoryview(self._out) as view:
                    count = self._sock.send(view)
            except BlockingIOError:
                break
            except OSError as error:
                self.error = self._alert() or error
                if self._loop is not None:
                    self._loop.call_soon(self._on_broken)
                break
            self._meter.bytes_sent += count
            del self._out[:count]
        if not self._out or self.error is not None:
            self._wake_drained()
        self._arm()

    def _alert(self) -> ssl.SSLError | None:
        """After a write that failed: the alert of TLS that the peer sent before it hung up, which nobody has read."""
        if self._tls is None:
            return None
        with contextlib.suppress(OSError):
            while data := self._sock.recv(_READ_BYTES):
                self._meter.bytes_received += len(data)
                self._tls_in.write(data)
        try:
            while self._tls.read(_READ_BYTES):
                pass
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return None
        except ssl.SSLError as error:
            return error
        return None

    def _read_on(self) -> None:
        if not (self._closed or self._paused):
            self._on_readable()

    def _kernel_readable(self) -> None:
        self._dry = False
        self._read_on()

    def _arm(self) -> None:
        if self._loop is None or self._closed:
            return
        reading, writing = not self._paused, bool(self._out) and self.error is None
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._sock, self._kernel_readable)
            else:
                self._loop.remove_reader(self._sock)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._sock, self._flush)
            else:
                self._loop.remove_writer(self._sock)

    def _disarm(self) -> None:
        if self._loop is not None:
            if self._reading:
                self._loop.remove_reader(self._sock)
            if self._writing:
                self._loop.remove_writer(self._sock)
        self._reading = self._writing = False

    def _wake_drained(self) -> None:
        waiting, self._drained = self._drained, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _close_socket(self) -> None:
        self._sock.close()
