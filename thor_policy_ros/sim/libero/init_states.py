"""LIBERO's initial states, read without unpickling: their files are data to us, never a program.

A `.pruned_init` file is what torch.save writes of a NumPy array: a zip whose `data.pkl` builds an
f8[trials, state]. LIBERO reads it with `torch.load(weights_only=False)`, which would run whatever
such a file says. Here the pickle's opcodes are listed, not executed: they must be those of one
plain array, and its numbers are taken out.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from thor_policy_ros.sim.libero.wire import F64

_GLOBALS = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",
}
_SHAPE = ("MARK", "BININT1", "*", "*", "TUPLE2")


def read_init_states(path: Path) -> F64:
    """f64[trials, state] of simulator states. ValueError for a file of another form."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            operations = [(o.name, a) for o, a, _ in pickletools.genops(archive.read(name))]
    except (zipfile.BadZipFile, StopIteration, ValueError) as error:
        raise ValueError(f"{path}: wanted initial states as torch.save writes them") from error
    kept = [(o, a) for o, a in operations if not o.startswith(("BINPUT", "LONG_BINPUT", "MEMO"))]
    called = {str(a) for o, a in kept if o == "GLOBAL"}
    if not called <= _GLOBALS or any(o in ("STACK_GLOBAL", "INST", "OBJ") for o, _ in kept):
        raise ValueError(f"{path} is no plain array: it names {sorted(called - _GLOBALS)}")
    try:
        return _array(kept)
    except (ValueError, StopIteration) as error:
        raise ValueError(f"{path}: wanted one array of float64, {error}") from error


def _array(operations: list[tuple[str, Any]]) -> F64:
    """The array that the opcodes would build: shape, dtype and order, then the bytes."""
    shape = _shape(operations)
    texts = [a for o, a in operations if o in ("BINUNICODE", "SHORT_BINUNICODE")]
    if [t for t in texts if t in ("f8", "<", ">")] != ["f8", "<"]:
        raise ValueError("got another dtype")
    build = next(i for i, (o, _) in enumerate(operations) if o == "BUILD")
    if operations[build + 1][0] != "NEWFALSE":
        raise ValueError("got Fortran's order")
    data = max(texts, key=len).encode("latin1")
    if len(data) != 8 * math.prod(shape):
        raise ValueError(f"got {len(data)} bytes for {list(shape)}")
    return np.frombuffer(data, "<f8").reshape(shape)


def _shape(operations: list[tuple[str, Any]]) -> tuple[int, int]:
    """Two sizes after the version of the array's form, the first tuple of two integers."""
    for i in range(len(operations) - len(_SHAPE) + 1):
        part = operations[i : i + len(_SHAPE)]
        if all(want in ("*", name) for want, (name, _) in zip(_SHAPE, part, strict=True)):
            first, second = part[2][1], part[3][1]
            if type(first) is int and type(second) is int:
                return first, second
    raise ValueError("got no shape of two sizes")
