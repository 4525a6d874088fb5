"""What a device is told, and the files of what it trains."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_edge_agent.flashing import settings, tasks
from fedmq_edge_agent.flashing.errors import FlashError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), texts)
tables = st.dictionaries(
    texts,
    st.recursive(
        st.one_of(values, st.lists(values, max_size=3)),
        lambda inner: st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    ).filter(lambda value: isinstance(value, dict)),
    max_size=4,
)


@given(tables)
def test_settings_survive_being_written(table: dict[str, Any]) -> None:
    assert tomllib.loads(settings.to_toml(table)) == table


def test_nan_survives_too() -> None:
    assert math.isnan(tomllib.loads(settings.to_toml({"t": {"x": math.nan}}))["t"]["x"])


MEMBER = """
[federation]
name = "home"
[broker]
url = "mqtts://broker.home.arpa:8883"
ca_file = "../../authority/ca.pem"
cert_file = "cert.pem"
key_file = "key.pem"
[device]
id = "dev-1"
task = "{task}"
coordinator_key = "{key}"
[device.data]
partition_id = 3
"""


def write_member(folder: Path, *, task: str = "fedmq.tasks.digits") -> Path:
    member = folder / "site" / "members" / "dev-1"
    (folder / "site" / "authority").mkdir(parents=True)
    member.mkdir(parents=True)
    (folder / "site" / "authority" / "ca.pem").write_text("the authority")
    (member / "cert.pem").write_text("the certificate")
    (member / "key.pem").write_text("the key")
    (member / "device.toml").write_text(MEMBER.format(task=task, key="ab" * 32))
    return member


def test_a_member_is_read_as_it_will_lie_on_the_device(tmp_path: Path) -> None:
    member = settings.read_member(write_member(tmp_path), "dev-1")
    assert member.has_key
    assert member.identity == {
        "ca.pem": b"the authority",
        "cert.pem": b"the certificate",
        "key.pem": b"the key",
    }
    assert "the key" not in repr(member)
    assert member.settings["broker"]["key_file"] == "/etc/fedmq/identity/key.pem"
    assert member.settings["broker"]["ca_file"] == "/etc/fedmq/identity/ca.pem"
    assert member.settings["device"]["state_dir"] == "/var/lib/fedmq"
    assert member.settings["device"]["data"] == {"partition_id": 3}
    assert member.settings["device"]["coordinator_key"] == "ab" * 32


def test_a_key_that_only_the_device_has_is_no_mistake(tmp_path: Path) -> None:
    folder = write_member(tmp_path)
    (folder / "key.pem").unlink()
    member = settings.read_member(folder, "dev-1")
    assert not member.has_key
    assert not member.can_come_in
    (folder / "cert.pem").unlink()
    with pytest.raises(FlashError, match=r"tells of cert\.pem, which is not there: .*`fedmq device enroll"):
        settings.read_member(folder, "dev-1")


def test_another_devices_folder_is_refused(tmp_path: Path) -> None:
    folder = write_member(tmp_path)
    with pytest.raises(FlashError, match="is about 'dev-1', not about 'dev-2'"):
        settings.read_member(folder, "dev-2")
    with pytest.raises(FlashError, match="fedmq device enroll dev-9"):
        settings.read_member(tmp_path / "nowhere", "dev-9")


def test_a_file_travels_alone(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text("task = 1\n")
    found = tasks.collect(f"{tmp_path}/sums.py:other")
    assert found.setting == "/opt/fedmq/current/task/sums.py:other"
    assert found.files == {"task/sums.py": tmp_path / "sums.py"}


def test_a_folder_travels_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "__pycache__").mkdir()
    for name in ("task.py", "parts/model.py", "__pycache__/task.pyc", "weights.bin"):
        (tmp_path / name).write_text("")
    (tmp_path / "requirements.txt").write_text("# for pictures\npillow\n\n")
    found = tasks.collect(str(tmp_path))
    assert found.setting == "/opt/fedmq/current/task/task.py"
    assert sorted(found.files) == [
        "task/parts/model.py",
        "task/requirements.txt",
        "task/task.py",
        "task/weights.bin",
    ]
    assert found.requires == ("pillow",)


def test_a_module_travels_with_its_package() -> None:
    found = tasks.collect("packaging.version:task")
    assert found.setting == "packaging.version:task"
    assert "lib/packaging/__init__.py" in found.files


def test_ours_are_there_already() -> None:
    found = tasks.collect("fedmq.tasks.digits")
    assert (found.setting, found.files, found.requires) == ("fedmq.tasks.digits", {}, ("scikit-learn",))


@pytest.mark.parametrize("task", ["nowhere.py", "no/where", "no_such_module_here", "!"])
def test_what_is_not_there_is_said(task: str) -> None:
    with pytest.raises(FlashError):
        tasks.collect(task)


def test_a_folder_with_two_candidates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    (tmp_path / "b.py").write_text("")
    with pytest.raises(FlashError, match="2 Python files"):
        tasks.collect(str(tmp_path))
