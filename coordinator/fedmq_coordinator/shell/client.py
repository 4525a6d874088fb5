"""The API from the other side: what commands on the coordinator's machine use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from fedmq_coordinator.core.report import RunReport
from fedmq_coordinator.core.views import DeviceView, FederationView, RunView
from fedmq_coordinator.shell.tally import WatchView
from fedmq_protocol.errors import FedmqError, UsageError

PREFIX: Final = "/api/v1"
_TIMEOUT_S: Final = 30.0
_PATIENCE_S: Final = 600.0  # loading a task, and its model, may take minutes on a small machine

_Model = TypeVar("_Model", bound=BaseModel)


class NoCoordinatorError(UsageError):
    """No coordinator is running where the command looked for one."""


class NoAnswerError(FedmqError):
    """The coordinator was asked, and did not answer."""


def is_starting(state_dir: Path) -> bool:
    """Whether a live process holds the folder's lock and has not written yet where its API listens."""
    # Asking the lock itself would take it for a moment, and make a coordinator that starts just then give up.
    try:
        holder = int((state_dir / "lock").read_text(encoding="ascii"))
        os.kill(holder, 0)
    except (OSError, ValueError, OverflowError):
        return False
    try:
        return bool(json.loads((state_dir / "api.json").read_text(encoding="ascii"))["pid"] != holder)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False  # damaged; whoever reads it says so


class Client:
    """Talks to the coordinator whose state is in `state_dir`; close it, or use it as a context manager.

    Args:
        state_dir: the coordinator's folder; its address and token are read from there.

    Raises:
        NoCoordinatorError: none is running there.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        try:
            address = json.loads((state_dir / "api.json").read_text(encoding="ascii"))
            token = (state_dir / "api-token").read_text(encoding="ascii").strip()
            self.url: str = address["url"]
            self.pid: int = address["pid"]
        except FileNotFoundError:
            raise self._nobody() from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"cannot read how to reach the coordinator in {state_dir}: {error}") from error
        # A proxy that the environment names must not see what stays on this machine.
        self._http = httpx.Client(
            base_url=self.url + PREFIX,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def find_again(self) -> None:
        """Read anew where the coordinator listens: one that was started again may listen elsewhere.

        Raises:
            NoCoordinatorError: none is running there.
        """
        found = Client(self._state_dir)
        self.close()
        self.url, self.pid, self._http = found.url, found.pid, found._http

    def close(self) -> None:
        self._http.close()

    def status(self) -> FederationView:
        return self._get("/status", FederationView)

    def watch(self, *, timeout_s: float = _TIMEOUT_S) -> WatchView:
        """Federation, active run and numbers of one moment.

        Raises:
            NoAnswerError: what answers tells something else, as a coordinator of another version may.
        """
        answer = self._ask("GET", "/watch", timeout=timeout_s)
        try:
            return WatchView.model_validate_json(answer.content)
        except ValidationError as error:
            raise NoAnswerError(
                f"what the coordinator at {self.url} tells is not understood: is it of this version? "
                f"({error.error_count()} differences)"
            ) from None

    def devices(self) -> list[DeviceView]:
        return TypeAdapter(list[DeviceView]).validate_json(self._ask("GET", "/devices").content)

    def runs(self) -> list[RunView]:
        """Every run, the oldest first."""
        return TypeAdapter(list[RunView]).validate_json(self._ask("GET", "/runs").content)

    def run(self, run: str) -> RunView:
        return self._get(f"/runs/{_segment(run)}", RunView)

    def report(self, run: str) -> RunReport:
        return self._get(f"/runs/{_segment(run)}/report", RunReport)

    def start_run(
        self,
        task: str,
        *,
        name: str | None = None,
        settings: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
    ) -> str:
        """Queue a run and return its name.

        Args:
            task: a Python file, made absolute here, or an importable module.
            name: default: the task's name and the next number.
            settings: what differs from the coordinator's defaults, as nested tables of `RunSettings`.
            checkpoint: a file with the first weights.

        Raises:
            UsageError: the task, a setting, the name or the checkpoint is wrong; one line that names the mend.
        """
        body = {
            "task": str(Path(task).resolve()) if task.endswith(".py") or "/" in task else task,
            "name": name,
            "settings": settings or {},
            "checkpoint": None if checkpoint is None else str(checkpoint.resolve()),
        }
        run: str = self._ask("POST", "/runs", json=body, timeout=_PATIENCE_S).json()["run"]
        return run

    def stop_run(self, run: str) -> RunView:
        """End a run now, and return how it stands."""
        return RunView.model_validate_json(self._ask("POST", f"/runs/{_segment(run)}/stop").content)

    def download_model(
        self, run: str, out: Path, *, version: int | Literal["latest", "best"] = "latest"
    ) -> None:
        """Write a published version to `out` as a safetensors file.

        Raises:
            UsageError: no such run or version, or `out` cannot be written.
        """
        answer = self._ask(
            "GET", f"/runs/{_segment(run)}/model", params={"version": str(version)}, timeout=_PATIENCE_S
        )
        temporary = out.with_name(f"{out.name}.tmp")
        try:
            temporary.write_bytes(answer.content)
            temporary.replace(out)
        except OSError as error:
            raise UsageError(f"cannot write {str(out)!r}: {error.strerror}") from error

    def _get(self, path: str, model: type[_Model]) -> _Model:
        return model.model_validate_json(self._ask("GET", path).content)

    def _ask(
        self,
        method: Literal["GET", "POST"],
        path: str,
        *,
        json: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
        timeout: float = _TIMEOUT_S,
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=json, params=params, timeout=timeout)
        except httpx.ConnectError:
            raise self._nobody() from None
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise NoAnswerError(f"the coordinator at {self.url} does not answer: {what}") from error
        if answer.is_success:
            return answer
        detail = _detail(answer)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise UsageError(
                f"what listens at {self.url} is not the coordinator of {self._state_dir}: {detail}"
            )
        raise (UsageError if answer.is_client_error else FedmqError)(detail)

    def _nobody(self) -> NoCoordinatorError:
        return NoCoordinatorError(
            f"no coordinator is running on {self._state_dir}: start one with `fedmq coordinator start --config …`"
        )


def _segment(name: str) -> str:
    """A run's name as one segment of a path, whatever the user typed."""
    return httpx.URL("http://x/", params={"x": name}).query.decode().removeprefix("x=").replace("+", "%20")


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the coordinator answered with status {answer.status_code}"
