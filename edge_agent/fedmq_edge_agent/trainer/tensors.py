"""A model's state_dict as the flat float32 vector of the wire, and back.

Roles (see `fedmq_protocol.schema`) follow from the model itself:

- a floating parameter with `requires_grad` is a `parameter`, without it `frozen`; a floating buffer is a `buffer`;
- whatever is not floating is `local`: BatchNorm's counter, a quantised weight, what `get_extra_state` returns;
- an entry with exactly the memory of an earlier one is `tied` to it.

Half precision is widened exactly; float64 is rounded to float32 on its way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_protocol.schema import Role, TensorEntry, TensorSchema

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class _Memory:
    """The bytes that a tensor lives in: from `start` to before `end`, `elements` of them used."""

    start: int
    end: int
    elements: int


def schema_of(model: torch.nn.Module) -> TensorSchema:
    """Describe the entries of `model.state_dict()`, in its order.

    Raises:
        TrainerError: `task-error`; an entry cannot be federated: complex, lazy, without memory, or overlapping another.
    """
    entries: list[TensorEntry] = []
    memories: dict[_Memory, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            entries.append(TensorEntry(name=name, shape=(), dtype="object", role="local"))
            continue
        tied_to = _tied_to(name, value, memories)
        entries.append(
            TensorEntry(
                name=name,
                shape=tuple(value.shape),
                dtype=str(value.dtype).removeprefix("torch."),
                role="tied" if tied_to else _role(name, value),
                tied_to=tied_to,
            )
        )
    schema = TensorSchema(entries=tuple(entries))
    if schema.num_parameters == 0:
        raise TrainerError(
            "task-error", "the model has no trainable floating parameters; there is nothing to federate"
        )
    return schema


def read_vector(model: torch.nn.Module, schema: TensorSchema) -> Vector:
    """The model as float32[schema.size]: parameters, then frozen tensors, then buffers."""
    vector = np.empty(schema.size, dtype=np.float32)
    whole = torch.from_numpy(vector)
    start = 0
    state = model.state_dict()
    for entry in schema.vector_entries():
        # [*shape] -> [size]; copy_ widens or rounds
        whole[start : start + entry.size].view(entry.shape).copy_(_checked(state, entry))
        start += entry.size
    return vector


def write_vector(model: torch.nn.Module, vector: Vector, schema: TensorSchema) -> None:
    """Put float32[schema.size] into the model, in place; tied entries follow, local ones stay."""
    whole = torch.from_numpy(vector)
    start = 0
    state = model.state_dict()
    with torch.no_grad():
        for entry in schema.vector_entries():
            _checked(state, entry).copy_(whole[start : start + entry.size].view(entry.shape))
            start += entry.size


def is_exact(schema: TensorSchema) -> bool:
    """Whether the model holds every float32 as it is, so that what is written is what is read."""
    return all(entry.dtype in {"float32", "float64"} for entry in schema.vector_entries())


def _checked(state: dict[str, Any], entry: TensorEntry) -> torch.Tensor:
    value = state.get(entry.name)
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != entry.shape:
        raise TrainerError(
            "train-failed", f"training changed the shape of the model: {entry.name} is not {entry.shape}"
        )
    return value


def _role(name: str, value: torch.Tensor) -> Role:
    if value.is_complex():
        raise TrainerError(
            "task-error", f"{name} is complex; keep its real and imaginary parts as two tensors"
        )
    if not value.is_floating_point():
        return "local"
    if not isinstance(value, torch.nn.Parameter):
        return "buffer"
    return "parameter" if value.requires_grad else "frozen"


def _tied_to(name: str, value: torch.Tensor, memories: dict[_Memory, str]) -> str:
    """The earlier entry that has exactly this one's memory, or ""."""
    if torch.nn.parameter.is_lazy(value):
        raise TrainerError(
            "task-error", f"{name} has no shape yet; let `model` run its lazy modules once on an example"
        )
    if value.is_meta or value.layout is not torch.strided:
        raise TrainerError(
            "task-error", f"{name} is not a plain tensor in memory ({value.device}, {value.layout})"
        )
    if value.numel() == 0:
        return ""
    memory = _memory(value)
    for other, owner in memories.items():
        if memory == other:
            return owner
        if memory.start < other.end and other.start < memory.end:
            raise TrainerError(
                "task-error", f"{name} shares part of its memory with {owner}; share all of it or none"
            )
    memories[memory] = name
    return ""


def _memory(value: torch.Tensor) -> _Memory:
    """Strides of a plain tensor are not negative, so the last element is the one with the largest indices."""
    reach = sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True))
    start = value.data_ptr()
    return _Memory(start, start + (reach + 1) * value.element_size(), value.numel())
