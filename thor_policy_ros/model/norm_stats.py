"""Normalisation statistics of a checkpoint, and the two normalisations of openpi.

openpi keeps them in `assets/<asset_id>/norm_stats.json`; LeRobot in the state file of its
normaliser step, `policy_preprocessor_step_*_normalizer_processor.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from thor_policy_ros.model.json_fields import read_object

F64 = npt.NDArray[np.float64]
EPS = 1e-6
WANTED = {"quantile": ("q01", "q99"), "zscore": ("mean", "std")}
LEROBOT_KEYS = {"state": "observation.state", "actions": "action"}


@dataclass(frozen=True)
class Affine:
    """`normalised = (x - offset) / scale - bias`, per dimension; float64 like openpi."""

    offset: F64
    scale: F64
    bias: float

    def normalise(self, x: npt.NDArray[Any]) -> F64:
        """Robot units to normalised; x: [..., dims]. Nothing is clipped."""
        return (x - self.offset) / self.scale - self.bias

    def unnormalise(self, x: npt.NDArray[Any]) -> F64:
        """The inverse of `normalise`."""
        return (x + self.bias) * self.scale + self.offset


@dataclass(frozen=True)
class NormStats:
    """Statistics of the state and of the actions: name of the statistic -> f64[dims]."""

    state: Mapping[str, F64]
    actions: Mapping[str, F64]
    source: str

    def affine(self, part: str, normalisation: str, dims: int) -> Affine:
        """The map of the first `dims` dimensions of 'state' or 'actions'."""
        low, high = (self._vector(part, name, dims) for name in WANTED[normalisation])
        if normalisation == "zscore":
            return Affine(low, high + EPS, 0.0)
        return Affine(low, (high - low + EPS) / 2, 1.0)

    def _vector(self, part: str, name: str, dims: int) -> F64:
        held: Mapping[str, F64] = getattr(self, part)
        if name not in held:
            raise ValueError(
                f"{self.source}: {part} has no {name!r}, only {sorted(held)}; recompute the"
                " statistics with quantiles, or choose the other normalisation in the config"
            )
        if held[name].shape[0] < dims:
            raise ValueError(
                f"{self.source}: {part}.{name} has {held[name].shape[0]} dimensions, the config"
                f" wants {dims}; is this the right asset_id for this config?"
            )
        return held[name][:dims]


def load_norm_stats(folder: Path | str, asset_id: str) -> NormStats:
    """The statistics in a checkpoint folder, in openpi's or LeRobot's layout."""
    folder = Path(folder)
    openpi = folder / "assets" / asset_id / "norm_stats.json"
    if openpi.is_file():
        return _read_openpi(openpi)
    lerobot = lerobot_file(folder)
    if lerobot is not None:
        return _read_lerobot(lerobot)
    raise FileNotFoundError(
        f"no normalisation statistics in {folder}: wanted {openpi.relative_to(folder)} (openpi)"
        " or policy_preprocessor_step_*_normalizer_processor.safetensors (LeRobot);"
        f" found {_held(folder)}. Copy the `assets` folder of the original checkpoint here,"
        " or correct asset_id in the config"
    )


def _read_openpi(path: Path) -> NormStats:
    groups = read_object(path).get("norm_stats", {})
    held = groups if isinstance(groups, Mapping) else {}
    missing = [part for part in ("state", "actions") if not isinstance(held.get(part), Mapping)]
    if missing:
        raise ValueError(f"{path}: wanted norm_stats of state and actions, missing: {missing}")
    return NormStats(_vectors(held["state"]), _vectors(held["actions"]), str(path))


def _read_lerobot(path: Path) -> NormStats:
    try:
        tensors = load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"cannot read {path} as safetensors of numbers: {error}") from error
    groups = {part: _with_prefix(tensors, f"{key}.") for part, key in LEROBOT_KEYS.items()}
    missing = [LEROBOT_KEYS[part] for part, group in groups.items() if not group]
    if missing:
        raise ValueError(f"{path}: missing statistics of {missing}; it holds {sorted(tensors)}")
    return NormStats(_vectors(groups["state"]), _vectors(groups["actions"]), str(path))


def lerobot_file(folder: Path) -> Path | None:
    """The normaliser's state file: named by policy_preprocessor.json, or found by its name."""
    pipeline = folder / "policy_preprocessor.json"
    if pipeline.is_file():
        for step in _steps(pipeline):
            if step.get("registry_name") == "normalizer_processor" and step.get("state_file"):
                return folder / _file_name(step["state_file"], pipeline)
    found = sorted(folder.glob("policy_preprocessor*normalizer_processor*.safetensors"))
    return found[0] if found else None


def _steps(pipeline: Path) -> list[dict[str, Any]]:
    steps = read_object(pipeline).get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"{pipeline}: wanted a list of objects as steps, got {str(steps)[:80]}")
    return steps


def _file_name(name: Any, where: Path) -> str:
    """Of a file beside `where`."""
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise ValueError(f"{where}: wanted the name of a file beside it, got {str(name)[:80]!r}")
    return name


def _with_prefix(tensors: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, Any]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _vectors(group: Mapping[str, Any]) -> dict[str, F64]:
    try:
        arrays = {name: np.asarray(v, np.float64) for name, v in group.items() if v is not None}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"statistics {sorted(group)}: wanted lists of numbers: {error}") from error
    return {name: array for name, array in arrays.items() if array.ndim == 1}


def _held(folder: Path) -> str:
    stats = sorted(str(p.parent.relative_to(folder)) for p in folder.rglob("norm_stats.json"))
    return f"norm_stats.json in {stats}" if stats else "neither"
