"""What goes out, and in what order: an upload does not keep anything else waiting."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from fedmq_edge_agent.core.effects import Send, SendUpdate, SendUploadChunk, Unsubscribe
from fedmq_edge_agent.shell.disk import Disk
from fedmq_edge_agent.shell.post import Post
from fedmq_protocol.aio import Connection, Traffic
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.messages import Hello, Presence, UploadChunk
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.edge_agent.core.test_state import HEADER

TOPICS = Topics("home")
KEY = SigningKey(b"d" * 32)
PAYLOAD = bytes(10_000)


class SlowLink:
    """A connection on which nothing is acknowledged before the test says so."""

    def __init__(self) -> None:
        self.published: list[str] = []
        self.acknowledge = asyncio.Semaphore(0)
        self.traffic = Traffic(0, 0)
        self.news = asyncio.Event()

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        body = open_envelope(topic, payload).body
        self.published.append(f"chunk {body.index}" if isinstance(body, UploadChunk) else type(body).__name__)
        self.news.set()
        await self.acknowledge.acquire()

    async def unsubscribe(self, topics: tuple[str, ...]) -> None:
        self.published.append(f"unsubscribe {topics[0]}")
        self.news.set()

    async def until(self, *expected: str) -> None:
        async with asyncio.timeout(10):
            while self.published != list(expected):
                self.news.clear()
                await self.news.wait()


@pytest.fixture
def link() -> SlowLink:
    return SlowLink()


@pytest.fixture
async def post(link: SlowLink, tmp_path: Path) -> AsyncIterator[Post]:
    disk = Disk(tmp_path)
    disk.run_dir("r1").mkdir()
    (disk.run_dir("r1") / "update-1.bin").write_bytes(PAYLOAD)
    made = Post(
        cast("Connection", link),
        topics=TOPICS,
        device="dev-1",
        key=KEY,
        disk=disk,
        payload_lost=lambda *_: pytest.fail("the file is there"),
    )
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    disk.close()


def chunk(index: int) -> SendUploadChunk:
    return SendUploadChunk("r1", 1, index, "update-1.bin", 1_000 * index, 1_000, blob_ref(PAYLOAD))


def hello() -> Send:
    return Send(TOPICS.up("dev-1", "hello"), Hello())


def presence() -> Send:
    body = Presence(online=True, session=1, public_key=KEY.public_key)
    return Send(TOPICS.presence("dev-1"), body, retain=True)


async def test_presence_and_requests_overtake_a_large_upload(post: Post, link: SlowLink) -> None:
    for index in range(10):
        post.put(chunk(index))
    await link.until("chunk 0")
    post.put(presence())
    await link.until("chunk 0", "Presence")
    post.put(hello())
    link.acknowledge.release()
    await link.until("chunk 0", "Presence", "chunk 1")
    link.acknowledge.release()
    await link.until("chunk 0", "Presence", "chunk 1", "Hello")


async def test_one_chunk_is_under_way_at_a_time(post: Post, link: SlowLink) -> None:
    for index in (0, 1, 1, 2):
        post.put(chunk(index))
    await link.until("chunk 0")
    link.acknowledge.release()
    await link.until("chunk 0", "chunk 1")
    link.acknowledge.release()
    await link.until("chunk 0", "chunk 1", "chunk 2")


async def test_a_lost_connection_drops_what_was_to_be_said_and_keeps_what_was_to_be_forgotten(
    post: Post, link: SlowLink
) -> None:
    for index in range(3):
        post.put(chunk(index))
    post.put(hello())
    await link.until("Hello", "chunk 0")
    post.put(presence())
    post.put(Unsubscribe(("a/b",)))
    post.connection_lost()
    link.acknowledge.release()
    link.acknowledge.release()
    await link.until("Hello", "chunk 0", "unsubscribe a/b")


async def test_what_is_under_way_is_not_queued_behind_itself(post: Post, link: SlowLink) -> None:
    update = SendUpdate(HEADER.model_copy(update={"payload": blob_ref(PAYLOAD)}), "update-1.bin")
    post.put(update)
    post.put(chunk(0))
    await link.until("Update", "chunk 0")
    for again in (update, chunk(0), chunk(1), hello()):
        post.put(again)
    for _ in range(2):
        link.acknowledge.release()
    async with asyncio.timeout(10):
        while len(link.published) < 4:
            link.news.clear()
            await link.news.wait()
    assert sorted(link.published[2:]) == ["Hello", "chunk 1"]
    for _ in range(2):
        link.acknowledge.release()
    post.put(chunk(0))  # it was not received, and is wanted again
    await link.until(*link.published[:4], "chunk 0")


async def test_what_was_under_way_on_a_lost_connection_may_be_sent_again(post: Post, link: SlowLink) -> None:
    post.put(chunk(0))
    await link.until("chunk 0")
    post.connection_lost()
    post.put(chunk(0))
    link.acknowledge.release()
    await link.until("chunk 0", "chunk 0")


@pytest.mark.parametrize("outgoing", ["update", "chunk"])
async def test_an_update_is_not_lost_for_want_of_descriptors(
    post: Post, link: SlowLink, outgoing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = SendUpdate(HEADER.model_copy(update={"payload": blob_ref(PAYLOAD)}), "update-1.bin")
    send = update if outgoing == "update" else chunk(0)
    opened: list[Path] = []

    def refuse(path: Path, *_: object) -> None:
        opened.append(path)
        link.news.set()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        post.put(send)
        async with asyncio.timeout(10):
            await link.news.wait()
    post.put(hello())  # what comes after it goes out
    await link.until("Hello")
    post.put(send)  # as the outbox does after a while
    link.acknowledge.release()
    await link.until("Hello", "Update" if outgoing == "update" else "chunk 0")
    assert opened
