"""The command: what it says of a mistake, and what it does not import."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmq.cli import VERBS, cli, run
from fedmq_broker.probe import find_free_port
from tests.broker_fixtures import CustomBroker
from tests.fedmq.command_line import CommandLine, one_line


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage: " in result.output


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedmq 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dmeo"], "No such command 'dmeo'"),
        (["demo", "--rounds", "0"], "0 is not in the range x>=1"),
        (["demo", "--mode", "async"], "'async' is not one of"),
        (["demo", "--round", "3"], "No such option"),
        (["run", "start"], "Missing argument 'TASK'"),
        (["model", "export", "x"], "Missing option '--out'"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config", "show", "--config", "none.toml"], "there is no file 'none.toml'"),
        (["coordinator", "start", "--config", "none.toml"], "there is no file 'none.toml'"),
        (["coordinator", "start", "--listen", "8470"], "host:port"),
        (["coordinator", "start", "--federation", "A B"], "federation"),
        (["coordinator", "start", "--broker", "broker:1883"], "--broker: broker url"),
        (
            ["coordinator", "start", "--database", "mysql://u:geheim@host/x"],
            "such as postgresql://user@host/fedmq (SQLite in state_dir needs none), not 'mysql://********@host/x'",
        ),
        (
            ["coordinator", "start", "--database", "postgresql:///x?host=/nowhere&password=geheim"],
            "--database: the password stands before the host",
        ),
        (["agent", "start"], "a device needs its id"),
        (["agent", "start", "--id", "dev-1"], "a device needs its task"),
        (["agent", "start", "--id", "Dev 1", "--task", "digits"], "--id: string should match"),
        (["run", "show"], "no coordinator is running on state/coordinator: start one with"),
        (["run", "start", "digits", "--set", "train.rl=1"], "did you mean 'train.lr'?"),
        (["run", "start", "digits", "--rounds", "0"], "--rounds: input should be greater than or equal to 1"),
        (["run", "start", "digits", "--checkpoint", "none.pt"], "there is no file 'none.pt'"),
        (
            ["model", "export", "x", "--out", "m", "--version", "newest"],
            "neither a number nor best nor latest",
        ),
        (["demo", "--stragglers", "11"], "--stragglers 11 is more than --devices 10"),
        (["demo", "--dropouts", "10"], "--dropouts 10 leaves no device"),
        (["demo", "--set", "rounds=none"], "--set rounds: input should be a valid integer"),
        (["demo", "--set", "rounds"], "must be key=value"),
        (["demo", "--out", "/proc/nowhere"], "--out '/proc/nowhere' cannot be written to"),
        (["demo", "--out", "/proc/self/status"], "--out '/proc/self/status' is a file; name a folder"),
        (["demo", "--broker", "http://host"], "--broker: broker url 'http://host' must begin with"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_mend(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("fedmq: ")
    assert captured.err.count("\n") == 1
    assert "geheim" not in captured.err


def test_an_error_of_our_own_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmq.commands.config.models", lambda: 1 / 0)
    monkeypatch.delenv("FEDMQ_DEBUG", raising=False)
    assert run(["config", "show"]) == 1
    said = "fedmq: this should not have happened: ZeroDivisionError: division by zero (FEDMQ_DEBUG=1 shows where)\n"
    assert capsys.readouterr().err == said
    monkeypatch.setenv("FEDMQ_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["config", "show"])


def test_a_file_closed_to_this_user_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "site/mosquitto")

    monkeypatch.setattr("fedmq.commands.config.models", closed)
    monkeypatch.delenv("FEDMQ_DEBUG", raising=False)
    assert run(["config", "show"]) == 1
    assert capsys.readouterr().err == "fedmq: site/mosquitto is closed to this user: be its owner, or root\n"


def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "fedmq_coordinator.shell.client", raising=False)
    assert run(["run", "ls"]) == 1
    said = capsys.readouterr().err
    assert said == "fedmq: this needs `pip install fedmq[coordinator]` (httpx is missing)\n"


def test_config_show_prints_what_holds_and_where_it_came_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "fed.toml"
    file.write_text("[run]\nrounds = 3\n", encoding="utf-8")
    monkeypatch.setenv("FEDMQ_RUN__SEED", "5")
    assert run(["config", "show", "--config", str(file)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"rounds = 3 # file {file}" in lines
    assert "seed = 5 # variable FEDMQ_RUN__SEED" in lines
    assert 'mode = "sync" # default' in lines


# -------------------------------------------------------------------------------------- with processes


def test_trying_a_task_says_what_it_costs(fedmq: CommandLine) -> None:
    result = fedmq.run("agent", "try", "iris", "--set", "train.local_epochs=2", "--data", "num_partitions=2")
    assert result.returncode == 0, result.stderr
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert said["task"].startswith("iris 1, schema ")
    assert said["data"].startswith("60 examples")
    assert set(said) >= {"before", "after", "time", "memory", "download", "upload"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def model(:\n", "mine.py"),
        ("import nothing_of_the_kind\n", "mine.py"),
        ("x = 1\n", "defines no task"),
    ],
)
def test_a_task_with_an_error_is_named_by_its_file(fedmq: CommandLine, text: str, said: str) -> None:
    (fedmq.folder / "mine.py").write_text(text, encoding="utf-8")
    result = fedmq.run("agent", "try", "mine.py")
    assert result.returncode == 1
    assert said in one_line(result)


def test_a_task_file_that_is_not_there(fedmq: CommandLine) -> None:
    result = fedmq.run("agent", "try", "none.py")
    assert result.returncode == 1
    assert "there is no task file" in one_line(result)


def test_a_broker_that_is_not_there(fedmq: CommandLine) -> None:
    port = find_free_port("127.0.0.1")
    result = fedmq.run("demo", "--broker", f"mqtt://127.0.0.1:{port}")
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in one_line(result)
    assert fedmq.all_gone()


@pytest.mark.mosquitto
def test_a_wrong_password(fedmq: CommandLine, custom_mosquitto: Callable[[str], CustomBroker]) -> None:
    hasher = shutil.which("mosquitto_passwd")
    if hasher is None:
        pytest.skip("mosquitto_passwd is not installed")
    passwords = fedmq.folder / "passwords"
    passwords.write_text("bob:right\n", encoding="utf-8")
    subprocess.run([hasher, "-U", str(passwords)], check=True, capture_output=True)
    broker = custom_mosquitto(
        f"listener {{port}} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}"
    )
    result = fedmq.run("demo", "--broker", f"mqtt://bob:sesame@127.0.0.1:{broker.port}")
    assert result.returncode == 1
    complaint = one_line(result)
    assert "password" in complaint
    assert "sesame" not in complaint
    assert fedmq.all_gone()


@pytest.mark.timeout(600)
def test_the_parts_by_hand(fedmq: CommandLine) -> None:
    """As in the README: a broker, a coordinator, two devices, a run, its model and its report."""
    broker = fedmq.start("broker", "start", "--port", "0", "--kind", "embedded")
    parts = [broker]
    try:
        assert broker.stdout is not None
        url = next(word for word in broker.stdout.readline().split() if word.startswith("mqtt://")).rstrip(
            ";,"
        )
        (fedmq.folder / "fed.toml").write_text(
            f'[broker]\nurl = "{url}"\n[coordinator]\nlisten = "127.0.0.1:0"\n[run]\nrounds = 2\n'
            "[run.selection]\ndeadline_factor = 0\n",  # a machine that stalls makes no straggler
            encoding="utf-8",
        )
        parts.append(fedmq.start("coordinator", "start", "--config", "fed.toml"))
        assert parts[-1].stderr is not None
        assert "starting the coordinator" in parts[-1].stderr.readline()
        assert "the API listens" in parts[-1].stderr.readline()
        for number, name in enumerate(("alice", "bob")):
            data = ["--data", f"partition_id={number}", "--data", "num_partitions=2"]
            parts.append(
                fedmq.start("agent", "start", "--config", "fed.toml", "--id", name, "--task", "iris", *data)
            )
        started = fedmq.run("run", "start", "iris", "--config", "fed.toml", "--name", "first", "--watch")
        assert started.returncode == 0, started.stderr
        assert started.stdout.splitlines()[0] == "first"
        assert started.stdout.splitlines()[-1].startswith("finished: ")
        shown = fedmq.run("run", "show", "--config", "fed.toml")
        assert "round 2 of 2" in " ".join(shown.stdout.split())
        plain = json.loads(fedmq.run("run", "show", "first", "--config", "fed.toml", "--json").stdout)
        assert plain["run"] == "first"
        assert plain["accepted"] == 4
        assert set(plain["moved"]) == {"alice", "bob"}
        assert " up, " in shown.stdout
        moved = json.loads(fedmq.run("run", "traffic", "--config", "fed.toml", "--json").stdout)
        assert [set(row["moved"]) for row in moved["rounds"]] == [{"alice", "bob"}] * 2
        told = fedmq.run("run", "traffic", "first", "--config", "fed.toml").stdout.splitlines()
        assert [line.split()[0] for line in told] == ["device", "alice", "bob", "all"]
        assert "first" in fedmq.run("run", "ls", "--config", "fed.toml").stdout
        again = fedmq.run("run", "start", "iris", "--config", "fed.toml", "--name", "first")
        assert "there is a run 'first' already" in one_line(again)
        unknown = fedmq.run("run", "report", "second", "--config", "fed.toml", "--out", "report")
        assert "there is no run 'second'" in one_line(unknown)
        exported = fedmq.run("model", "export", "first", "--config", "fed.toml", "--out", "m.safetensors")
        assert exported.returncode == 0, exported.stderr
        assert (fedmq.folder / "m.safetensors").stat().st_size > 1000
        reported = fedmq.run("run", "report", "first", "--config", "fed.toml", "--out", "report")
        assert reported.returncode == 0, reported.stderr
        assert len(json.loads((fedmq.folder / "report/report.json").read_text())["accuracy"]) == 2
    finally:
        for part in reversed(parts):
            part.terminate()
        ends = [(part.communicate(timeout=60), part.returncode)[1] for part in reversed(parts)]
    assert ends == [0, 0, 0, 0]
    assert fedmq.all_gone()
