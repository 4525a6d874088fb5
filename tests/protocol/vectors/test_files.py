"""The committed vectors are those that the code makes, and the runner holds programs against them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.protocol.vectors.answer import QUESTIONS
from tests.protocol.vectors.form import FOLDER
from tests.protocol.vectors.make import FILES, texts

ROOT = FOLDER.parents[1]
RUNNER = FOLDER / "run.py"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return texts()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_is_made_now(name: str, made: dict[str, str]) -> None:
    committed = (FOLDER / name).read_text(encoding="utf-8")
    if name == "blobs.json" and without_bytes(committed) == without_bytes(made[name]):
        return  # another version of zstd may choose other matches
    assert committed == made[name], "python -m tests.protocol.vectors.make"


def without_bytes(text: str) -> list[object]:
    """All of the blobs' cases but what a compressor is free in: what they decode to, and everything else."""
    free = {"snapshot", "delta", "update", "chain_hash"}
    return [
        {
            "name": case["name"],
            "given": {key: value for key, value in case["given"].items() if key not in free},
            "gives": {key: value for key, value in case.get("gives", {}).items() if key not in free},
            "error": case.get("error"),
        }
        for case in json.loads(text)["cases"]
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_our_own_code_passes_the_runner() -> None:
    done = run("--", sys.executable, "-m", "tests.protocol.vectors.answer")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unsupported" not in done.stdout


def program(tmp_path: Path, reply: str) -> list[str]:
    """A program that answers every question with `reply`, a Python expression over `q`."""
    path = tmp_path / "program.py"
    path.write_text(
        "import json, sys\nfor line in sys.stdin:\n    q = json.loads(line)\n"
        f"    print(json.dumps({reply}), flush=True)\n"
    )
    return [sys.executable, str(path)]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ('{"id": q["id"], "gives": {}}', "fraction: expected"),
        ('{"id": q["id"], "error": "malformed"}', "expected an answer"),
        ('{"id": q["id"] + 1, "gives": {}}', "no answer to question"),
        ("[1]", "no answer to question"),
        ("sys.exit()", "the program ended"),
    ],
)
def test_wrong_answers_are_told(tmp_path: Path, reply: str, says: str) -> None:
    done = run("--only", "sampling", "--", *program(tmp_path, reply))
    assert done.returncode == 1
    assert says in done.stdout


def test_a_program_without_the_conversation_gets_nothing_of_it_wrong(tmp_path: Path) -> None:
    done = run("--only", "conversation", "--", *program(tmp_path, '{"id": q["id"], "unsupported": True}'))
    assert done.returncode == 0
    assert " unsupported\n" in done.stdout
    assert "right" not in done.stdout
    assert "1 wrong" not in done.stdout


def test_a_program_that_is_not_there_is_told_in_a_line() -> None:
    done = run("--only", "keys", "--", "no-such-program")
    assert done.returncode == 2
    assert "no-such-program does not start" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_program_does_not_do_is_counted_and_not_wrong(tmp_path: Path) -> None:
    done = run("--only", "sampling", "--", *program(tmp_path, '{"id": q["id"], "unsupported": True}'))
    assert done.returncode == 0
    assert "17 unsupported" in done.stdout


def test_an_error_may_have_any_reason_if_so_wanted(tmp_path: Path) -> None:
    other = program(tmp_path, '{"id": q["id"], "error": "something else"}')
    strict, lax = (
        run("--only", "envelopes", "--", *other),
        run("--only", "envelopes", "--any-reason", "--", *other),
    )
    assert "expected the error malformed, got something else" in strict.stdout
    assert lax.stdout.count("expected") == 5  # the strange packets that are not wrong


def test_an_encoder_that_loses_something_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "lossy.py"
    path.write_text(
        "import json, sys\n"
        "from tests.protocol.vectors.answer import answer\n"
        "for line in sys.stdin:\n"
        "    q = json.loads(line)\n"
        "    heard = answer(q['ask'], q['given'])\n"
        "    if q['ask'] == 'encode':\n"
        "        heard['gives']['residual'] = '0' * len(heard['gives']['residual'])\n"
        "    print(json.dumps({'id': q['id'], **heard}), flush=True)\n"
    )
    done = run(
        "--only",
        "blobs",
        "--",
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, '.'); exec(open({str(path)!r}).read())",
    )
    assert done.returncode == 1
    assert done.stdout.count("encode: ") == 6, done.stdout
    assert "is not" in done.stdout


def test_a_device_that_says_too_little_or_too_much_is_found_out(tmp_path: Path) -> None:
    update = '{"topic": "fedmq/v1/home/dev/dev-1/up/update", "kind": "update", "body": {}}'
    silent = program(tmp_path, '{"id": q["id"], "gives": {"says": []}}')
    assert "it does not say" in run("--only", "conversation", "--", *silent).stdout
    noisy = program(tmp_path, f'{{"id": q["id"], "gives": {{"says": [{update}]}}}}')
    assert "it says" in run("--only", "conversation", "--", *noisy).stdout


def test_the_readme_explains_every_question_and_file() -> None:
    explained = set(re.findall(r"^\| `([\w.]+)` \|", README, re.MULTILINE))
    assert set(QUESTIONS) <= explained
    asked = {case["ask"] for case in json.loads((FOLDER / "conversation.json").read_text())["cases"]}
    assert asked <= explained
    assert all(f"`{name}`" in README for name in FILES)
