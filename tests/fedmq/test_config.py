"""Settings in layers: what wins, where it came from, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmq.config import Origin, variable_key
from fedmq.tables import CoordinatorTable, DeviceTable, models, parse_sets, read
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.shell.settings import CoordinatorSettings, DatabaseSettings
from fedmq_edge_agent.shell.settings import AgentSettings
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError, UsageError

FILE = """
[federation]
name = "lab"

[broker]
url = "mqtt://bob:hidden@broker.example:1883"

[run]
rounds = 3

[run.train]
lr = 0.2

[device]
id = "dev-1"
task = "tasks/mine.py"
state_dir = "state/dev-1"

[device.data]
partition_id = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fed.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def complaint(file: Path, text: str, table: str = "run", environ: dict[str, str] | None = None) -> str:
    """What is said when `text` is the file."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(file, environ=environ or {}).table(table, models()[table])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(file: Path) -> None:
    environ = {"FEDMQ_RUN__ROUNDS": "5", "FEDMQ_RUN__TRAIN__LR": "0.3"}
    configuration = read(file, environ=environ, flags={"run.rounds": ("--rounds", 7)})
    run = configuration.table("run", RunSettings)
    assert (run.rounds, run.train.lr, run.train.momentum) == (7, 0.3, 0.9)
    assert configuration.origin("run.rounds") == Origin("flag", "--rounds")
    assert configuration.origin("run.train.lr") == Origin("variable", "FEDMQ_RUN__TRAIN__LR")
    assert configuration.origin("broker.url") == Origin("file", str(file))
    assert configuration.origin("run.seed") == Origin("default")


def test_a_flag_that_was_not_given_changes_nothing(file: Path) -> None:
    configuration = read(file, environ={}, flags={"run.rounds": ("--rounds", None)})
    assert configuration.table("run", RunSettings).rounds == 3


@pytest.mark.parametrize(
    ("name", "text", "read_as"),
    [
        ("FEDMQ_RUN__ROUNDS", "12", 12),
        ("FEDMQ_RUN__TARGET", "0.9", 0.9),
        ("FEDMQ_RUN__TARGET", "", None),
        ("FEDMQ_RUN__FEDERATED_EVALUATION", "false", False),
        ("FEDMQ_RUN__TARGET_METRIC", "12", "12"),
        ("FEDMQ_RUN__MODE", "fedbuff", "fedbuff"),
        ("FEDMQ_RUN__STRATEGY__BUFFER_SIZE", "4", 4),
        ("FEDMQ_RUN__TRAIN__EXTRA__WARMUP", "3", 3),
        ("FEDMQ_RUN__TRAIN__EXTRA__SCHEDULE", "cosine", "cosine"),
    ],
)
def test_a_variable_is_read_as_its_setting_wants_it(name: str, text: str, read_as: object) -> None:
    run = read(None, environ={name: text}).table("run", RunSettings)
    value: object = run
    for part in variable_key(name) or ():
        if part != "run":
            value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == read_as
    assert type(value) is type(read_as)


def test_a_password_of_digits_stays_text() -> None:
    broker = read(None, environ={"FEDMQ_BROKER__PASSWORD": "123456"}).table("broker", BrokerSettings)
    assert broker.password is not None
    assert broker.password.get_secret_value() == "123456"


def test_paths_in_a_file_are_relative_to_the_file_and_others_are_not(file: Path) -> None:
    device = read(file, environ={}).table("device", DeviceTable)
    assert device.state_dir == file.parent / "state/dev-1"
    assert device.task == str(file.parent / "tasks/mine.py")
    assert device.data == {"partition_id": 4}
    variable = read(None, environ={"FEDMQ_DEVICE__STATE_DIR": "there"}).table("device", DeviceTable)
    assert variable.state_dir == Path("there")


@pytest.mark.parametrize("task", ["fedmq.tasks.digits", "package.module:attribute"])
def test_an_installed_task_is_no_path(file: Path, task: str) -> None:
    file.write_text(f'[device]\ntask = "{task}"\n', encoding="utf-8")
    assert read(file, environ={}).table("device", DeviceTable).task == task


def test_what_is_shown_names_each_origin_and_hides_each_secret(file: Path) -> None:
    configuration = read(
        file,
        environ={
            "FEDMQ_BROKER__PASSWORD": "opensesame",
            "FEDMQ_COORDINATOR__DATABASE": "postgresql://fedmq:opensesame@db.example/home",
            "FEDMQ_COORDINATOR__DATABASE_PASSWORD": "opensesame",
        },
    )
    shown = {line.key: line for line in configuration.show(models())}
    assert shown["broker.url"].value == '"mqtt://********@broker.example:1883"'
    assert shown["broker.password"].value == "********"
    assert str(shown["broker.password"].origin) == "variable FEDMQ_BROKER__PASSWORD"
    assert shown["coordinator.database"].value == '"postgresql://********@db.example/home"'
    assert shown["coordinator.database_password"].value == "********"
    assert shown["device.data.partition_id"].value == "4"
    assert shown["run.train.lr"].origin == Origin("file", str(file))
    assert shown["run.train.momentum"].origin == Origin("default")
    assert not any("hidden" in line.value or "opensesame" in line.value for line in shown.values())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[run]\nround = 3\n", ["fed.toml: [run] round:", "did you mean 'rounds'?"]),
        ("[run.selection]\nmin_updats = 3\n", ["[run.selection] min_updats:", "did you mean 'min_updates'?"]),
        ("[run]\nmin_updates = 3\n", ["[run] min_updates:", "'selection.min_updates'"]),
        ("[run]\nrounds = 0\n", ["fed.toml: [run] rounds:", "greater than or equal to 1", "not 0"]),
        ("[run.train]\nlr = 'fast'\n", ["[run.train] lr:", "valid number", "not 'fast'"]),
        ("[run]\nmode = 'async'\n", ["[run] mode:", "'sync', 'fedasync' or 'fedbuff'"]),
        ("[rn]\nrounds = 3\n", ["fed.toml: [rn]: there is no such table", "did you mean 'run'?"]),
        ("rounds = 3\n", ["'rounds' must stand in a table"]),
        ("[run\n", ["fed.toml is not TOML", "line 1"]),
        ("[run]\ntrain = 3\n", ["[run] train:", "not 3"]),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place_and_the_mend(
    file: Path, text: str, parts: list[str]
) -> None:
    said = complaint(file, text)
    for part in parts:
        assert part in said


def test_a_mistake_in_a_variable_names_the_variable(file: Path) -> None:
    said = complaint(file, "", environ={"FEDMQ_RUN__TRAIN__LR": "fast"})
    assert said.startswith("FEDMQ_RUN__TRAIN__LR: ")
    said = complaint(file, "", environ={"FEDMQ_RUN__RUONDS": "3"})
    assert said == "FEDMQ_RUN__RUONDS: there is no such setting; did you mean 'rounds'?"
    with pytest.raises(ConfigError, match="FEDMQ_BROKR__URL: there is no such table; did you mean 'broker'"):
        read(None, environ={"FEDMQ_BROKR__URL": "x"})


def test_a_complaint_about_a_secret_does_not_tell_it(file: Path) -> None:
    said = complaint(file, "[broker]\npassword = 123456\n", table="broker")
    assert "[broker] password" in said
    assert "123456" not in said
    said = complaint(file, '[broker]\nurl = "http://bob:hidden@x"\n', table="broker")
    assert "hidden" not in said


def test_a_complaint_about_the_whole_table_names_what_was_given(file: Path) -> None:
    said = complaint(file, '[broker]\nkey_file = "k.pem"\n', table="broker")
    assert said == f"{file}: [broker] key_file: key_file needs cert_file beside it"
    said = complaint(file, "", table="broker", environ={"FEDMQ_BROKER__URL": "broker:1883"})
    assert said.startswith("FEDMQ_BROKER__URL: broker url 'broker:1883' must begin with one of")


def test_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read(tmp_path / "none.toml", environ={})


def test_variables_that_are_no_settings_are_left_alone() -> None:
    assert variable_key("FEDMQ_DEBUG") is None
    assert variable_key("HOME") is None
    assert variable_key("FEDMQ_BROKER__URL") == ("broker", "url")


def test_set_names_settings_of_its_table() -> None:
    sets = parse_sets(("train.lr=0.1", "run.mode = fedbuff"), table="run")
    assert sets == {"run.train.lr": "0.1", "run.mode": "fedbuff"}
    run = read(None, environ={}, sets=sets).table("run", RunSettings)
    assert (run.train.lr, run.mode) == (0.1, "fedbuff")
    with pytest.raises(ConfigError, match="must be key=value"):
        parse_sets(("train.lr",), table="run")
    with pytest.raises(
        ConfigError, match=r"^--data 'foo' must be key=value, for example --data partition_id=0$"
    ):
        parse_sets(("foo",), table="device.data")
    for wrong, meant in [("rl", "lr"), ("lokal", "local_epochs"), ("epochs", "local_epochs")]:
        said = rf"--set train.{wrong}: there is no such setting; did you mean 'train.{meant}'"
        with pytest.raises(ConfigError, match=said):
            read(None, environ={}, sets={f"run.train.{wrong}": "1"}).table("run", RunSettings)


def test_the_tables_offer_what_the_components_take() -> None:
    """A setting that a component gains must find its way into a file."""
    agent = set(AgentSettings.model_fields) - {"federation", "broker", "trainer"}
    assert set(DeviceTable.model_fields) == agent
    coordinator = set(CoordinatorSettings.model_fields) - {
        "federation",
        "broker",
        "run",
        "retention",
    }
    kept = {f"keep_{name}" for name in RetentionSettings.model_fields}
    database = {f"database_{name}" for name in DatabaseSettings.model_fields if name != "url"}
    assert set(CoordinatorTable.model_fields) == coordinator | kept | database | {"data"}
    offered = CoordinatorTable(database="postgresql://host/fedmq").database_settings()
    assert offered == DatabaseSettings(url="postgresql://host/fedmq").model_dump()
    for name in agent - {"id", "task", "state_dir", "data"}:
        assert DeviceTable.model_fields[name].default == AgentSettings.model_fields[name].default
    for name in RetentionSettings.model_fields:
        assert CoordinatorTable.model_fields[f"keep_{name}"].default == getattr(RetentionSettings(), name)
    for name in coordinator:
        assert CoordinatorTable.model_fields[name].default == CoordinatorSettings.model_fields[name].default
