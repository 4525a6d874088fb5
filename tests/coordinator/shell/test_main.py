"""A whole coordinator over a real Mosquitto: it trains, survives, fences, and is not disturbed by garbage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedmq_broker.runner import RunningBroker
from fedmq_coordinator.shell.main import run_coordinator
from fedmq_coordinator.shell.service import HaltedError
from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import Hello, Status
from fedmq_protocol.signing import SigningKey, load_or_create_key
from fedmq_protocol.topics import Topics
from tests.broker_fixtures import Connect, next_message
from tests.coordinator.shell.doubles import (
    PLAIN,
    SIZE,
    TARGET,
    FakeModelHost,
    VirtualDevice,
    coordinator,
    eventually,
    loss_of,
)

TOPICS = Topics("home")


async def test_a_run_converges_as_the_closed_form_says(mosquitto: RunningBroker, tmp_path: Path) -> None:
    devices = [VirtualDevice(f"dev-{number}", mosquitto.url) for number in range(3)]
    async with (
        contextlib.AsyncExitStack() as stack,
        coordinator(tmp_path / "state", mosquitto.url) as running,
    ):
        for device in devices:
            await stack.enter_async_context(device.online())
        settings = {"selection": {"min_available_devices": 3}}
        assert await running.ask("start_run", "find.py", settings=settings) == "find-1"
        view = await running.until("find-1", "finished")
        assert (view.round, view.version, view.accepted, view.rejected) == (3, 3, 9, 0)
        report = await running.ask("report", "find-1")
        model = tmp_path / "model"
        for version in range(4):
            await running.ask("download_model", "find-1", model, version=version)
            vector = np.frombuffer(model.read_bytes(), dtype=np.float32)
            assert_allclose(vector, TARGET * (1 - 0.5**version), rtol=1e-5, atol=1e-6)
        await running.ask("download_model", "find-1", model, version="best")
        assert_allclose(np.frombuffer(model.read_bytes(), dtype=np.float32), TARGET * 0.875, rtol=1e-5)
        for device in devices:
            await device.receives(3)
    assert [len(device.receipts) for device in devices] == [3, 3, 3]
    assert {receipt.outcome for device in devices for receipt in device.receipts} == {"accepted"}
    assert_allclose(
        [row.loss for row in report.rounds], [loss_of(TARGET * (1 - 0.5**k)) for k in (1, 2, 3)], rtol=1e-4
    )
    assert report.initial_loss == pytest.approx(loss_of(np.zeros(SIZE, dtype=np.float32)))
    assert [row.federated_loss for row in report.rounds[:2]] == pytest.approx(
        [row.loss for row in report.rounds[:2]]
    )
    assert [row.participants for row in report.rounds] == [["dev-0", "dev-1", "dev-2"]] * 3
    assert report.totals.participation_rate == 1.0
    assert report.totals.staleness == {0: 9}
    assert report.totals.bytes_up > 9 * 4 * SIZE
    assert running.host.closed


async def test_what_a_start_finds_is_said_in_a_line(
    mosquitto: RunningBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with coordinator(tmp_path, mosquitto.url) as running:
        assert (
            f"a new journal in {tmp_path}/journal.sqlite; the API listens at http://127.0.0.1:" in caplog.text
        )
        assert f"broker {mosquitto.url}" in caplog.text
        await running.connected()  # a run begins with a broker
        await running.ask("start_run", "find.py", name="r")
    caplog.clear()
    async with coordinator(tmp_path, mosquitto.url):
        assert re.search(
            r"resumed run r at round 0, no round open; journal of ([45]) facts since 2.*; "
            r"checkpoint of fact \1 of 2.* and 0 facts after it, in [0-9.]+ s;",
            caplog.text,
        )


async def test_a_restart_goes_on_in_the_same_round_with_the_same_buffer(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    first, second = (VirtualDevice(f"dev-{number}", mosquitto.url) for number in range(2))
    second.trains = False
    async with contextlib.AsyncExitStack() as stack:
        async with coordinator(tmp_path, mosquitto.url) as running:
            for device in (first, second):
                await stack.enter_async_context(device.online())
            await running.ask("start_run", "find.py", name="r")
            view = await eventually(lambda: running.ask("run", "r"), lambda view: view.updates_in_buffer == 1)
            assert "dev-1" in view.waiting
            before = (view.round, view.updates_in_buffer, view.goal)
        async with coordinator(tmp_path, mosquitto.url) as running:
            assert (await running.ask("status")).epoch == 2
            view = await running.ask("run", "r")
            assert (view.round, view.updates_in_buffer, view.goal) == before
            second.trains = True
            second._lease = 0  # it trains under the lease that is still its own
            await running.connected()
            await second.say(TOPICS.up("dev-1", "hello"), Hello())
            view = await running.until("r", "finished")
            report = await running.ask("report", "r")
            await first.receives(3)
    assert [row.participants for row in report.rounds] == [["dev-0", "dev-1"]] * 3
    assert_allclose(report.rounds[-1].loss, loss_of(TARGET * 0.875), rtol=1e-4)
    assert {receipt.counter: receipt.outcome for receipt in first.receipts} == dict.fromkeys(
        (1, 2, 3), "accepted"
    )


async def test_garbage_on_every_topic_disturbs_nothing(
    mosquitto: RunningBroker, tmp_path: Path, connect: Connect
) -> None:
    vandal = await connect(mosquitto.url, "vandal")
    sealer = Sealer(sender="dev-9", epoch=2**52, key=SigningKey(bytes(32)))
    topics = [
        TOPICS.coordinator_status,
        TOPICS.presence("dev-0"),
        TOPICS.presence("dev-9"),
        TOPICS.presence("nobody"),
    ]
    topics += [f"{TOPICS.root}/dev/{device}/up/{kind}" for device in ("dev-0", "dev-9", "BAD ID") for kind in (
        "hello", "update", "offer", "chunk", "report", "get", "nonsense",
    )]  # fmt: skip
    forged = Status(online=True, session=2**52, public_key=bytes(32))
    payloads = [b"\xff" * 40, b"\x00", os.urandom(2_000), b"\x93" * 30_000, sealer.seal(topics[0], forged)]
    devices = [VirtualDevice(f"dev-{number}", mosquitto.url) for number in range(2)]
    async with contextlib.AsyncExitStack() as stack, coordinator(tmp_path, mosquitto.url) as running:
        await running.connected()
        for payload in payloads:
            for topic in topics:
                await vandal.publish(topic, payload, retain=topic.endswith(("presence", "status")))
        for device in devices:
            await stack.enter_async_context(device.online())
        await running.ask("start_run", "find.py", name="r")
        for payload in payloads:
            for topic in topics:
                if not topic.endswith(
                    "presence"
                ):  # a retained birth certificate could be overwritten by anyone
                    await vandal.publish(topic, payload)
        view = await running.until("r", "finished")
        assert view.accepted == 6
        await eventually(
            lambda: running.ask("status"), lambda status: sum(status.rejections.values()) > len(topics)
        )


async def test_a_newer_coordinator_of_the_same_key_ends_the_older(
    mosquitto: RunningBroker, tmp_path: Path, connect: Connect
) -> None:
    newer = await connect(mosquitto.url, "newer")

    async def overtaken() -> None:
        async with coordinator(tmp_path, mosquitto.url) as running:
            await eventually(lambda: _retained_status(connect, mosquitto), lambda seen: seen == (True, 1))
            sealer = Sealer(sender="coordinator", epoch=7, key=load_or_create_key(tmp_path / "key"))
            status = Status(online=True, session=7, public_key=sealer.public_key)
            payload = sealer.seal(TOPICS.coordinator_status, status)
            await newer.publish(TOPICS.coordinator_status, payload, retain=True)
            await asyncio.wait([running.task], timeout=60)

    with pytest.raises(HaltedError, match="taken over, with epoch 7"):
        await overtaken()
    assert await _retained_status(connect, mosquitto) == (True, 7)  # the older one did not write over it


async def test_the_broker_is_told_of_start_stop_and_death(
    mosquitto: RunningBroker, tmp_path: Path, connect: Connect
) -> None:
    async with coordinator(tmp_path, mosquitto.url) as running:
        await running.connected()
        await eventually(lambda: _retained_status(connect, mosquitto), lambda seen: seen == (True, 1))
    await eventually(lambda: _retained_status(connect, mosquitto), lambda seen: seen == (False, 1))
    async with coordinator(tmp_path, mosquitto.url):
        await eventually(lambda: _retained_status(connect, mosquitto), lambda seen: seen == (True, 2))


async def test_an_unreachable_broker_is_waited_for_with_the_api_up(
    start: Callable[..., RunningBroker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else gets it
        port = reserved.getsockname()[1]
        async with coordinator(tmp_path / "state", f"mqtt://127.0.0.1:{port}") as running:
            await running.ask("start_run", "find.py", name="r")
            view = await eventually(
                lambda: running.ask("run", "r"), lambda view: "no broker at" in view.waiting
            )
            assert "broker" in view.waiting
            assert not (await running.ask("status")).broker_connected
            assert f"127.0.0.1:{port}" in caplog.text
            reserved.close()
            start(port=port, state_dir=tmp_path / "late-broker")
            await running.connected()
            assert "2 devices" in (await running.ask("run", "r")).waiting


async def test_a_second_coordinator_on_one_folder_is_refused_at_once(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    async with coordinator(tmp_path, mosquitto.url) as running:
        host = FakeModelHost()
        with pytest.raises(StoreError, match=rf"another coordinator \(pid {os.getpid()}\) holds"):
            await run_coordinator(running.settings, model_host=host)
        assert host.closed
        await running.ask("status")


async def test_an_evaluation_that_fails_does_not_hold_up_the_run(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    host = FakeModelHost()
    host.breaks = RuntimeError("out of memory")
    devices = [VirtualDevice(f"dev-{number}", mosquitto.url) for number in range(2)]
    async with (
        contextlib.AsyncExitStack() as stack,
        coordinator(tmp_path, mosquitto.url, host=host) as running,
    ):
        for device in devices:
            await stack.enter_async_context(device.online())
        await running.ask("start_run", "find.py", name="r")
        view = await running.until("r", "finished")
        assert view.version == PLAIN.rounds
        assert view.evaluations == []


async def _retained_status(connect: Connect, broker: RunningBroker) -> tuple[bool, int]:
    """What a newcomer is told of the coordinator."""
    watcher = await connect(broker.url, f"watcher-{os.urandom(4).hex()}")
    await watcher.subscribe([TOPICS.coordinator_status])
    message = await next_message(watcher.events(), timeout_s=60.0)
    body = open_envelope(message.topic, message.payload).body
    assert isinstance(body, Status)
    await watcher.stop()
    return body.online, body.session
