"""Frozen dataclasses from parsed JSON, strictly: every wrong field is named."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError for what is none."""
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: wanted a JSON object, got {type(data).__name__}")
    return data


def check_sizes(sizes: Any) -> None:
    """ValueError where an integer field of the dataclass instance is not positive."""
    for field in dataclasses.fields(sizes):
        value = getattr(sizes, field.name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{field.name} is {value}; wanted 1 or more")


def from_json(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `kind` from `data`, nested dataclasses and tuples included.

    where: what `data` is, for the message (a file, or `config.json: vision`).
    Raises ValueError naming each missing, unknown and wrongly typed field.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: wanted an object with fields, got {type(data).__name__}")
    types = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    missing = [n for n, f in fields.items() if n not in data and _is_required(f)]
    unknown = [n for n in data if n not in fields]
    if missing or unknown:
        raise ValueError(f"{where}: missing fields {missing}, unknown fields {unknown}")
    return kind(**{n: _value(types[n], v, f"{where}: {n}") for n, v in data.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    no_default = field.default is dataclasses.MISSING
    return no_default and field.default_factory is dataclasses.MISSING


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_json(typing.cast(Any, kind), value, where)
    if typing.get_origin(kind) is tuple:
        return _tuple(typing.get_args(kind)[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is not kind:
        raise ValueError(f"{where}: wanted {kind.__name__}, got {value!r}")
    return value


def _tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: wanted a list, got {value!r}")
    return tuple(_value(kind, item, f"{where}[{i}]") for i, item in enumerate(value))
