"""Weights from and into files: a checkpoint to start from, a model to take away, a flat vector between processes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedmq_edge_agent.trainer.durable import flush_folder, replacing
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.paged import SLICE, Paged, map_file
from fedmq_edge_agent.trainer.tensors import pieces
from fedmq_protocol.schema import TensorSchema

_LISTED = 3  # names that an error shows
_ALIGNMENT = 8
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}


def load_checkpoint(model: torch.nn.Module, path: Path, schema: TensorSchema) -> None:
    """Put a `.safetensors` file, or a state_dict that `torch.save` wrote, into the model.

    Whatever `schema` calls local may be missing; the rest must be there, in the same shapes, and nothing else.

    Raises:
        TrainerError: `bad-checkpoint`; it cannot be read, or is of another model: says which entries.
    """
    state = _read_checkpoint(path)
    entries = {entry.name: entry for entry in schema.entries}
    needed = {name for name, entry in entries.items() if entry.role not in {"local", "tied"}}
    for problem, names in (("lacks", needed - state.keys()), ("has unknown", state.keys() - entries.keys())):
        if names:
            raise TrainerError("bad-checkpoint", f"{path} is of another model: it {problem} {_some(names)}")
    shapes = {name for name, value in state.items() if tuple(value.shape) != entries[name].shape}
    if shapes:
        raise TrainerError(
            "bad-checkpoint", f"{path} is of another model: the shape differs for {_some(shapes)}"
        )
    damaged = {
        name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()
    }
    if damaged:
        raise TrainerError("bad-checkpoint", f"{path} holds values that are not finite, in {_some(damaged)}")
    model.load_state_dict(dict(state), strict=False)


def save_model(model: torch.nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors` file with the state_dict's names, shapes and dtypes; tied entries are written each.

    Written here and not by its own library, which would take two copies of the model for it.

    Raises:
        TrainerError: `bad-file`; it cannot be written, or has no name for the type of an entry.
    """
    state = {
        name: value.detach() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)
    }
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, value in sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0])):
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise TrainerError("bad-file", f"{path}: a safetensors file has no {dtype}, which {name} is in")
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % _ALIGNMENT)
    try:
        with replacing(path) as file:
            file.write(struct.pack("<Q", len(packed)) + packed)
            for name in list(header)[1:]:
                for piece in state[name].reshape(-1).split(SLICE):
                    file.write(piece.clone().view(torch.uint8).numpy().data)
        flush_folder(path.parent)
    except OSError as error:
        raise TrainerError("bad-file", f"cannot write {path}: {error.strerror}") from None


def read_vector_file(path: Path, size: int) -> Paged:
    """Raw float32 little-endian values; a large file is mapped, not read.

    Raises:
        TrainerError: `bad-file`; missing, of another size, or not finite.
    """
    try:
        values = map_file(path, size)
    except OSError as error:
        raise TrainerError("bad-file", f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise TrainerError("bad-file", str(error)) from None
    for _, piece in values.slices():
        if not np.isfinite(piece).all():
            raise TrainerError("bad-file", f"{path} holds values that are not finite")
    return values


def write_vector_file(model: torch.nn.Module, schema: TensorSchema, file: BinaryIO) -> None:
    """Write the model as raw float32 little-endian values, entry by entry.

    Raises:
        TrainerError: `task-error`; they are not finite.
    """
    for _, piece in pieces(model, schema):
        if not np.isfinite(piece).all():
            raise TrainerError("task-error", "the model's first weights are not finite")
        file.write(np.ascontiguousarray(piece, "<f4").data)


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise TrainerError("bad-checkpoint", f"there is no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise TrainerError("bad-checkpoint", f"{path} is not a safetensors file: {error}") from None
    except Exception as error:  # noqa: BLE001 - torch raises whatever its unpickler meets
        detail = (
            f"{path} is not a state_dict of plain tensors ({type(error).__name__}); write it with safetensors"
        )
        raise TrainerError("bad-checkpoint", detail) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TrainerError(
            "bad-checkpoint", f"{path} is not a state_dict: save model.state_dict(), nothing else"
        )
    return state


def _some(names: set[str]) -> str:
    first = sorted(names)[:_LISTED]
    return ", ".join(first) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
