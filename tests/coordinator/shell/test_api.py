"""The API over real HTTP: what it refuses, in one line and with the right status, and what its client makes of that."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from fedmq_broker.runner import RunningBroker
from fedmq_coordinator.core.facts import Fact
from fedmq_coordinator.core.views import FederationView
from fedmq_coordinator.shell import api
from fedmq_coordinator.shell.api_server import load_or_create_token
from fedmq_coordinator.shell.client import Client, NoCoordinatorError
from fedmq_coordinator.shell.main import run_coordinator
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_bulk import DroppedError
from fedmq_protocol.errors import StoreError, UsageError
from tests.coordinator.shell.doubles import FakeModelHost, RunningCoordinator, coordinator

NOWHERE = "mqtt://127.0.0.1:9"
"""The API needs no broker."""


async def call(
    running: RunningCoordinator, method: str, path: str, *, token: str | None = None, **options: Any
) -> httpx.Response:
    """A request of our own making."""
    if token is None:
        token = (running.settings.state_dir / "api-token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}".encode(), **options.pop("headers", {})}
    async with httpx.AsyncClient(base_url=running.client.url, trust_env=False, timeout=60.0) as http:
        return await http.request(method, path, headers=headers, **options)


async def test_only_the_bearer_of_the_token_is_let_in(tmp_path: Path) -> None:
    async with coordinator(tmp_path, NOWHERE) as running:
        for token in ("wrong", "ä" * 43):
            for path in ("/api/v1/status", "/api/v1/nonsense", "/api/v1/openapi.json"):
                answer = await call(running, "GET", path, token=token, headers={})
                assert answer.status_code == 401
                assert answer.json() == {
                    "detail": "show the token of this coordinator: the text in <state_dir>/api-token"
                }
        async with httpx.AsyncClient(trust_env=False, timeout=60.0) as http:
            assert (await http.get(f"{running.client.url}/api/v1/runs")).status_code == 401
        assert (await call(running, "GET", "/api/v1/status")).status_code == 200
    for name in ("api-token", "key", "lock"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


async def test_the_schema_names_itself_and_every_route(tmp_path: Path) -> None:
    async with coordinator(tmp_path, NOWHERE) as running:
        schema = (await call(running, "GET", "/api/v1/openapi.json")).json()
    assert schema["info"]["title"] == "fedmq coordinator"
    assert set(schema["paths"]) == {
        "/api/v1/status",
        "/api/v1/watch",
        "/api/v1/devices",
        "/api/v1/runs",
        "/api/v1/runs/{run}",
        "/api/v1/runs/{run}/stop",
        "/api/v1/runs/{run}/report",
        "/api/v1/runs/{run}/model",
    }


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({}, 422, "task: field required"),
        ({"task": "/t/broken.py"}, 422, "/t/broken.py:3: NameError: name 'nm' is not defined"),
        ({"task": "find.py", "name": "UPPER"}, 422, "run 'UPPER' is not usable: 1 to 64 of a-z"),
        ({"task": "find.py", "name": "../../etc"}, 422, "run '../../etc' is not usable"),
        ({"task": "find.py", "name": "taken"}, 409, "there is a run 'taken' already: choose another name"),
        ({"task": "find.py", "color": "red"}, 422, "color: extra inputs are not permitted"),
        ({"task": "find.py", "settings": {"rounds": 0}}, 422, "settings.rounds: input should be greater"),
        ({"task": "find.py", "settings": {"strategy": {"alpha": 2}}}, 422, "settings.strategy.alpha: input should"),
        ({"task": "find.py", "settings": {"train": {"lr": "fast"}}}, 422, "settings.train.lr: input should be a"),
        ({"task": "find.py", "settings": {"strategie": {}}}, 422, "settings.strategie: extra inputs are not permitted"),
        ({"task": "find.py", "settings": {"strategy": 5}}, 422, "settings.strategy: input should be a valid"),
        ({"task": "find.py", "checkpoint": "/no/such"}, 422, "there is no checkpoint '/no/such'"),
        ([], 422, "input should be a valid"),
    ],
)  # fmt: skip
async def test_a_run_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, body: object, status: int, detail: str
) -> None:
    async with coordinator(tmp_path, NOWHERE) as running:
        await running.ask("start_run", "find.py", name="taken")
        answer = await call(running, "POST", "/api/v1/runs", json=body)
        assert answer.status_code == status
        said = answer.json()["detail"]
        assert said.startswith(detail)
        assert "\n" not in said
        assert [view.run for view in await running.ask("runs")] == ["taken"]


async def test_settings_go_over_the_coordinators_defaults_table_by_table(tmp_path: Path) -> None:
    async with coordinator(tmp_path, NOWHERE) as running:
        given = {"mode": "fedbuff", "strategy": {"server_lr": 0.5}, "train": {"extra": {"depth": 3}}}
        run = await running.ask("start_run", "find.py", settings=given)
        settings = (await running.ask("run", run)).settings
    assert settings.mode == "fedbuff"
    assert (settings.strategy.server_lr, settings.strategy.alpha) == (0.5, 0.6)
    assert settings.train.extra == {"depth": 3}
    assert settings.compression == running.settings.run.compression


async def test_names_count_on_and_are_found_again_after_a_restart(tmp_path: Path) -> None:
    async with coordinator(tmp_path, NOWHERE) as running:
        names = await asyncio.gather(*(running.ask("start_run", "find.py") for _ in range(3)))
        assert sorted(names) == ["find-1", "find-2", "find-3"]
    async with coordinator(tmp_path, NOWHERE) as running:
        assert await running.ask("start_run", "find.py") == "find-4"
        status = await running.ask("status")
        assert (status.epoch, status.queued_runs) == (2, [*status.queued_runs[:3], "find-4"])


async def test_stop_ends_a_run_and_the_next_begins(mosquitto: RunningBroker, tmp_path: Path) -> None:
    async with coordinator(tmp_path, mosquitto.url) as running:
        await running.connected()
        for name in ("a", "b"):
            await running.ask("start_run", "find.py", name=name)
        view = await running.ask("stop_run", "a")
        assert (view.state, view.end_reason) == ("stopped", "stopped by the operator")
        assert (await running.ask("status")).active_run == "b"
        report = await running.ask("report", "a")
        assert (report.state, report.reason) == ("stopped", "stopped by the operator")


async def test_a_report_has_all_that_was_shown_before_it_was_asked_for(
    mosquitto: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, append = threading.Event(), Journal.append

    def append_later(journal: Journal, facts: Sequence[Fact]) -> None:
        assert may_write.wait(100)
        append(journal, facts)

    async with coordinator(tmp_path, mosquitto.url) as running:
        await running.connected()
        running.host.may_evaluate.clear()  # no evaluation is to be journaled before the end is decided
        await running.ask("start_run", "find.py", name="r")
        monkeypatch.setattr(Journal, "append", append_later)
        stopping = asyncio.create_task(running.ask("stop_run", "r"))
        await running.until("r", "stopped")
        asked = asyncio.create_task(running.ask("report", "r"))
        model = asyncio.create_task(call(running, "GET", "/api/v1/runs/r/model"))
        done, _ = await asyncio.wait([stopping, asked, model], timeout=0.3)
        assert not done
        may_write.set()
        assert (await asked).state == "stopped"
        assert (await model).status_code == 200
        await stopping


async def test_a_monitor_gets_all_of_one_moment(mosquitto: RunningBroker, tmp_path: Path) -> None:
    async with coordinator(tmp_path, mosquitto.url) as running:
        await running.connected()  # a run begins with a broker
        before = await asyncio.to_thread(running.client.watch)
        assert before.run is None
        assert before.tally.steps["deadline"] == before.tally.updates_accepted == 0
        first = await asyncio.to_thread(running.client.start_run, "find.py")
        second = await asyncio.to_thread(running.client.start_run, "find.py")
        told = await asyncio.to_thread(running.client.watch)
    assert told.run is not None
    assert (told.federation.active_run, told.run.run) == (first, first)
    assert told.federation.queued_runs == [second]
    assert (told.run.round_open, told.run.round_age_s, told.run.closes_in_s) == (False, None, None)


async def test_unknown_runs_and_versions_are_404(mosquitto: RunningBroker, tmp_path: Path) -> None:
    async with coordinator(tmp_path, mosquitto.url) as running:
        await running.connected()
        await running.ask("start_run", "find.py", name="r")
        await running.ask("start_run", "find.py", name="queued")
        for method, path in [
            ("GET", "/api/v1/runs/nobody"),
            ("POST", "/api/v1/runs/nobody/stop"),
            ("GET", "/api/v1/runs/nobody/report"),
            ("GET", "/api/v1/runs/nobody/model"),
        ]:
            answer = await call(running, method, path)
            assert (answer.status_code, answer.json()["detail"]) == (
                404,
                "there is no run 'nobody'; `fedmq run ls` lists them",
            )
        for version, status in [
            ("7", 404),
            ("-1", 422),
            ("newest", 422),
            ("0" * 30, 422),
            ("0", 200),
            ("latest", 200),
        ]:
            answer = await call(running, "GET", "/api/v1/runs/r/model", params={"version": version})
            assert answer.status_code == status, version
        assert (await call(running, "GET", "/api/v1/runs/queued/model")).status_code == 409
        assert (await call(running, "GET", "/api/v1/nonsense")).status_code == 404


async def test_bodies_have_a_bound_and_must_be_json(tmp_path: Path) -> None:
    async with coordinator(tmp_path, NOWHERE) as running:

        async def endless() -> Any:
            yield b" " * 1000

        for content in (b" " * 2_000_000, endless()):
            assert (await call(running, "POST", "/api/v1/runs", content=content)).status_code == 413
        answer = await call(running, "POST", "/api/v1/runs", content=b"{no json")
        assert answer.status_code == 422
        assert "\n" not in answer.json()["detail"]


class TestClient:
    async def test_says_how_to_start_a_coordinator_where_there_is_none(self, tmp_path: Path) -> None:
        said = f"no coordinator is running on {tmp_path}: start one with `fedmq coordinator start --config …`"
        with pytest.raises(NoCoordinatorError, match="no coordinator is running") as raised:
            Client(tmp_path)
        assert str(raised.value) == said
        async with coordinator(tmp_path, NOWHERE) as running:
            left_behind = (tmp_path / "api.json").read_text()
            assert json.loads(left_behind) == {"url": running.client.url, "pid": os.getpid()}
        assert not (tmp_path / "api.json").exists()
        (tmp_path / "api.json").write_text(left_behind)  # as after a kill
        with Client(tmp_path) as client, pytest.raises(NoCoordinatorError) as raised:
            await asyncio.to_thread(client.status)
        assert str(raised.value) == said

    async def test_names_a_file_that_is_damaged(self, tmp_path: Path) -> None:
        load_or_create_token(tmp_path)
        for damaged in ("", "{}", "[1]", '{"url": 5'):
            (tmp_path / "api.json").write_text(damaged)
            with pytest.raises(UsageError, match="cannot read how to reach the coordinator"):
                Client(tmp_path)

    async def test_tells_another_coordinator_at_its_address(self, tmp_path: Path) -> None:
        async with coordinator(tmp_path / "a", NOWHERE) as running:
            load_or_create_token(tmp_path)
            (tmp_path / "api.json").write_text(json.dumps({"url": running.client.url, "pid": 1}))
            with Client(tmp_path) as client, pytest.raises(UsageError, match="is not the coordinator of"):
                await asyncio.to_thread(client.status)

    async def test_passes_on_what_the_coordinator_says(self, tmp_path: Path) -> None:
        async with coordinator(tmp_path, NOWHERE) as running:
            with pytest.raises(UsageError, match=r"broken\.py:3: NameError"):
                await running.ask("start_run", "broken.py")
            for name in ("nobody", "a/b", "ä?#%", "../status"):
                with pytest.raises(UsageError):
                    await running.ask("run", name)
            assert isinstance(await running.ask("status"), FederationView)
            assert await running.ask("devices") == []

    async def test_a_model_that_cannot_be_written_is_said(
        self, mosquitto: RunningBroker, tmp_path: Path
    ) -> None:
        async with coordinator(tmp_path, mosquitto.url) as running:
            await running.connected()
            await running.ask("start_run", "find.py", name="r")
            out = tmp_path / "nobody" / "made this"
            with pytest.raises(UsageError, match=f"cannot write {re.escape(repr(str(out)))}"):
                await running.ask("download_model", "r", out)


async def test_an_address_that_is_taken_names_the_fix(tmp_path: Path) -> None:
    host = FakeModelHost()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        said = (
            f"cannot listen on {listen}: the address is in use; "
            "set listen in [coordinator] to another one, or 127.0.0.1:0 for any free port"
        )
        with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
            await run_coordinator(
                CoordinatorSettings(federation="home", state_dir=tmp_path, listen=listen), model_host=host
            )
    assert host.closed


@pytest.mark.parametrize("listen", ["8470", "localhost", ":8470", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match=r"must be host:port, for example 127\.0\.0\.1:8470"):
        CoordinatorSettings(listen=listen)


def test_a_token_is_made_once_and_never_empty(tmp_path: Path) -> None:
    token = load_or_create_token(tmp_path)
    assert len(token) >= 43
    assert load_or_create_token(tmp_path) == token
    (tmp_path / "api-token").write_text("\n")
    with pytest.raises(StoreError, match="is empty: delete it"):
        load_or_create_token(tmp_path)


async def test_a_version_that_retention_dropped_is_gone_and_not_an_error_of_ours() -> None:
    request = Request({"type": "http"})
    answer = await api._our_error(request, DroppedError("the delta of fact number 5 is gone"))
    assert answer.status_code == 410
    assert json.loads(bytes(answer.body)) == {"detail": "the delta of fact number 5 is gone"}
