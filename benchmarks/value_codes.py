"""The sparse codecs side by side: bits an element sent, and how far off what arrives is.

    make bench BENCH=value_codes ARGS="--json value_codes.json"

Updates with error feedback of the digits MLP at 1 %, each codec in a federation of its own: rounds 5, 10 and 20, three
devices, IID and Dirichlet 0.3, one seed. Bits are those of the payload, its head and indices included; the error is the
sum of squares of what quantisation left of the elements sent, over that of these elements. Means.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.deltas import deltas
from benchmarks.figures import machine
from fedmq_protocol.codecs import CodecSpec, Rounding, Sparse, encode, optional_coders

ROWS: Final[tuple[tuple[str, Rounding], ...]] = (
    ("topk-log4", "nearest"),
    ("topk-sign", "nearest"),
    ("topk-block4", "nearest"),
    ("topk-block4", "stochastic"),
    ("topk-block8", "nearest"),
    ("topk-int8", "nearest"),
)


def measured(
    codec: str,
    rounding: Rounding,
    split_by: str,
    *,
    network: str = "digits_mlp",
    density: float = 0.01,
    rounds: tuple[int, ...] = (5, 10, 20),
) -> dict[str, float]:
    """`bits` an element sent, `error`, and `sent`: the share of the elements kept that are worth sending."""
    bits, errors, shares = [], [], []
    spec = CodecSpec(codec, density, optional_coders(), rounding)
    for delta in deltas(network, split_by, density, rounds=rounds, devices=(0, 3, 7), codec=codec):
        payload, sent = encode(delta.fed_back, spec, shapes=delta.shapes, rng=np.random.default_rng(0))
        assert isinstance(sent, Sparse)
        there = delta.fed_back[sent.indices].astype(np.float64)
        bits.append(8 * len(payload) / sent.nnz)
        errors.append(float(np.sum(np.square(there - sent.values)) / np.sum(np.square(there))))
        shares.append(sent.nnz / spec.kept(len(delta.fed_back)))
    means = map(statistics.fmean, (bits, errors, shares))
    return dict(zip(("bits", "error", "sent"), means, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="digits_mlp")
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the layers are small: more threads wait for one another
    print(f"{arguments.network}, {arguments.density:.1%}; {machine()}")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for codec, rounding in ROWS:
        name = codec if rounding == "nearest" else f"{codec}, {rounding}"
        found = figures[name] = {}
        for split_by in ("iid", "dirichlet"):
            found[split_by] = measured(
                codec, rounding, split_by, network=arguments.network, density=arguments.density
            )
            row = found[split_by]
            print(
                f"{name:<24} {split_by:<10} {row['bits']:6.2f} bits  error {row['error']:8.1e}  "
                f"sent {row['sent']:.2f}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
