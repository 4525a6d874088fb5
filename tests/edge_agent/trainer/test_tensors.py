"""A state_dict as a flat vector: roles, order, ties, half precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.paged import Paged
from fedmq_edge_agent.trainer.tensors import (
    changes,
    is_let_go,
    let_go,
    read_vector,
    schema_of,
    write_vector,
)


class Mixed(nn.Module):
    """One entry of each role, in an order that is not the vector's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight
        self.base = nn.Linear(3, 2)
        self.base.requires_grad_(requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scale", torch.tensor(2.0))


def test_roles_and_order_of_the_vector() -> None:
    model = Mixed()
    schema = schema_of(model)
    roles = {entry.name: entry.role for entry in schema.entries}
    assert roles == {
        "mask": "local",
        "scale": "buffer",
        "norm.weight": "parameter",
        "norm.bias": "parameter",
        "norm.running_mean": "buffer",
        "norm.running_var": "buffer",
        "norm.num_batches_tracked": "local",
        "embed.weight": "parameter",
        "out.weight": "tied",
        "out.bias": "parameter",
        "base.weight": "frozen",
        "base.bias": "frozen",
    }
    assert {e.name: e.tied_to for e in schema.entries if e.tied_to} == {"out.weight": "embed.weight"}
    assert (schema.num_parameters, schema.num_frozen, schema.num_buffers) == (
        3 + 3 + 15 + 5,
        6 + 2,
        1 + 3 + 3,
    )
    expected = torch.cat(
        [
            part.detach().reshape(-1)
            for part in (
                *(model.norm.weight, model.norm.bias, model.embed.weight, model.out.bias),
                *(model.base.weight, model.base.bias),
                *(model.scale, model.norm.running_mean, model.norm.running_var),
            )
            if isinstance(part, torch.Tensor)
        ]
    )
    np.testing.assert_array_equal(read_vector(model, schema), expected.numpy())


def test_writing_reaches_every_entry_and_ties_stay_tied() -> None:
    model = Mixed()
    schema = schema_of(model)
    vector = np.arange(schema.size, dtype=np.float32)
    write_vector(model, Paged(vector), schema)
    np.testing.assert_array_equal(read_vector(model, schema), vector)
    assert model.out.weight is model.embed.weight
    assert model.embed.weight[0, 0].item() == 6.0
    model.out.weight.data[0, 0] = -1.0
    assert read_vector(model, schema)[6] == -1.0
    assert not model.base.weight.requires_grad


def test_schema_follows_from_the_model_alone() -> None:
    assert schema_of(Mixed()).hash == schema_of(Mixed()).hash
    thawed = Mixed()
    thawed.base.requires_grad_(requires_grad=True)
    assert schema_of(thawed).hash != schema_of(Mixed()).hash


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(dtype: torch.dtype) -> None:
    model = nn.Linear(40, 30).to(dtype)
    schema = schema_of(model)
    assert {entry.dtype for entry in schema.entries} == {str(dtype).removeprefix("torch.")}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vector = read_vector(model, schema)
    assert vector.dtype == np.float32
    for value in model.state_dict().values():
        value.zero_()
    write_vector(model, Paged(vector), schema)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_float64_is_rounded_once() -> None:
    model = nn.Linear(3, 2).double()
    schema = schema_of(model)
    vector = read_vector(model, schema)
    np.testing.assert_array_equal(vector[:6], model.weight.detach().numpy().astype(np.float32).ravel())


def test_scalars_and_empty_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(3.0))
            self.none = nn.Parameter(torch.empty(0, 4))
            self.also_none = nn.Parameter(torch.empty(0, 4))

    model = Odd()
    schema = schema_of(model)
    assert [entry.role for entry in schema.entries] == ["parameter"] * 3
    np.testing.assert_array_equal(read_vector(model, schema), [3.0])


def _transposed_tie() -> nn.Module:
    first, second = nn.Linear(2, 3), nn.Linear(3, 2)
    second.weight = nn.Parameter(first.weight.t())
    return nn.ModuleList([first, second])


def test_a_transposed_view_of_the_same_memory_is_tied() -> None:
    model = _transposed_tie()
    schema = schema_of(model)
    assert {e.name: e.tied_to for e in schema.entries if e.tied_to} == {"1.weight": "0.weight"}
    write_vector(model, Paged(np.arange(schema.size, dtype=np.float32)), schema)
    assert torch.equal(model.state_dict()["1.weight"], model.state_dict()["0.weight"].t())


def _part_of_another() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 2)
    second.weight = nn.Parameter(first.weight.data[:2])
    return nn.ModuleList([first, second])


def _complex() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_parameter("phase", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    return model


def _frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_part_of_another, r"1\.weight shares part of its memory with 0\.weight"),
        (_complex, "phase is complex"),
        (lambda: nn.LazyLinear(3), "weight has no shape yet"),
        (_frozen, "no trainable"),
        (lambda: nn.Linear(2, 2, device="meta"), "not a plain tensor in memory"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_federated_is_named(make: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(TrainerError, match=says) as caught:
        schema_of(make())
    assert caught.value.code == "task-error"


def test_extra_state_stays_on_the_device() -> None:
    class WithExtra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: object) -> None:
            pass

    roles = {entry.name: entry.role for entry in schema_of(WithExtra(2, 2)).entries}
    assert roles["_extra_state"] == "local"


def test_a_model_that_training_reshaped_is_refused() -> None:
    model = nn.Linear(2, 2)
    schema = schema_of(model)
    model.weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(TrainerError, match="weight"):
        read_vector(model, schema)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_change_is_measured_against_what_the_model_held(dtype: torch.dtype) -> None:
    model = Mixed().to(dtype)
    schema = schema_of(model)
    began = np.random.default_rng(1).normal(size=schema.size).astype(np.float32)
    write_vector(model, Paged(began), schema)
    held = read_vector(model, schema)
    assert np.array_equal(held, began) == (dtype in {torch.float32, torch.float64})
    with torch.no_grad():
        model.base.bias.add_(1.0)
        model.embed.weight.mul_(0.5)
    found = np.zeros(schema.size, np.float32)
    for _, begin, piece in changes(model, Paged(began), schema):
        found[begin : begin + len(piece)] = piece
    np.testing.assert_array_equal(found, read_vector(model, schema) - held)


def test_a_model_whose_memory_was_let_go_comes_back_whole() -> None:
    class Big(nn.Module):
        """Two parameters of 8 MB in one memory, a third that shares its own with what is no entry, and a small one."""

        def __init__(self) -> None:
            super().__init__()
            whole = torch.zeros(2, 2_000_000)
            self.first, self.second = nn.Parameter(whole[0]), nn.Parameter(whole[1])
            self.beside = torch.ones(3_000_000)
            self.third = nn.Parameter(self.beside[1_000_000:])
            self.small = nn.Parameter(torch.ones(10))

    model = Big()
    schema = schema_of(model)
    optimizer_sees = list(model.parameters())
    vector = np.random.default_rng(0).normal(size=schema.size).astype(np.float32)
    assert not is_let_go(model, schema)
    let_go(model, schema)
    assert is_let_go(model, schema)
    assert model.first.untyped_storage().nbytes() == 0
    assert model.small.sum().item() == 10
    assert model.beside.sum().item() == 3_000_000
    write_vector(model, Paged(vector), schema)
    assert not is_let_go(model, schema)
    np.testing.assert_array_equal(read_vector(model, schema), vector)
    assert model.first.data_ptr() + 8_000_000 == model.second.data_ptr()
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), optimizer_sees, strict=True))
    assert model.beside[:1_000_000].sum().item() == 1_000_000
    model.first.sum().backward()
    assert model.first.grad is not None
