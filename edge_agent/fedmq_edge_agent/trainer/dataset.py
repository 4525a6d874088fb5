"""What `load_data` returned, made sense of: examples by index, in batches, without worker processes.

Tensors are indexed directly: for small models a DataLoader costs more than the training.
"""

# ruff: noqa: ANN401 - what comes in is whatever a user's code returned; finding that out is what this file is for

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
)

from fedmq_edge_agent.trainer.errors import TrainerError

Batch = tuple[torch.Tensor, torch.Tensor]
"""X [batch, ...] and y [batch, ...]."""

_PAIR = 2
_SHAPES = "return a Dataset, a DataLoader, or (X, y); or a pair (train, test) of these"


@dataclass(frozen=True)
class Examples:
    """Examples that can be taken by index.

    Attributes:
        raw: as the user's code returned them.
        count: how many there are.
        take: indices int64[batch] -> (X, y), floating X and y in torch's default type, integers as int64.
    """

    raw: Any
    count: int
    take: Callable[[torch.Tensor], Batch]


def split_train_test(loaded: Any) -> tuple[Any, Any | None]:
    """Tell `train` from `(train, test)`; a pair of arrays is one data set."""
    if isinstance(loaded, tuple) and len(loaded) == _PAIR and not _is_arrays(loaded):
        train, test = loaded
        return train, test
    return loaded, None


def examples(data: Any, what: str) -> Examples:
    """Make sense of one data set.

    Args:
        data: a Dataset with a length, a DataLoader over one, or `(X, y)`.
        what: which data they are, for the error's text.

    Raises:
        TrainerError: `task-error`; it is something else.
    """
    if _is_arrays(data):
        return _of_arrays(data, data, what)
    if isinstance(data, TensorDataset) and len(data.tensors) == _PAIR:
        return _of_arrays(data, data.tensors, what)
    collate: Callable[[list[Any]], Any] = default_collate
    dataset = data
    if isinstance(data, DataLoader):
        collate, dataset = data.collate_fn, data.dataset
    if isinstance(dataset, IterableDataset):
        raise TrainerError(
            "task-error", f"the length of the {what}, an IterableDataset, cannot be known; {_SHAPES}"
        )
    if isinstance(dataset, str | bytes | dict | tuple) or not _is_indexed(dataset):
        raise TrainerError("task-error", f"the {what} are a {type(dataset).__name__}; {_SHAPES}")
    return _of_dataset(data, dataset, collate)


def concatenated(parts: Sequence[Any]) -> Any:
    """The data of several devices as one data set."""
    if all(_is_arrays(part) for part in parts):
        return tuple(torch.cat([_tensor(part[side]) for part in parts]) for side in range(_PAIR))
    datasets: list[Dataset[Any]] = []
    for part in parts:
        if _is_arrays(part):
            datasets.append(TensorDataset(_tensor(part[0]), _tensor(part[1])))
        else:
            datasets.append(part.dataset if isinstance(part, DataLoader) else part)
    return ConcatDataset(datasets)


def _of_arrays(raw: Any, arrays: Any, what: str) -> Examples:
    x, y = _tensor(arrays[0]), _tensor(arrays[1])
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        shapes = f"X {list(x.shape)} and y {list(y.shape)}"
        raise TrainerError(
            "task-error", f"the {what} do not have one y for each X along the first axis: {shapes}"
        )
    return Examples(raw=raw, count=len(x), take=lambda indices: (x[indices], y[indices]))


def _of_dataset(raw: Any, dataset: Any, collate: Callable[[list[Any]], Any]) -> Examples:
    def take(indices: torch.Tensor) -> Batch:
        batch = collate([dataset[index] for index in indices.tolist()])
        if not isinstance(batch, tuple | list) or len(batch) != _PAIR:
            detail = "an example of the data is not a pair (x, y); give the task a `train` and an `evaluate` of its own"
            raise TrainerError("task-error", detail)
        return _tensor(batch[0]), _tensor(batch[1])

    return Examples(raw=raw, count=len(dataset), take=take)


def _is_indexed(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _is_arrays(value: Any) -> bool:
    """Whether it is (X, y), as a tuple or a list."""
    pair = isinstance(value, tuple | list) and len(value) == _PAIR
    return pair and all(isinstance(part, torch.Tensor | np.ndarray) for part in value)


def _tensor(value: Any) -> torch.Tensor:
    """Floating values in torch's default type, whole numbers as int64: what layers and losses expect."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if not isinstance(value, torch.Tensor):
        kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        detail = f"the data hold a {kind}, not numbers; turn them into numbers in load_data, class names too"
        raise TrainerError("task-error", detail)
    return value.to(torch.get_default_dtype()) if value.is_floating_point() else value.to(torch.int64)
