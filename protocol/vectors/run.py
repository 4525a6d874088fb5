"""Hold any implementation of the protocol against the vectors; Python 3.11 and nothing else is needed.

    python protocol/vectors/run.py -- node my-agent/vectors.mjs
    python protocol/vectors/run.py --only topics,envelopes --any-reason -- ./my-agent --vectors

The program that is named is started once. It reads a question a line on its standard input and writes an answer a line
on its standard output, both JSON, in the same order:

    {"id": 7, "ask": "decode", "given": {"n": 4, "payload": "01..."}}
    {"id": 7, "gives": {"values": "..."}}        or  {"id": 7, "error": "malformed"}
                                                 or  {"id": 7, "unsupported": true}

README.md beside this file says what each question is about. The runner ends with 0 if no answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MAX_SERVED = 200
SHOWN = 300  # characters of an answer that is wrong
LENGTHS = {
    "malformed",
    "too-large",
    "wrong-size",
}  # which of them a decoder comes upon first is its own affair
PAYLOADS = {"decode", "snapshot", "delta", "update", "indices"}
FREE = ("presence", "hello")  # a device may say these whenever it wants to

Plain = dict[str, Any]


class Wrong(Exception):  # noqa: N818 - a verdict, no error of ours
    """An answer differs from the vectors'; the text says in what."""


class Unsupported(Exception):  # noqa: N818 - likewise
    """The program says that it does not do this."""


class Program:
    """The implementation under test, as a child that answers lines.

    Attributes:
        wanted: topics that the device of the conversation has subscribed to, and has heard nothing on yet.
        converses: it has not said of a question about a device that it does not do that.
    """

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - the user's own
        self._next_id = 0
        self.wanted: list[str] = []
        self.converses = True

    def ask(self, what: str, given: Plain) -> Plain:
        """Its answer.

        Raises:
            Wrong: it died, took too long, or did not answer this question.
            Unsupported: it says so.
        """
        self._next_id += 1
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        watchdog = threading.Timer(self._timeout_s, self._child.kill)
        watchdog.start()
        try:
            line = json.dumps({"id": self._next_id, "ask": what, "given": given})
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()
            heard = self._child.stdout.readline()
        except BrokenPipeError:
            heard = b""
        finally:
            watchdog.cancel()
        if not heard:
            raise Wrong(f"the program ended, or did not answer within {self._timeout_s:g} s")
        try:
            answer = json.loads(heard)
        except ValueError:
            raise Wrong(f"no JSON: {heard[:SHOWN]!r}") from None
        if not isinstance(answer, dict) or answer.get("id") != self._next_id:
            raise Wrong(f"no answer to question {self._next_id}: {heard[:SHOWN]!r}")
        if answer.get("unsupported"):
            self.converses = self.converses and not what.startswith("device.")
            raise Unsupported
        return answer

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def end(self) -> None:
        """No more questions."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        if self.alive:
            self._child.stdin.close()
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._child.stdout.close()


# ------------------------------------------------------------------------------------------------ cases


def cases(path: Path) -> Iterator[Plain]:
    """The cases of a file; those of codecs.json are older and written otherwise."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if "cases" in content:
        yield from content["cases"]
        return
    for entry in content["valid"]:
        given = {"n": entry["n"], "payload": entry["payload"]}
        if "shapes" in entry:
            given["shapes"] = entry["shapes"]
        yield {"name": entry["name"], "ask": "decode", "given": given, "gives": {"values": _dense(entry)}}
    for entry in content["invalid"]:
        given = {"n": entry["n"], "payload": entry["payload"]}
        yield {"name": entry["name"], "ask": "decode", "given": given, "error": entry["reason"]}


def _dense(entry: Plain) -> str:
    """All n values of an entry that may name the elements which it has."""
    if "indices" not in entry:
        return str(entry["values"])
    whole = ["00000000"] * entry["n"]
    for place, index in enumerate(entry["indices"]):
        whole[index] = entry["values"][8 * place : 8 * place + 8]
    return "".join(whole)


# ------------------------------------------------------------------------------------------------ judging


def judge(program: Program, case: Plain, *, any_reason: bool) -> None:
    """Ask, and hold the answer against the case.

    Raises:
        Wrong: it differs.
        Unsupported: the program does not do this.
    """
    serving = case["ask"] == "device.serve"
    answer = _serve(program, case["given"]) if serving else program.ask(case["ask"], case["given"])
    if "error" in case:
        if "error" not in answer:
            raise Wrong(f"expected the error {case['error']}, got {_short(answer)}")
        alike = LENGTHS if case["ask"] in PAYLOADS and case["error"] in LENGTHS else {case["error"]}
        if not any_reason and answer["error"] not in alike:
            raise Wrong(f"expected the error {case['error']}, got {answer['error']}")
        return
    gives = answer.get("gives")
    if not isinstance(gives, dict):
        raise Wrong(f"expected an answer, got {_short(answer)}")
    if case["ask"] == "encode":
        _judge_encoding(program, case, gives)
        return
    if case["ask"].startswith("device."):
        _subscribed(program, case["ask"], gives)
        _judge_device(case["gives"], gives)
        return
    for key, expected in case["gives"].items():
        if not (among if key == "body" else same)(expected, gives.get(key)):
            raise Wrong(f"{key}: expected {_short(expected)}, got {_short(gives.get(key))}")


def _subscribed(program: Program, ask: str, gives: Plain) -> None:
    """Remember what the device wants to hear; a connection that is lost takes its subscriptions with it."""
    if ask in {"device.begin", "device.lose", "device.restart"}:
        program.wanted.clear()
    program.wanted += [topic for topic in gives.get("subscribes") or [] if topic not in program.wanted]


def _serve(program: Program, given: Plain) -> Plain:
    """Be the broker: answer each subscription with what is retained, until none is left; all that came of it."""
    if not program.converses:
        raise Unsupported
    says: list[Plain] = []
    trains = None
    for _ in range(MAX_SERVED):
        topic = next((topic for topic in program.wanted if topic in given["retained"]), None)
        if topic is None:
            return {"gives": {"says": says, "trains": trains}}
        program.wanted.remove(topic)
        packet = {"topic": topic, "packet": given["retained"][topic], "retained": True}
        answer = program.ask("device.hear", packet)
        if "gives" not in answer:
            raise Wrong(f"expected an answer, got {_short(answer)}")
        _subscribed(program, "device.hear", answer["gives"])
        says += answer["gives"].get("says") or []
        trains = answer["gives"].get("trains") or trains
    raise Wrong(f"it subscribes again and again: more than {MAX_SERVED} packets")


def _judge_device(expected: Plain, gives: Plain) -> None:
    """A device may say more of itself than it must, and hears what it wants to; all else is as expected."""
    for key, value in expected.items():
        got = gives.get(key)
        if key == "says":
            _judge_sayings(value, got or [], {*FREE, *expected.get("may_say", [])})
        elif key == "may_say":
            continue
        elif key == "subscribes":
            if not set(value) <= set(got or []):
                raise Wrong(f"subscribes: expected {_short(value)}, got {_short(got)}")
        elif not (among(value, got) if isinstance(value, dict) else same(value, got)):
            raise Wrong(f"{key}: expected {_short(value)}, got {_short(got)}")


def _judge_sayings(expected: list[Plain], got: list[Plain], free: set[str]) -> None:
    """All that is expected in its order; what comes besides is only of the kinds that are free."""
    left = list(expected)
    for said in got:
        if left and among(left[0], said):
            left.pop(0)
        elif said.get("kind") not in free:
            raise Wrong(f"it says {_short(said)}" + (f", expected {_short(left[0])}" if left else ""))
    if left:
        raise Wrong(f"it does not say {_short(left[0])}")


def among(expected: Any, got: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether all of `expected` is in `got`, which may hold more."""
    if isinstance(expected, dict):
        return isinstance(got, dict) and all(among(value, got.get(key)) for key, value in expected.items())
    return same(expected, got)


def same(expected: Any, got: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether two values are equal; 1 and 1.0 are, and what is null need not be there."""
    if isinstance(expected, dict) and isinstance(got, dict):
        known = {key: value for key, value in expected.items() if value is not None}
        heard = {key: value for key, value in got.items() if value is not None}
        return known.keys() == heard.keys() and all(same(value, heard[key]) for key, value in known.items())
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(same, expected, got))
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    return bool(expected == got)


def _judge_encoding(program: Program, case: Plain, gives: Plain) -> None:
    """An encoder is free in much; but sent + residual must be change + old residual, and k must be kept to."""
    given = case["given"]
    decoded = program.ask("update", {"entries": given["entries"], "update": gives.get("update")})
    if "gives" not in decoded:
        raise Wrong(f"its own update does not decode: {_short(decoded)}")
    sent = _floats(decoded["gives"]["parameters"])
    left, before = _floats(gives.get("residual", "")), _floats(given["residual"])
    if not len(sent) == len(left) == len(before):
        raise Wrong(f"{len(sent)} values sent and {len(left)} left of {len(before)}")
    for index, (q, e, old) in enumerate(zip(sent, left, before, strict=True)):
        p = _float32(_floats(given["change"][8 * index : 8 * index + 8])[0] + old)
        if not math.isfinite(q) or not math.isfinite(e) or Fraction(q) + Fraction(e) != Fraction(p):
            raise Wrong(f"element {index}: sent {q!r} + residual {e!r} is not {p!r}")
    kept = sum(value != 0 for value in sent)
    if kept > case["gives"]["at_most"]:
        raise Wrong(f"{kept} elements sent, at most {case['gives']['at_most']} were asked for")


def _floats(text: str) -> tuple[float, ...]:
    data = bytes.fromhex(text)
    return struct.unpack(f"<{len(data) // 4}f", data)


def _float32(value: float) -> float:
    """The nearest float32; exact for the sum of two, whose rounding to float64 does no harm."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _short(value: Any) -> str:  # noqa: ANN401 - JSON
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


# ------------------------------------------------------------------------------------------------ the run


def run(program: Program, files: list[Path], *, any_reason: bool) -> int:
    """Ask everything; return how many answers were wrong."""
    wrong = 0
    for path in files:
        count: Counter[str] = Counter()
        for case in cases(path):
            if not program.alive:
                return wrong + 1
            try:
                judge(program, case, any_reason=any_reason)
                count["right"] += 1
            except Unsupported:
                count["unsupported"] += 1
            except (Wrong, KeyError, TypeError, ValueError, struct.error) as error:
                count["wrong"] += 1
                _say(f"{path.name}: {case['name']}: {error}")
        wrong += count["wrong"]
        _say(f"{path.name}: " + ", ".join(f"{number} {what}" for what, number in count.items()))
    return wrong


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(
        description="Hold an implementation of the protocol against the vectors."
    )
    parser.add_argument("--only", default="", help="names of files without .json, with commas between them")
    parser.add_argument("--any-reason", action="store_true", help="an error is right whatever its reason")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for one answer (30)")
    parser.add_argument("command", nargs="+", help="the program and its arguments, after --")
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name]
    files = [FOLDER / f"{name}.json" for name in names] if names else sorted(FOLDER.glob("*.json"))
    absent = [path.name for path in files if not path.exists()]
    if absent:
        parser.error(f"no such file of vectors: {', '.join(absent)}")
    try:
        program = Program(options.command, options.timeout)
    except OSError as error:
        parser.error(f"{options.command[0]} does not start: {error.strerror}")
    try:
        wrong = run(program, files, any_reason=options.any_reason)
    finally:
        program.end()
    _say("nothing wrong" if wrong == 0 else f"{wrong} wrong")
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
