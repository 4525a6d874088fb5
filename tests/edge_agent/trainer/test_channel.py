"""Frames over a socket, whole, cut and wrong."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_edge_agent.trainer import channel
from fedmq_edge_agent.trainer.channel import ChannelError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
MESSAGES = st.dictionaries(st.text(), VALUES, max_size=5).map(lambda body: {**body, "id": 1})


@given(st.lists(MESSAGES, max_size=4))
def test_what_is_sent_is_read(messages: list[dict[str, Any]]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def send() -> None:
            for message in messages:
                ours.sendall(channel.pack(message))
            ours.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = []
        while (message := channel.read(theirs)) is not None:
            received.append(message)
        sender.join()
    assert received == messages


def _broken() -> list[bytes]:
    whole = channel.pack({"id": 1, "op": "ping"})
    cut = [whole[:length] for length in range(1, len(whole))]
    bodies = [b"", b"\xc1", b"\x90", b"\x80", b"\x81\xa1x", b"\x81\xa2id\xa1x"]
    wrong = [len(body).to_bytes(4, "big") + body for body in bodies]
    return [*cut, *wrong, b"\xff\xff\xff\xff"]


@pytest.mark.parametrize("data", _broken())
async def test_a_broken_frame_raises_on_both_kinds_of_reader(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.close()
        with pytest.raises(ChannelError):
            channel.read(theirs)
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    with pytest.raises(ChannelError):
        await channel.read_async(reader)


async def test_a_closed_channel_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        assert channel.read(theirs) is None
    reader = asyncio.StreamReader()
    reader.feed_eof()
    assert await channel.read_async(reader) is None


def test_a_frame_has_a_bound() -> None:
    with pytest.raises(ChannelError, match="longer than"):
        channel.pack({"id": 1, "blob": bytes(channel.MAX_FRAME_BYTES)})
