"""The model on its way, event by event: pulled, joined, doubted, fetched anew."""

from __future__ import annotations

import itertools

from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    Ask,
    Effect,
    LoadSnapshot,
    RemoveFiles,
    SaveModelIndex,
    Send,
    StoreBlob,
    Subscribe,
    WriteBlobPart,
)
from fedmq_edge_agent.core.events import Disconnected, ModelLoaded, TrainerRefused
from fedmq_edge_agent.core.state import ModelIndex
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.messages import Get, Report
from tests.edge_agent.core.driven import TOPICS, Device, bodies, of, part_head


def test_a_device_that_was_away_pulls_the_deltas_and_not_the_snapshot(joined: Device) -> None:
    joined.tell(Disconnected("gone"))
    for _ in range(6):
        joined.coordinator.publish()
    joined.connect()
    [subscribe] = of(joined.hear(joined.coordinator.announcement(inline=False)), Subscribe)
    assert subscribe.topics == tuple(TOPICS.chunk("r1", version, "delta", 0) for version in (1, 2, 3, 4))
    effects = joined.fetch()
    loads = of(effects, Ask)
    while joined.agent.desk.trainer.request is not None:
        request = joined.agent.desk.trainer.request
        assert isinstance(request, ApplyDelta)
        loads += of(joined.answer(ModelLoaded("r1", request.version)), Ask)
    assert [ask.request.version for ask in loads] == [1, 2, 3, 4, 5, 6]


def test_never_more_than_four_chunks_are_asked_for(joined: Device) -> None:
    for _ in range(20):
        joined.coordinator.publish()
    joined.hear(joined.coordinator.announcement(inline=False))
    retained = joined.coordinator.retained()
    seen = 0
    while asked := joined.asked():
        assert len(asked) <= 4
        joined.hear((asked[0], retained[asked[0]]))
        seen += 1
    assert seen == 20


def test_a_delta_announced_while_pulling_is_kept_and_joined_later(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    device.coordinator.publish()
    effects = device.hear(device.coordinator.announcement())
    assert len(of(effects, StoreBlob)) == 1
    effects = device.fetch()
    assert {topic for subscribe in of(effects, Subscribe) for topic in subscribe.topics} == {
        TOPICS.chunk("r1", 0, "snapshot", index) for index in (1, 2)
    }
    assert device.agent.desk.following is not None
    assert device.agent.desk.following.replica.held == 1


def test_what_the_broker_does_not_answer_is_asked_of_the_coordinator(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    [get] = [send for send in of(device.wait(2.5), Send) if send.topic.endswith("/get")]
    assert (get.body.version, get.body.blob, get.body.index) == (0, "snapshot", 0)
    answer = device.coordinator.chunks("snapshot", 0)[0]
    effects = device.hear(device.coordinator.seal(TOPICS.down("dev-1", "chunk"), answer))
    assert len(of(effects, WriteBlobPart)) == 1
    # The broker keeps nothing, it seems: the others are asked for both ways at once.
    assert len([send for send in of(effects, Send) if send.topic.endswith("/get")]) == 2


def test_a_model_that_cannot_be_had_is_reported_once_and_asked_for_ever(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    effects = device.wait(600)
    assert [report.code for report in bodies(effects, Report)] == ["model-unreachable"]
    gets = [send for send in of(effects, Send) if send.topic.endswith("/get")]
    assert 10 <= len(gets) <= 20


def test_at_a_rebase_the_chain_on_disk_begins_anew_with_the_snapshot_that_the_trainer_wrote(
    joined: Device,
) -> None:
    joined.coordinator.publish()
    joined.hear(joined.coordinator.announcement())
    joined.answer(ModelLoaded("r1", 1))
    version = joined.coordinator.publish(rebase=True)
    [ask] = of(joined.hear(joined.coordinator.announcement()), Ask)
    assert ask.request.rebase
    assert ask.request.snapshot_file == "base-2.bin"
    assert version.snapshot is not None
    save, remove = joined.answer(ModelLoaded("r1", 2, snapshot=blob_ref(version.snapshot)))
    assert [link.file for link in save.index.links] == ["base-2.bin"]  # type: ignore[union-attr]
    assert remove == RemoveFiles("r1", ("base-0.bin", "delta-1.bin", "delta-2.bin"))


def test_hashes_that_disagree_drop_everything_and_begin_with_the_snapshot(joined: Device) -> None:
    joined.coordinator.publish()
    joined.hear(joined.coordinator.announcement())
    effects = joined.answer(TrainerRefused("bad-model", "other bits"))
    assert of(effects, SaveModelIndex)[0].index == ModelIndex()
    assert of(effects, RemoveFiles) == [RemoveFiles("r1", ("base-0.bin", "delta-1.bin"))]
    topics = {topic for subscribe in of(effects, Subscribe) for topic in subscribe.topics}
    assert topics == {TOPICS.chunk("r1", 0, "snapshot", 0), TOPICS.chunk("r1", 1, "delta", 0)}


def test_a_model_that_never_fits_is_reported_and_tried_ever_later(joined: Device) -> None:
    effects: list[Effect] = []
    joined.coordinator.publish()
    effects += joined.hear(joined.coordinator.announcement())
    times = []
    for _ in range(5):
        effects += joined.answer(TrainerRefused("bad-model", "other bits"))
        times.append(joined.now)
        while not joined.asked():
            effects += joined.wait(0.5)
        effects += joined.fetch()
        while isinstance(joined.agent.desk.trainer.request, LoadSnapshot):
            effects += joined.answer(ModelLoaded("r1", 0))
    assert [report.code for report in bodies(effects, Report)].count("model-unreachable") == 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 8


def test_a_chunk_on_the_wrong_topic_or_with_a_lie_in_it_is_refused(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    chunk = device.coordinator.chunks("snapshot", 0)[0]
    topic = TOPICS.chunk("r1", 0, "snapshot", 0)
    device.hear(device.coordinator.seal(TOPICS.chunk("r1", 0, "snapshot", 1), chunk))
    lies = [
        chunk.model_copy(update={"count": 4}),
        chunk.model_copy(update={"ref": blob_ref(bytes(2_500))}),
        chunk.model_copy(update={"data": chunk.data * 2}),
        chunk.model_copy(update={"chain_hash": bytes(32)}),
    ]
    for lie in lies:
        effects = device.hear(device.coordinator.seal(topic, lie))
        assert of(effects, WriteBlobPart) == []
    assert device.agent.conversation.rejected["model", "bad-chunk"] == 4
    assert device.agent.conversation.rejected["model", "bad-chain"] == 1
    assert len(of(device.hear(device.coordinator.seal(topic, chunk)), WriteBlobPart)) == 1


def test_a_chunk_that_somebody_else_put_on_the_broker_is_asked_of_the_coordinator_at_once(
    device: Device,
) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    topic = TOPICS.chunk("r1", 0, "snapshot", 0)
    packet = bytearray(device.coordinator.retained()[topic])
    packet[len(packet) // 2] ^= 1
    effects = device.hear((topic, bytes(packet)))
    assert bodies(effects, Get) == [Get(run="r1", version=0, blob="snapshot", index=0)]
    [report] = bodies(effects, Report)
    assert report.code == "bad-message"
    assert not bodies(device.hear((topic, bytes(packet))), Get)
    chunk = device.coordinator.chunks("snapshot", 0)[0]
    effects = device.hear(device.coordinator.seal(TOPICS.down("dev-1", "chunk"), chunk))
    assert of(effects, WriteBlobPart) == [WriteBlobPart("r1", part_head(chunk), 0, chunk.data)]
