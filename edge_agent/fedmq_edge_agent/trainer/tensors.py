"""A model's state_dict as the flat float32 vector of the wire, and back.

Roles (see `fedmq_protocol.schema`) follow from the model itself:

- a floating parameter with `requires_grad` is a `parameter`, without it `frozen`; a floating buffer is a `buffer`;
- whatever is not floating is `local`: BatchNorm's counter, a quantised weight, what `get_extra_state` returns;
- an entry with exactly the memory of an earlier one is `tied` to it.

Half precision is widened exactly; float64 is rounded to float32 on its way out.

A large model's memory can be let go while it is not needed: then its tensors keep their shapes and lose their storage
until `write_vector` fills them again. Whatever reads it asks `is_let_go` first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmq_edge_agent.trainer import paged
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.paged import Paged
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


def write_vector(model: torch.nn.Module, vector: Paged, schema: TensorSchema) -> None:
    """Put float32[schema.size] into the model, in place; tied entries follow, local ones stay."""
    for storage, filled in _storages(model, schema):
        if storage.nbytes() < filled:
            storage.resize_(filled)
    start = 0
    state = model.state_dict()
    with torch.no_grad():
        for entry in schema.vector_entries():
            value = _checked(state, entry)
            if value.is_contiguous():
                flat = value.view(-1)
                for begin, piece in vector.slices(start, start + entry.size):
                    flat[begin - start : begin - start + len(piece)].copy_(torch.from_numpy(piece))
            else:
                whole = vector.vector[start : start + entry.size]
                value.copy_(torch.from_numpy(whole).view(entry.shape))
                vector.let_go(start, start + entry.size)
            start += entry.size


def pieces(model: torch.nn.Module, schema: TensorSchema) -> Iterator[tuple[TensorEntry, Vector]]:
    """The model in the order of the flat vector: pieces of an entry, float32, the caller's own."""
    state = model.state_dict()
    for entry in schema.vector_entries():
        flat = _checked(state, entry).detach().reshape(-1)  # a copy only where the entry is not contiguous
        for piece in flat.split(paged.SLICE):
            # A copy, since PyTorch never lets go of memory that NumPy has seen.
            yield entry, piece.to(torch.float32, copy=True).numpy()


def changes(
    model: torch.nn.Module, began: Paged, schema: TensorSchema
) -> Iterator[tuple[TensorEntry, int, Vector]]:
    """What the model holds less what `write_vector(model, began, schema)` had put there, piece by piece.

    For float32 that is the difference to `began` itself; in half precision the model held `began` rounded, and
    measuring against that keeps the rounding out of every update.

    Args:
        model: it.
        began: float32[schema.size], what training began with.
        schema: the model's.

    Yields:
        The entry; where the piece begins in the flat vector; and the piece, float32, the caller's own.
    """
    begin = 0
    for entry, now in pieces(model, schema):
        end = begin + len(now)
        before = torch.from_numpy(began.vector[begin:end])
        before = before.to(getattr(torch, entry.dtype)).to(torch.float32)
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # it is the caller's to look for what is not finite
            yield entry, begin, now - before.numpy()
        began.let_go(begin, end)
        begin = end


def let_go(model: torch.nn.Module, schema: TensorSchema) -> None:
    """Give the memory of the model's large tensors back to the system. What they hold is lost.

    Only memory that the entries of the flat vector fill to the last byte is let go: `write_vector` restores it all.
    What a task has looked at as a NumPy array (`tensor.numpy()`) stays, since PyTorch does not know who else looks.
    """
    storages = _storages(model, schema)
    freed = [storage for storage, filled in storages if filled == storage.nbytes() >= paged.LARGE_PIECE_BYTES]
    for storage in freed:
        if storage.resizable():
            storage.resize_(0)
    if freed and sys.platform == "linux":
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # glibc keeps what is freed in the middle; musl not
        if trim is not None:
            trim(0)


def is_let_go(model: torch.nn.Module, schema: TensorSchema) -> bool:
    """Whether the model's memory was let go, and not filled since."""
    return any(storage.nbytes() < filled for storage, filled in _storages(model, schema))


def _storages(model: torch.nn.Module, schema: TensorSchema) -> list[tuple[torch.UntypedStorage, int]]:
    """The memories in which the entries of the flat vector lie, and how many bytes these take in each."""
    state = model.state_dict()
    found: dict[int, tuple[torch.UntypedStorage, int]] = {}
    for entry in schema.vector_entries():
        value = _checked(state, entry)
        storage = value.untyped_storage()
        name = storage._cdata  # noqa: SLF001 - what stays the same while it has no memory
        found[name] = storage, found.get(name, (storage, 0))[1] + value.numel() * value.element_size()
    return list(found.values())


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
