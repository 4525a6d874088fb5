"""The tensor schema: which entries of a model's state_dict are federated, and how.

A model travels as one flat float32 vector: the trainable parameters first, then the frozen tensors, then the floating
buffers, each group in the order of the state_dict. The roles decide what happens to an entry:

- `parameter`: trained on devices; travels as sparse quantised deltas with error feedback.
- `buffer`: floating statistics such as BatchNorm's running mean; small, averaged dense in full precision.
- `frozen`: floating, but not trained; part of the first snapshot, so that all devices hold the same, and of no update.
- `local`: not floating (BatchNorm's batch counter); stays on the device and never travels.
- `tied`: shares its storage with an earlier entry, named in `tied_to`; travels with that one.

Half precision is widened to float32 on the wire and narrowed again by the trainer.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Annotated, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field

from fedmq_protocol.limits import MAX_PARAMETERS, MAX_TENSOR_DIMS, MAX_TENSORS

Role = Literal["parameter", "buffer", "frozen", "local", "tied"]


class TensorEntry(BaseModel):
    """One entry of a state_dict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=512)]
    shape: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_PARAMETERS)], ...], Field(max_length=MAX_TENSOR_DIMS)
    ]
    dtype: Annotated[str, Field(min_length=1, max_length=32)]
    role: Role
    tied_to: Annotated[str, Field(max_length=512)] = ""

    @property
    def size(self) -> int:
        """How many elements it has; a scalar has one."""
        return math.prod(self.shape)


class TensorSchema(BaseModel):
    """The ordered entries of a model; its hash pins what a run trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entries: Annotated[tuple[TensorEntry, ...], Field(max_length=MAX_TENSORS)]

    def _size(self, role: Role) -> int:
        return sum(entry.size for entry in self.entries if entry.role == role)

    @cached_property
    def num_parameters(self) -> int:
        """Elements of trainable parameters: the first part of the flat vector."""
        return self._size("parameter")

    @cached_property
    def num_buffers(self) -> int:
        """Elements of floating buffers: the last part of the flat vector."""
        return self._size("buffer")

    @cached_property
    def num_frozen(self) -> int:
        """Elements of frozen tensors: the second part of the flat vector."""
        return self._size("frozen")

    @cached_property
    def parameter_sizes(self) -> tuple[int, ...]:
        """Elements of each trainable parameter, in the order of the flat vector."""
        return tuple(entry.size for entry in self.entries if entry.role == "parameter")

    @property
    def size(self) -> int:
        """Elements of the whole flat vector."""
        return self.num_parameters + self.num_buffers + self.num_frozen

    def vector_entries(self) -> list[TensorEntry]:
        """The entries that travel, in the order of the flat vector."""
        order: tuple[Role, ...] = ("parameter", "frozen", "buffer")
        return [entry for role in order for entry in self.entries if entry.role == role]

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the trainable parameters, in the order of the flat vector."""
        return tuple(entry.shape for entry in self.entries if entry.role == "parameter")

    @cached_property
    def hash(self) -> str:
        """SHA-256 in hex over the msgpack array of [name, shape, dtype, role, tied_to], entry by entry."""
        plain = [[e.name, list(e.shape), e.dtype, e.role, e.tied_to] for e in self.entries]
        return hashlib.sha256(msgpack.packb(plain)).hexdigest()
