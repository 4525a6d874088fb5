"""What load_data may return, and what is said of anything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fedmq_edge_agent.trainer.dataset import concatenated, examples, split_train_test
from fedmq_edge_agent.trainer.errors import TrainerError

X = torch.arange(12.0).reshape(6, 2)
Y = torch.arange(6)
FIRST_AND_LAST = torch.tensor([0, 5])


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X.numpy().astype(np.float64), Y.numpy().astype(np.int32)),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        [(X[i], int(Y[i])) for i in range(6)],
    ],
)
def test_all_shapes_give_the_same_batches(data: Any) -> None:
    made = examples(data, "data")
    x, y = made.take(FIRST_AND_LAST)
    assert made.count == 6
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.tolist() == [[0.0, 1.0], [10.0, 11.0]]
    assert y.tolist() == [0, 5]
    assert made.raw is data


def test_read_only_arrays_are_taken() -> None:
    x = X.numpy().copy()
    x.setflags(write=False)
    assert examples((x, Y), "data").count == 6


def test_a_pair_of_arrays_is_one_data_set_and_other_pairs_are_train_and_test() -> None:
    assert split_train_test((X, Y)) == ((X, Y), None)
    assert split_train_test(((X, Y), (X, Y))) == ((X, Y), (X, Y))
    assert split_train_test(((X, Y), None)) == ((X, Y), None)
    whole = TensorDataset(X, Y)
    assert split_train_test(whole) == (whole, None)
    assert split_train_test((whole, whole)) == (whole, whole)


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "training data are a NoneType"),
        ({"x": X}, "are a dict"),
        (Endless(), "IterableDataset"),
        ((X, Y[:3]), r"X \[6, 2\] and y \[3\]"),
        ((X, np.array(["a"] * 6)), "class names"),
        ((X, torch.tensor(1)), "one y for each X"),
    ],
)
def test_anything_else_is_named(data: Any, says: str) -> None:
    with pytest.raises(TrainerError, match=says) as caught:
        examples(data, "training data")
    assert caught.value.code == "task-error"


def test_examples_that_are_no_pairs_are_named_when_they_are_taken() -> None:
    made = examples([1.0, 2.0], "data")
    with pytest.raises(TrainerError, match="not a pair"):
        made.take(torch.tensor([0]))


def test_parts_of_several_devices_are_joined_in_order() -> None:
    parts: list[list[Any]] = [
        [(X[:2], Y[:2]), (X[2:], Y[2:])],
        [TensorDataset(X[:2], Y[:2]), DataLoader(TensorDataset(X[2:], Y[2:]))],
        [(X[:2], Y[:2]), TensorDataset(X[2:], Y[2:])],
    ]
    for pair in parts:
        whole = examples(concatenated(pair), "data")
        assert whole.count == 6
        assert whole.take(torch.arange(6))[0].tolist() == X.tolist()
