"""The files that survive a restart: what is written reads back, and what is torn is recognised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_edge_agent.core.state import (
    AgentState,
    Link,
    ModelIndex,
    PendingUpdate,
    dump_index,
    dump_state,
    load_index,
    load_state,
)
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import Evaluation, UpdateHeader

HEADER = UpdateHeader(
    run="r1",
    counter=3,
    lease=5,
    base_version=4,
    schema_hash="ab" * 32,
    num_examples=143,
    payload=blob_ref(b"payload"),
    train_s=0.25,
    metrics={"train_loss": 0.5},
    evaluation=Evaluation(version=4, num_examples=20, loss=0.4, metrics={"accuracy": 0.9}),
    traffic=(1, 2),
)
STATE = AgentState(session=1_000, epoch=3, active="r1").with_run(
    "r1",
    counter=3,
    lease=5,
    residual_file="residual-3.bin",
    usual_s=0.5,
    pending=(
        PendingUpdate(header=HEADER.model_copy(update={"traffic": None}), file="update-3.bin"),
    ),  # told when it is sent
)


def link(version: int, *, snapshot: bool = False) -> Link:
    return Link(
        blob="snapshot" if snapshot else "delta",
        version=version,
        ref=blob_ref(bytes(version)),
        chain_hash=bytes([version]) * 32,
        rebase=version == 7,
        replica_hash=bytes(32) if version == 7 else None,
    )


def test_a_state_reads_back() -> None:
    assert load_state(dump_state(STATE)) == STATE
    assert load_state(dump_state(AgentState())) == AgentState()


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_wrong_bit_is_noticed(place: int, bit: int) -> None:
    data = bytearray(dump_state(STATE))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(StoreError):
        load_state(bytes(data))


@given(end=st.integers(0, 10_000))
def test_a_torn_file_is_noticed(end: int) -> None:
    data = dump_state(STATE)
    with pytest.raises(StoreError):
        load_state(data[: end % len(data)])


@given(data=st.binary(max_size=300))
def test_foreign_bytes_are_no_state(data: bytes) -> None:
    with pytest.raises(StoreError):
        load_state(data)


def test_another_version_is_named() -> None:
    data = dump_state(STATE)
    with pytest.raises(StoreError, match="of version 3, and this agent reads 2"):
        load_state(data[:1] + b"\x03" + data[2:])


def test_a_state_of_the_first_version_is_read() -> None:
    first = dump_state(STATE)
    assert load_state(first[:1] + b"\x01" + first[2:]) == STATE


def test_an_index_is_one_chain_or_nothing() -> None:
    chain = ModelIndex(links=(link(5, snapshot=True), link(6), link(7)))
    assert load_index(dump_index(chain)) == chain
    assert [one.file for one in chain.links] == ["base-5.bin", "delta-6.bin", "delta-7.bin"]
    for links in (
        (link(6),),
        (link(5, snapshot=True), link(7)),
        (link(5, snapshot=True), link(6, snapshot=True)),
    ):
        with pytest.raises(StoreError, match="one chain"):
            load_index(dump_index(ModelIndex(links=links)))
