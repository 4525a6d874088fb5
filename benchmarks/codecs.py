"""What codecs take: bits an index beside bounds and other coders, whole updates beside float32, and speed.

    make bench BENCH=codecs ARGS="--json codecs.json"

Updates come from small networks trained on digits by a federation in this process (`deltas`): rounds 2, 6 and 10, three
of ten devices, IID and Dirichlet 0.3. Figures are medians over these. `coders` has every index coder that was tried;
pcodec and constriction are tried where they are installed, the mixing of contexts element by element with `--slow`.

Speed is of one core at 10 million parameters and 1 %: encoding from change and residual to payload and new residual,
decoding from payload to accumulator, each in megabytes of the dense vector a second and beside `np.argpartition` and
a bare scatter-add of the same data, taken in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.coders import available, even
from benchmarks.deltas import MODELS, Delta, deltas
from benchmarks.figures import machine
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import CodecSpec, decode_update, encode_update, optional_coders, select
from fedmq_protocol.codecs.choice import smallest
from fedmq_protocol.codecs.model import encode_update_inplace
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.limits import DEFAULT_CODE_MS
from fedmq_protocol.messages import Update, UpdateHeader
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

DENSITIES: Final = (0.001, 0.01, 0.05, 0.1)
NETWORKS: Final = ("digits_mlp", "digits_cnn", "digits_transformer")
SPLITS: Final = ("iid", "dirichlet")
UNHURRIED_MS: Final = 10_000.0
"""More than any coder of the project takes here."""
_LARGE: Final = "digits_wide"
_REPEATS: Final = 7


def measured(
    network: str, density: float, rounds: Sequence[int], devices: Sequence[int], *, slow: bool
) -> dict[str, Any]:
    """The figures of one network at one density."""
    bits: dict[str, dict[str, list[float]]] = {"fed back": {}, "raw": {}}
    bounds: list[float] = []
    ratios: dict[str, dict[str, list[float]]] = {"within code_ms": {}, "unhurried": {}}
    for split_by in SPLITS:
        for delta in deltas(network, split_by, density, rounds=rounds, devices=devices):
            n, kept = len(delta.raw), ceil(density * len(delta.raw))
            for kind, vector in (("fed back", delta.fed_back), ("raw", delta.raw)):
                indices = select(vector, kept)
                for name, coder in available(slow=slow).items():
                    taken = coder(indices, n, delta.shapes) / kept
                    bits[kind].setdefault(name, []).append(taken)
                default = smallest(
                    indices,
                    n,
                    CodecSpec("topk-log4").index_codes(),
                    shapes=delta.shapes,
                    code_ms=DEFAULT_CODE_MS,
                )
                bits[kind].setdefault("sent by default", []).append(8 * len(default[1]) / kept)
            bounds.append(even(indices, n, delta.shapes) / kept)
            _weigh(delta, "topk-log4", density, ratios)
        for delta in deltas(network, split_by, density, rounds=rounds, devices=devices, codec="topk-sign"):
            _weigh(delta, "topk-sign", density, ratios)
    tried = {
        kind: {name: statistics.median(all_) for name, all_ in found.items()} for kind, found in bits.items()
    }
    short = {"topk-log4": "log4", "topk-sign": "sign"}
    weighed = {
        hurry: {short[name]: statistics.median(all_) for name, all_ in found.items()}
        for hurry, found in ratios.items()
    }
    mandatory = ("rice", "grid")
    return {
        "bound": statistics.median(bounds),
        "index_bits": min(tried["fed back"][name] for name in mandatory),
        "index_bits_raw": min(tried["raw"][name] for name in mandatory),
        "index_bits_mandatory": min(tried["fed back"][name] for name in mandatory),
        "index_bits_default": tried["fed back"]["sent by default"],
        "update_ratio": weighed["within code_ms"],
        "update_ratio_unhurried": weighed["unhurried"],
        "tried": tried["fed back"],
        "tried_raw": tried["raw"],
    }


def _weigh(delta: Delta, codec: str, density: float, ratios: dict[str, dict[str, list[float]]]) -> None:
    """How many times smaller than float32 the packet is in which this update travels."""
    schema = _schema(delta.shapes)
    for hurry, code_ms in (("within code_ms", DEFAULT_CODE_MS), ("unhurried", UNHURRIED_MS)):
        spec = CodecSpec(codec, density, optional_coders(), code_ms=code_ms)
        blob, _ = encode_update(delta.fed_back, None, schema, spec)
        ratios[hurry].setdefault(codec, []).append(4 * len(delta.raw) / _packet_bytes(blob, schema))


def _schema(shapes: Iterable[tuple[int, ...]]) -> TensorSchema:
    return TensorSchema(
        entries=tuple(
            TensorEntry(name=f"layers.{place}", shape=shape, dtype="float32", role="parameter")
            for place, shape in enumerate(shapes)
        )
    )


def _packet_bytes(blob: bytes, schema: TensorSchema) -> int:
    """Of a signed update with the fields that a device fills in: what MQTT carries as payload."""
    header = UpdateHeader(
        run="run-20261123-1",
        counter=7,
        lease=7,
        base_version=6,
        schema_hash=schema.hash,
        num_examples=144,
        payload=blob_ref(blob),
        train_s=0.25,
        metrics={"loss": 0.5},
        traffic=(123_456, 123_456),
    )
    sealer = Sealer(sender="dev-1", epoch=3, key=SigningKey(bytes(range(32))))
    topic = Topics("home").up("dev-1", "update")
    return len(sealer.seal(topic, Update(header=header, data=blob)))


def speed(network: str = _LARGE, density: float = 0.01, repeats: int = _REPEATS) -> dict[str, float]:
    """Encoding and decoding on one core, and the bare operations beside them; seconds of CPU."""
    delta = next(iter(deltas(network, "iid", density, rounds=[2], devices=[0])))
    schema, n = _schema(delta.shapes), len(delta.raw)
    residual = delta.fed_back - delta.raw
    spec = CodecSpec("topk-log4", density, optional_coders())
    blob, _ = encode_update(delta.fed_back, None, schema, spec)
    kept = decode_update(blob, schema).parameters
    indices, values = select(delta.fed_back, kept.nnz), np.ones(kept.nnz, np.float32)
    k, total, acc = kept.nnz, np.empty(n, np.float32), np.zeros(n, np.float32)
    nothing = np.empty(0, np.float32)

    def encode() -> None:
        np.add(delta.raw, residual, out=total)
        encode_update_inplace(total, nothing, schema, spec)

    def decode() -> None:
        decode_update(blob, schema).parameters.add_to(acc, 0.1)

    def scatter() -> None:
        acc[indices] += values

    steps: dict[str, Callable[[], object]] = {
        "encode": encode,
        "argpartition": lambda: np.argpartition(np.abs(delta.fed_back), n - k),
        "decode": decode,
        "scatter": scatter,
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            begun = time.process_time()
            step()
            taken[name].append(time.process_time() - begun)
    seconds = {name: statistics.median(all_) for name, all_ in taken.items()}
    megabytes = 4e-6 * n
    return {
        "parameters": n,
        "update_ratio": 4 * n / _packet_bytes(blob, schema),
        "encode_mb_s": megabytes / seconds["encode"],
        "encode_to_argpartition": seconds["encode"] / seconds["argpartition"],
        "decode_mb_s": megabytes / seconds["decode"],
        "decode_to_scatter_add": seconds["decode"] / seconds["scatter"],
    }


def _shown(network: str, found: dict[str, dict[str, Any]]) -> None:
    """A table of each coder's bits, then what whole updates come to."""
    print(f"\n{network}: bits a kept element, with error feedback | raw")
    print(f"{'':30}" + "".join(f"{100 * float(density):>14.4g} %" for density in found))
    names = next(iter(found.values()))["tried"]
    print(f"{'evenly spread':30}" + "".join(f"{each['bound']:16.2f}" for each in found.values()))
    for name in names:
        cells = (f"{each['tried'][name]:8.2f} |{each['tried_raw'][name]:6.2f}" for each in found.values())
        print(f"{name:30}" + "".join(f"{cell:>16}" for cell in cells))
    for key in ("update_ratio", "update_ratio_unhurried"):
        cells = (f"{each[key]['log4']:.0f}, {each[key]['sign']:.0f}" for each in found.values())
        print(f"{key + ', log4, sign':30}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=list(MODELS), help="(the three of digits)")
    parser.add_argument("--density", action="append", type=float, help="(0.001, 0.01, 0.05, 0.1)")
    parser.add_argument("--round", action="append", type=int, help="rounds to look at (2, 6, 10)")
    parser.add_argument("--device", action="append", type=int, help="devices to look at (0, 4, 7)")
    parser.add_argument("--large", choices=list(MODELS), default=_LARGE, help="whose speed is measured")
    parser.add_argument("--slow", action="store_true", help="mix contexts, too: some minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    result: dict[str, Any] = {}
    for network in options.model or NETWORKS:
        result[network] = {
            str(density): measured(
                network,
                density,
                options.round or (2, 6, 10),
                options.device or (0, 4, 7),
                slow=options.slow,
            )
            for density in options.density or DENSITIES
        }
        _shown(network, result[network])
    result["speed"] = speed(options.large)
    print("\nspeed: " + ", ".join(f"{name} {value:,.2f}" for name, value in result["speed"].items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
