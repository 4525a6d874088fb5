"""Conversations with one device, packet by packet, as questions that are to be asked in their order.

The first takes two rounds. The model has 136 parameters. Two versions are published after the first, one of them a
rebase; one update is refused and restored, one is delivered over a second and a third connection, to a coordinator that
has started anew. In between come an echo, a packet of an epoch that is over, and a lease that was used.

The second is about what is large or wrong: a device that comes late fetches a snapshot and deltas in chunks, its update
does not fit into a packet and goes in chunks over two connections, and two announcements contradict themselves.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from fedmq_protocol.messages import Credit, Lease, UploadSettings
from fedmq_protocol.schema import TensorEntry, TensorSchema
from tests.protocol.codecs.make_vectors import wave
from tests.protocol.vectors.form import DEVICE, Case, Plain, Vector
from tests.protocol.vectors.model_cases import PLAIN_SCHEMA
from tests.protocol.vectors.script import RUN, TOPICS, Message, Script

LARGER_SCHEMA: Final = TensorSchema(
    entries=(TensorEntry(name="w", shape=(20, 20), dtype="float32", role="parameter"),)
)
SMALL_PACKETS: Final = 3_072
"""Of which 2,048 bytes are left for all but a chunk's data."""


def conversation_cases() -> list[Case]:
    """Both conversations."""
    return [*two_rounds(), *large_and_wrong()]


def _change(n: int, start: int, divisor: float) -> Vector:
    return np.ascontiguousarray(wave(n + start)[start:] / np.float32(divisor)).astype(np.float32)


def two_rounds() -> list[Case]:
    """An ordinary life, with the accidents that belong to it."""
    upload = UploadSettings(codec="topk-sign", density=0.1, first_density=0.1)
    script = Script(PLAIN_SCHEMA, upload, chunk_bytes=100)
    n = PLAIN_SCHEMA.num_parameters
    first_change, second_change = _change(n, 3, 32), _change(n, 9, 64)
    first_update, second_update = script.update(1, 1, 0), script.update(2, 2, 1)
    script.begin("a device with a key, and nothing else")
    script.connect("it connects and introduces itself", 8)
    announcement = script.announcement(lease=1)
    script.hear("an announcement, before the coordinator's key is known", announcement, retained=True)
    script.hear("the status: the key is pinned", script.status(), retained=True)
    by_hand = script.announcement(lease=1, topic=TOPICS.down(DEVICE, "announcement"))
    script.hear("the announcement again, as the answer to a hello", by_hand)
    script.serve("the broker has the snapshot: version 0 is there, and trained on", trains=script.trains())
    script.hear("a chunk again", script.retained()[0], retained=True)
    script.state("before anything is trained", [], np.zeros(n, np.float32))
    script.trained("trained: the first update", first_change, first_update)
    script.state("the update waits for its receipt", [1])
    refusal = script.receipt(1, accepted=False)
    script.hear("the update is refused, and is to be restored", refusal)
    script.state("all of it is in the residual", [], first_change)
    script.hear("the same receipt again", refusal)
    script.state("and nothing is added twice", [], first_change)
    script.publish((script.replica + first_change).astype(np.float32))
    second = script.announcement(lease=2)
    script.hear("version 1 comes along with its announcement", second, retained=True, trains=script.trains())
    script.hear("the announcement again", second, retained=True)
    script.hear("the announcement before it", announcement)
    script.trained("trained: the second update", second_change, second_update)
    script.ask("the connection breaks", "lose")
    script.connect("another one: presence first, then what has no receipt", 9, second_update)
    old = script.receipt(2, accepted=True)
    script.start_anew()
    script.hear(
        "the coordinator has started anew",
        script.status(),
        retained=True,
        says=[script.presence(9), second_update],
    )
    script.hear("a receipt of the epoch that is over", old)
    script.state("is not believed", [2])
    script.ask("the device is killed, and starts with what it kept", "restart")
    script.connect("it connects", 10, second_update)
    script.hear("the status again", script.status(), retained=True, may_say=["update"])
    script.hear(
        "the announcement, of the new epoch; version 1 is on disk, its lease was used",
        script.announcement(lease=2),
        retained=True,
        may_say=["update"],
    )
    script.hear("a receipt: accepted", script.receipt(2, accepted=True))
    script.state("nothing waits any more", [])
    script.publish((script.replica + second_change).astype(np.float32), rebase=True)
    lease = Lease(run=RUN, lease=2, version=1, lease_s=60.0)
    script.hear("a lease that it has trained for", script.seal(TOPICS.down(DEVICE, "lease"), lease))
    third = script.announcement(lease=3)
    script.hear("version 2, a rebase, and a third lease", third, retained=True, trains=script.trains())
    script.state("it holds the rebased bits", [])
    script.hear("the run is over", script.announcement(state="finished"), retained=True)
    return script.cases


def _noise(n: int) -> Vector:
    """Numbers that no compressor shortens by much, from SHA-256: between -1/32 and 1/32."""
    words = b"".join(hashlib.sha256(bytes([i // 256, i % 256])).digest()[:4] for i in range(n))
    whole = np.frombuffer(words, "<i4").astype(np.float64)
    return (whole / 2.0**36).astype(np.float32)


def _credit(script: Script, have: int, window: int) -> Message:
    body = Credit(run=RUN, counter=5, have=bytes([have]), window=window)
    return script.seal(TOPICS.down(DEVICE, "credit"), body)


def _upload_chunk(index: int) -> Plain:
    body = {"run": RUN, "counter": 5, "index": index}
    return {"topic": TOPICS.up(DEVICE, "chunk"), "kind": "upload_chunk", "body": body}


def large_and_wrong() -> list[Case]:
    """Chunks both ways, and hashes that disagree."""
    upload = UploadSettings(codec="float32", density=1.0, first_density=1.0)
    script = Script(LARGER_SCHEMA, upload, chunk_bytes=150)
    n = LARGER_SCHEMA.num_parameters
    for start in (3, 9):
        script.publish((script.replica + _change(n, start, 32)).astype(np.float32))
    offer = {
        "topic": TOPICS.up(DEVICE, "offer"),
        "kind": "offer",
        "body": {"header": script.header(5, 5, 2), "chunk_bytes": 1_024},
    }
    script.begin("another device, on which nothing is kept")
    script.connect("it connects to a broker that takes small packets", 20, max_packet_bytes=SMALL_PACKETS)
    script.hear("the coordinator is there", script.status(), retained=True)
    first = TOPICS.chunk(RUN, 0, "snapshot", 0)
    late = script.announcement(lease=5, inline_delta=None)
    script.hear("a run at version 2, with its snapshot at 0", late, retained=True, subscribes=[first])
    script.serve("the broker has the chunks of the snapshot and of two deltas", trains=script.trains())
    script.state("it has caught up", [], np.zeros(n, np.float32))
    script.trained("the update does not fit into a packet: it is offered", _noise(n), offer)
    credit = _credit(script, 0b00, 1)
    script.hear("a credit for one chunk", credit, says=[_upload_chunk(0)])
    script.hear("the same credit again", credit)
    script.hear("a credit that has the first one", _credit(script, 0b01, 1), says=[_upload_chunk(1)])
    script.ask("the connection breaks", "lose")
    script.connect("it offers again", 21, offer, max_packet_bytes=SMALL_PACKETS)
    script.hear("a credit that says: not now", _credit(script, 0b00, 0))
    script.hear("a credit that lacks the second chunk", _credit(script, 0b01, 4), says=[_upload_chunk(1)])
    script.hear(
        "a receipt for another update of its number", script.receipt(5, accepted=True, digest=bytes(8))
    )
    script.state("is for none that is here", [5])
    script.hear("a receipt: accepted", script.receipt(5, accepted=True))
    script.state("nothing waits any more, and all has been sent", [], np.zeros(n, np.float32))
    held = script.replica.copy()
    script.publish((script.replica + _change(n, 5, 32)).astype(np.float32))
    assert script.delta is not None
    damaged = script.announcement(inline_delta=script.delta[:-1] + bytes([script.delta[-1] ^ 1]))
    script.hear("an announcement whose delta is not the one that it pins", damaged, may_say=["report"])
    after, script.replica, script.version = script.replica, held, 2
    script.state("is not applied", [])
    script.replica, script.version = after, 3
    script.hear("version 3, as it should be", script.announcement(), retained=True)
    script.state("is", [])
    script.publish((script.replica + _change(n, 7, 32)).astype(np.float32))
    lie = script.manifest.model_copy(update={"chain_hash": bytes(32)})
    script.hear(
        "version 4 with a chain hash that does not follow: it starts over",
        script.announcement(manifest=lie),
        retained=True,
        subscribes=[first],
    )
    script.hear("version 4, as it should be", script.announcement(), retained=True)
    script.serve("the broker still has the snapshot and the deltas")
    script.state("all is well again", [])
    return script.cases
