"""Write what the JavaScript agent needs of a task: its name, the shapes of its tensors, and one device's examples.

python export.py ../digits/digits.py --partition 0 --of 2 --test --out data/digits-0.json

The task's file is one that `fedmq agent try` takes: `task`, with `model` and `load_data`. The model must be
`nn.Sequential(Linear, ReLU, ..., Linear)`, and the data an array of numbers with one label each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np


class Device(dict[str, Any]):
    """What a task's loader wants to know: attributes, and as keys what else `--data` gave."""

    def __init__(self, partition_id: int, num_partitions: int, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.partition_id = partition_id
        self.num_partitions = num_partitions
        self.folder: str | None = None
        self.seed = 0
        self.settings = settings


def load_task(path: Path) -> Any:
    """The `task` that a Python file defines."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.task


def tensors(model: Any) -> list[dict[str, Any]]:
    """The entries of the model's tensor schema (see docs/protocol.md); each one is a parameter."""
    names = {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    assert names == set(state), "a model with buffers is none of this agent's"
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "role": "parameter",
            "tied_to": "",
        }
        for name, tensor in state.items()
    ]


def examples(data: tuple[Any, Any] | None) -> dict[str, Any] | None:
    """Inputs as small whole numbers times a scale where they are such, else as they are."""
    if data is None:
        return None
    x, y = np.asarray(data[0], dtype=np.float64), np.asarray(data[1])
    whole = np.array_equal(x * 16, np.round(x * 16))
    rows = (x * 16).astype(int) if whole else np.round(x, 6)
    return {"scale": 1 / 16 if whole else 1, "x": rows.tolist(), "y": y.tolist()}


def main() -> None:
    """Write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("task", type=Path)
    parser.add_argument("--partition", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="the held-out examples as well")
    parser.add_argument(
        "--data", default="{}", help='more for the task\'s loader, as JSON: {"split": "alice"}'
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    task = load_task(options.task)
    device = Device(options.partition, options.of, json.loads(options.data))
    data = task.load_data(device)
    train = data[0] if isinstance(data[0], tuple) else data
    exported = {
        "name": task.name,
        "version": task.version,
        "tensors": tensors(task.model()),
        "train": examples(train),
        "test": examples(task.load_test_data(device) if options.test else None),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(exported, separators=(",", ":")))


if __name__ == "__main__":
    main()
