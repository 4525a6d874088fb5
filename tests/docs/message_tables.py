"""What the tables of docs/protocol.md must say of a message's fields, read off its pydantic model."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import AllowInfNan, BaseModel
from pydantic.fields import FieldInfo

from fedmq_protocol.limits import MAX_COUNTER
from fedmq_protocol.topics import ID_PATTERN

_SLOTS = ("ge", "gt", "le", "lt", "min_length", "max_length")
_HEX_PATTERN = r"^[0-9a-f]{64}$"
_POWERS = {2**power: f"2^{power}" for power in range(20, 64)} | {
    2**power - 1: f"2^{power} - 1" for power in range(20, 64)
}


@dataclass(frozen=True)
class Row:
    """One row of a table: a field, its type with its bounds, and its default (`-`: it must be there)."""

    field: str
    type: str
    default: str


def rows(model: type[BaseModel]) -> list[Row]:
    """The rows that describe `model`, in the order of its fields."""
    return [
        Row(name, _type(info.annotation, list(info.metadata)), _default(info))
        for name, info in model.model_fields.items()
    ]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "-"
    match info.default:
        case None:
            return "absent"
        case bool() as flag:
            return str(flag).lower()
        case str() as text:
            return f'`"{text}"`'
        case list() as items if not items:
            return "empty"
        case dict() as items if not items:
            return "empty"
        case value:
            return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    return _POWERS.get(value, f"{value:g}" if isinstance(value, float) else str(value))


def _spread(metadata: list[Any]) -> tuple[dict[str, Any], str | None]:
    """Bounds by their short names, and the pattern."""
    bounds: dict[str, Any] = {}
    pattern = None
    for item in metadata:
        if isinstance(item, FieldInfo):
            inner, inner_pattern = _spread(list(item.metadata))
            bounds |= inner
            pattern = pattern or inner_pattern
        elif isinstance(item, at.Ge | at.Gt | at.Le | at.Lt | at.MinLen | at.MaxLen):
            name = {at.MinLen: "min", at.MaxLen: "max"}.get(type(item), type(item).__name__.lower())
            bounds[name] = next(getattr(item, slot) for slot in _SLOTS if hasattr(item, slot))
        elif isinstance(item, AllowInfNan):
            pass
        else:
            pattern = pattern or getattr(item, "pattern", None)
    return bounds, pattern


def _type(annotation: Any, metadata: list[Any]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], [*args[1:], *metadata])
    if origin in {Union, types.UnionType}:
        shown = [_type(arg, metadata) for arg in args if arg is not type(None)]
        return " or ".join(shown)
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in args)
    bounds, pattern = _spread(metadata)
    if origin is list:
        return f"array of at most {bounds['max']}: {_type(args[0], [])}"
    if origin is tuple:
        return f"array of {len(args)}: {_type(args[0], [])}"
    if origin is dict:
        return f"map of at most {bounds['max']}: {_type(args[0], [])} to {_type(args[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return _scalar(annotation, bounds, pattern)


def _scalar(annotation: Any, bounds: dict[str, Any], pattern: str | None) -> str:
    if annotation is bool:
        return "bool"
    if annotation is int:
        low, high = bounds.get("ge"), bounds.get("le", bounds["lt"] - 1 if "lt" in bounds else None)
        if (low, high) == (0, MAX_COUNTER):
            return "counter"
        return "int" if low is None and high is None else f"int {_number(low)} to {_number(high)}"
    if annotation is float:
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        shown = [f"{signs[name]} {_number(value)}" for name, value in bounds.items()]
        return " ".join(["float", ", ".join(shown)]).strip()
    if annotation is str:
        if pattern is not None:
            return {ID_PATTERN: "id", _HEX_PATTERN: "64 hex digits"}[pattern]
        low, high = bounds.get("min", 0), bounds.get("max")
        return f"str of at most {high}" if low == 0 else f"str of {low} to {high}"
    if annotation is bytes:
        low, high = bounds.get("min", 0), bounds.get("max")
        if low == high:
            return f"bin of {low}"
        return f"bin of at most {_number(high)}" if low == 0 else f"bin of {low} to {high}"
    msg = f"no words for {annotation}"
    raise AssertionError(msg)
