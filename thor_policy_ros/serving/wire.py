"""Frames of openpi's policy protocol: msgpack, with NumPy arrays as maps of their raw bytes.

The form is openpi-client's: `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, and for a scalar
`{b"__npgeneric__": True, b"data", b"dtype"}`. Booleans and numbers alone have a form here: an
object array is refused both ways, so nothing that arrives is ever unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAX_DIMENSIONS = 8
_WANTED = "wanted a boolean, integer or float dtype"


class WireError(ValueError):
    """A frame is not what the protocol knows; the message says where it ends being so."""


def encode(message: Mapping[str, Any]) -> bytes:
    """A frame. WireError for an array or object that has no form on the wire."""
    try:
        frame: bytes = msgpack.packb(dict(message), default=_pack)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"the message cannot be packed: {error}") from error
    return frame


def decode(frame: bytes) -> dict[str, Any]:
    """The message of a frame: maps, lists, scalars and arrays (views of the frame, read-only).

    WireError for anything else than one whole msgpack map of known forms.
    """
    try:
        message = msgpack.unpackb(frame, object_hook=_unpack)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        said = str(error) or type(error).__name__
        raise WireError(f"the frame of {len(frame)} bytes is not msgpack: {said}") from error
    if not isinstance(message, dict):
        raise WireError(f"wanted a map of names to values, got {type(message).__name__}")
    strange = [key for key in message if not isinstance(key, str)]
    if strange:
        raise WireError(f"wanted names as keys, got {strange[:3]}")
    return message


def _pack(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{type(value).__name__} has no form on the wire")
    if not _DTYPE.fullmatch(value.dtype.str):
        raise ValueError(f"array of dtype {value.dtype}: {_WANTED}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def _unpack(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return _array(found)
    if b"__npgeneric__" in found:
        return _scalar(found)
    return found


def _array(found: Mapping[Any, Any]) -> npt.NDArray[Any]:
    dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        said = repr(shape)[:40]
        raise WireError(f"an array wants a shape of at most {_MAX_DIMENSIONS} sizes, got {said}")
    if not isinstance(data, bytes):
        raise WireError(f"an array wants its data as bytes, got {type(data).__name__}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"an array of {dtype} {shape} does not have {len(data)} bytes")
    return np.ndarray(tuple(shape), dtype, data)


def _is_size(number: Any) -> bool:
    return type(number) is int and number >= 0


def _scalar(found: Mapping[Any, Any]) -> Any:
    dtype, data = _dtype(found), found.get(b"data")
    if not isinstance(data, (bool, int, float)):
        raise WireError(f"a scalar of {dtype} wants a number, got {type(data).__name__}")
    return dtype.type(data)


def _dtype(found: Mapping[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"{_WANTED}, got {str(name)[:40]!r}")
    return np.dtype(name)
