"""The HTTP API: what commands, dashboards and scripts on the coordinator's machine ask and order.

Every answer is plain data out of the core's views; every order becomes an event, and is answered once it is on disk. An
error is `{"detail": "one line"}` with a status that says whose fault it is.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from fedmq_coordinator.core.blobs import Blob, Shelf
from fedmq_coordinator.core.events import RunRequested, StopRequested
from fedmq_coordinator.core.facts import VersionPublished
from fedmq_coordinator.core.packing import pack_vector
from fedmq_coordinator.core.publication import rebuild
from fedmq_coordinator.core.report import RunReport, make_report
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.showing import best_version
from fedmq_coordinator.core.views import DeviceView, FederationView, RunView
from fedmq_coordinator.shell.model_host import Beginning, ModelHost
from fedmq_coordinator.shell.service import Service, StoppingError
from fedmq_coordinator.shell.store_bulk import DroppedError
from fedmq_coordinator.shell.store_rows import BULKY_FIELDS
from fedmq_coordinator.shell.tally import WatchView
from fedmq_protocol.codecs import least_update_bytes
from fedmq_protocol.errors import FedmqError, UsageError
from fedmq_protocol.messages import TaskRef
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.topics import check_id

PREFIX: Final = "/api/v1"
_MAX_BODY_BYTES: Final = 1_048_576


class RunRequest(BaseModel):
    """A new run."""

    model_config = ConfigDict(extra="forbid")

    task: Annotated[str, Field(min_length=1, max_length=4096)]
    """A Python file on the coordinator's machine, or an importable module."""
    name: str | None = None
    """Default: the task's name and the next number."""
    settings: dict[str, Any] = {}
    """What differs from the coordinator's defaults, as nested tables of `RunSettings`."""
    checkpoint: Annotated[str, Field(max_length=4096)] | None = None
    """A file with the first weights; default: drawn from the seed."""


class RunStarted(BaseModel):
    """The answer to a `RunRequest`."""

    run: str


def make_app(service: Service, *, defaults: RunSettings, token: str) -> FastAPI:
    """The API over a service.

    Args:
        service: what it shows and orders.
        defaults: of a run's settings.
        token: what the bearer must show.
    """
    app = FastAPI(
        title="fedmq coordinator",
        summary="Runs, devices, reports and models of one federation.",
        version="1",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(_routes(service, defaults))
    app.include_router(_results(service))
    app.include_router(_watched(service))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(FedmqError, _our_error)
    app.add_middleware(_Gate, token=token)
    return app


def _routes(service: Service, defaults: RunSettings) -> APIRouter:
    routes = APIRouter(prefix=PREFIX)
    starting: set[str] = set()

    @routes.get("/status")
    async def status() -> FederationView:
        """The federation: broker, devices, runs, and what was refused."""
        return service.core.view(now=service.clock())

    @routes.get("/devices")
    async def devices() -> list[DeviceView]:
        """Every device that ever joined."""
        return service.core.view(now=service.clock()).devices

    @routes.get("/runs")
    async def runs() -> list[RunView]:
        """Every run, the oldest first."""
        return [_view_of(service, run) for run in service.core.runs]

    @routes.post("/runs", status_code=201)
    async def start(request: RunRequest) -> RunStarted:
        """Queue a run."""
        settings = merged(defaults, request.settings)
        task = await service.model_host.describe(request.task)
        _check_budget(settings, task.schema)
        run = _free_name(task.name, service, starting) if request.name is None else request.name
        check_id(run, what="run")
        if run in service.core.runs or run in starting:
            raise HTTPException(409, f"there is a run {run!r} already: choose another name")
        starting.add(run)
        try:
            checkpoint = None if request.checkpoint is None else Path(request.checkpoint)
            beginning = await service.model_host.initial(
                request.task,
                seed=settings.seed,
                checkpoint=checkpoint,
                start=settings.compression.start,
                snapshot=settings.compression.snapshot,
            )
            await asyncio.to_thread(service.journal.remember_source, run, request.task)
            service.sources[run] = request.task
            ref = TaskRef(name=task.name, version=task.version, schema_hash=task.schema.hash)
            packed, beginning = await asyncio.to_thread(_packed, beginning, service.shelf)
            await service.submit(
                RunRequested(
                    run,
                    settings,
                    ref,
                    task.schema,
                    packed,
                    task.has_central_data,
                    beginning.recipe,
                    beginning.why,
                )
            )
        finally:
            starting.discard(run)
        return RunStarted(run=run)

    @routes.get("/runs/{run}")
    async def show(run: str) -> RunView:
        """One run: its settings, its progress, and for what it waits."""
        return _view_of(service, run)

    @routes.post("/runs/{run}/stop")
    async def stop(run: str) -> RunView:
        """End a run now; its versions stay."""
        _view_of(service, run)
        await service.submit(StopRequested(run))
        return _view_of(service, run)

    return routes


def _results(service: Service) -> APIRouter:
    routes = APIRouter(prefix=PREFIX)

    @routes.get("/runs/{run}/report")
    async def report(run: str) -> RunReport:
        """Every figure of a run, row by row and in total."""
        _view_of(service, run)
        await service.settled()
        return await asyncio.to_thread(lambda: make_report(run, service.journal.read(leave_out=BULKY_FIELDS)))

    @routes.get("/runs/{run}/model", response_class=FileResponse)
    async def model(
        run: str,
        version: Annotated[str, Query(pattern="^(latest|best|0|[1-9][0-9]{0,15})$")] = "latest",
    ) -> FileResponse:
        """A published version as a safetensors file."""
        number = _version(service, _view_of(service, run), version)
        source = service.sources.get(run)
        if source is None:
            raise HTTPException(
                409, f"it is not known where the task of {run!r} lies, so its model cannot be named"
            )
        await service.settled()
        path = await _exported(service, service.model_host, run, number, source)
        name = f"{run}-v{number}.safetensors"
        return FileResponse(
            path, media_type="application/octet-stream", filename=name, background=BackgroundTask(path.unlink)
        )

    return routes


def _watched(service: Service) -> APIRouter:
    routes = APIRouter(prefix=PREFIX)

    @routes.get("/watch")
    async def watch() -> WatchView:
        """Federation, run and numbers of one moment, for a monitor that asks again and again."""
        core = service.core
        federation = core.view(now=service.clock())
        newest = federation.active_run or next(reversed(federation.runs), None)
        # What each device moved is the report's, and grows with the fleet.
        run = (
            None
            if newest is None
            else core.run_view(newest, now=service.clock()).model_copy(update={"moved": {}})
        )
        return WatchView(federation=federation, run=run, tally=service.tally.view())

    return routes


def _view_of(service: Service, run: str) -> RunView:
    try:
        return service.core.run_view(run, now=service.clock())
    except KeyError:
        raise HTTPException(404, f"there is no run {run!r}; `fedmq run ls` lists them") from None


def merged(defaults: RunSettings, given: dict[str, Any]) -> RunSettings:
    """`defaults` with what is `given` put over them, table by table.

    Raises:
        HTTPException: 422, with the setting and what is wrong with it.
    """
    try:
        return RunSettings.model_validate(_overlaid(defaults.model_dump(), given))
    except ValidationError as error:
        raise HTTPException(422, _one_line("settings", error.errors()[0])) from None


def _overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = (
            _overlaid(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return result


def _check_budget(settings: RunSettings, schema: TensorSchema) -> None:
    """Refuse a budget that no update of this model may fit into, before any device finds out."""
    compression = settings.compression
    if compression.update_bytes is None:
        return
    least = least_update_bytes(schema, compression.up_spec(schema))
    if compression.update_bytes < least:
        asked = f"compression.update_bytes is {compression.update_bytes}"
        raise UsageError(f"{asked}, and the least that this model's updates need is {least}")


def _packed(beginning: Beginning, shelf: Shelf) -> tuple[Blob | None, Beginning]:
    """The weights on the shelf, and what is left without them: they are as large as the model."""
    packed = None if beginning.weights is None else pack_vector(beginning.weights, shelf)
    return packed, replace(beginning, weights=None)


def _free_name(task: str, service: Service, starting: set[str]) -> str:
    stem = re.sub(r"[^a-z0-9._-]+", "-", task.lower()).strip("-._")[:48] or "run"
    number = 1
    while (name := f"{stem}-{number}") in service.core.runs or name in starting:
        number += 1
    return name


def _version(service: Service, view: RunView, wanted: str) -> int:
    if view.version < 0:
        raise HTTPException(409, f"run {view.run!r} has published no version yet")
    match wanted:
        case "latest":
            return view.version
        case "best":
            best = best_version(service.core.runs[view.run])
            if best is None:
                raise HTTPException(
                    409, f"no version of {view.run!r} has been evaluated, so none is the best"
                )
            return best
        case _:
            number = int(wanted)
            if number > view.version:
                raise HTTPException(
                    404, f"{view.run!r} has no version {number}; the newest is {view.version}"
                )
            return number


async def _exported(service: Service, host: ModelHost, run: str, version: int, task: str) -> Path:
    schema = service.core.runs[run].schema
    published = service.journal.read(run=run, kinds=["VersionPublished"], leave_out=["private"])
    facts = (fact for fact in published if isinstance(fact, VersionPublished))
    with tempfile.NamedTemporaryFile(suffix=".safetensors", delete=False) as file:
        path = Path(file.name)
    try:
        with tempfile.NamedTemporaryFile(suffix=".f32") as values:  # where the host can read it, too
            out = np.memmap(values.name, dtype="<f4", mode="w+", shape=(schema.size,))
            await asyncio.to_thread(rebuild, schema, facts, version, out)
            await host.export(task, out, path)
    except BaseException:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        raise
    return path


# ------------------------------------------------------------------------------------------------ errors


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, error.detail)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path"})
    return _problem(422, _one_line(where, {**first, "loc": ()}))


async def _our_error(_: Request, error: Exception) -> JSONResponse:
    """What the user can mend is the request's fault; everything else is ours."""
    match error:
        case UsageError():
            status = 422
        case StoppingError():
            status = 503
        case DroppedError():
            status = 410
        case _:
            status = 500
    return _problem(status, str(error))


def _problem(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": " ".join(text.split())}, status_code=status)


def _one_line(where: str, error: Any) -> str:  # noqa: ANN401  # pydantic's dict of details
    place = ".".join([*([where] if where else []), *map(str, error["loc"])])
    text = error["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return f"{place}: {text}" if place else text


class _Gate:
    """Lets in whoever shows the token, before a byte of the body is read; and no body that is too large."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(dict(scope["headers"]).get)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, header: Callable[[bytes, bytes], bytes]) -> JSONResponse | None:
        if not hmac.compare_digest(header(b"authorization", b""), self._expected):
            return _problem(401, "show the token of this coordinator: the text in <state_dir>/api-token")
        length = header(b"content-length", b"0")
        if header(b"transfer-encoding", b"") or not length.isdigit() or int(length) > _MAX_BODY_BYTES:
            return _problem(413, f"a body must have a content-length of at most {_MAX_BODY_BYTES} bytes")
        return None
