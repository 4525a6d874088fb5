"""What coding a large model takes beside the model: anonymous memory above what was there, and CPU time.

    make bench BENCH=codec_memory ARGS="--parameters 100000000 --json codec_memory.json"

The vectors lie in files (`np.memmap`), as on a device; what is read of them is the kernel's to take back, so anonymous
memory is what a step costs. It is looked at every 5 ms from beside, and given above what there was before the first
step, as a multiple of the vector, 4 n bytes: what an earlier step left behind counts too, payloads included.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import machine
from fedmq_protocol.codecs import (
    CodecSpec,
    apply_delta,
    decode_snapshot_into,
    decode_update,
    encode_delta,
    encode_snapshot_to,
    encode_update_inplace,
    replica_sha256,
    requantise_inplace,
)
from fedmq_protocol.schema import TensorEntry, TensorSchema

Vector = NDArray[np.float32]

_LOOK_EVERY_S = 0.005
_PIECE = 1 << 20
_ROW = 10_000


@dataclass(frozen=True)
class Step:
    """One thing done to a model.

    Attributes:
        name: what.
        extra: anonymous memory at its peak, above what there was before the first step, over the vector's size.
        seconds: of CPU.
        megabytes_a_second: of the vector, by CPU time.
    """

    name: str
    extra: float
    seconds: float
    megabytes_a_second: float


class _Watch:
    """Sees the most anonymous memory that this process holds."""

    def __init__(self) -> None:
        self.most = _anonymous_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self.most = max(self.most, _anonymous_bytes())


def steps(n: int, folder: Path, *, up: float = 0.01, down: float = 0.03) -> Iterator[Step]:
    """What a round does to a model of n parameters, one after another."""
    rows = max(1, n // _ROW)
    shape = (rows, n // rows) if n % rows == 0 else (n,)
    schema = TensorSchema(entries=(TensorEntry(name="w", shape=shape, dtype="float32", role="parameter"),))
    change, model, replica = (_vector(folder / name, n, seed) for seed, name in enumerate("cmr"))
    no_buffers, file = np.empty(0, np.float32), (folder / "snapshot").open("w+b")
    update, delta = io.BytesIO(), io.BytesIO()
    before = _anonymous_bytes()
    upward, downward = CodecSpec("topk-log4", up), CodecSpec("topk-log4", down)

    def step(name: str, act: Callable[[], object]) -> Step:
        started = time.process_time()
        with _Watch() as watch:
            act()
        seconds = max(time.process_time() - started, 1e-9)
        return Step(name, (watch.most - before) / (4 * n), seconds, 4e-6 * n / seconds)

    yield step(
        f"update of {up:.0%}: select, split, code",
        lambda: update.write(encode_update_inplace(change, no_buffers, schema, upward)),
    )
    yield step(
        "the same, decoded and added",
        lambda: decode_update(update.getvalue(), schema).parameters.add_to(model),
    )
    yield step("snapshot in int8 to a file", lambda: encode_snapshot_to(model, schema, "int8", file))
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        yield step("snapshot from a file", lambda: decode_snapshot_into(view, schema, replica))
    yield step(f"delta of {down:.0%}", lambda: delta.write(encode_delta(model, replica, schema, downward)))
    yield step("delta applied", lambda: apply_delta(replica, delta.getvalue(), schema))
    yield step("rebase", lambda: requantise_inplace(replica, schema, "int8"))
    yield step("hash of the replica", lambda: replica_sha256(replica))
    file.close()


def _vector(path: Path, n: int, seed: int) -> Vector:
    """float32[n] in a file, normal."""
    rng = np.random.default_rng(seed)
    vector: Vector = np.memmap(path, np.float32, "w+", shape=(n,))
    for start in range(0, n, _PIECE):
        piece = vector[start : start + _PIECE]
        piece[:] = rng.standard_normal(len(piece), dtype=np.float32)
    return vector


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.parameters:,} parameters, {4e-6 * arguments.parameters:,.0f} MB; {machine()}")
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for step in steps(arguments.parameters, Path(folder)):
            print(
                f"{step.name:<38} {step.extra:5.2f} x the model {step.seconds:6.2f} s CPU "
                f"{step.megabytes_a_second:7,.0f} MB/s",
                flush=True,
            )
            done.append(step)
    if arguments.json is not None:
        figures = {"parameters": arguments.parameters, "steps": [asdict(step) for step in done]}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
