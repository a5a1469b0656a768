"""How large activations get, measured once for a checkpoint and stored beside its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thor_policy_ros.model.checksums import renew_checksums
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.model.whole_file import write_whole

FORMAT = 1
OVERFLOW = 2.0
"""A layer that was seen to exceed its kept absmax by more than this stays bfloat16: saturation
would halve its outliers, which carry Gemma's residual stream."""


@dataclass(frozen=True)
class Range:
    """The absmax of one activation over the frames: a high percentile, and the largest."""

    kept: float
    largest: float

    @property
    def overflows(self) -> bool:
        """Whether scales from `kept` would cut off too much (or nothing finite was seen)."""
        return not math.isfinite(self.largest) or self.largest > OVERFLOW * self.kept


@dataclass(frozen=True)
class LayerRanges:
    """Of one MLP: its input, and the hidden activation that the down projection reads."""

    input: Range
    hidden: Range


@dataclass(frozen=True)
class Fp8Scales:
    """One calibration. checkpoint: hash of the weights. layers: from the first on; the last
    prefix layer's MLP is never computed and has none. inputs: what the other engine in FP8 wants,
    the input of each product of vision and prefix by its module's name; {} in an older file."""

    checkpoint: str
    percentile: float
    frames: int
    source: str
    layers: tuple[LayerRanges, ...]
    inputs: Mapping[str, Range] = field(default_factory=dict)


def scales_path(folder: Path | str, checkpoint: str) -> Path:
    """Where the scales of the checkpoint with that hash lie."""
    return Path(folder) / f"fp8_scales.{checkpoint[:16]}.json"


def read_scales(folder: Path | str, layers: int) -> Fp8Scales | None:
    """The scales of the weights in `folder`, or None where they were never calibrated.

    Raises ValueError for a file that is not theirs: calibrate again.
    """
    checkpoint = checkpoint_hash(folder)
    path = scales_path(folder, checkpoint)
    if not path.is_file():
        return None
    try:
        scales = _from_json(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no FP8 scales ({error!r}); calibrate again") from error
    if scales.checkpoint != checkpoint or len(scales.layers) != layers:
        raise ValueError(
            f"{path}: wanted scales of {layers} layers of checkpoint {checkpoint[:16]}, got"
            f" {len(scales.layers)} of {scales.checkpoint[:16]}; calibrate again"
        )
    return scales


def write_scales(folder: Path | str, scales: Fp8Scales) -> Path:
    """Store them beside the weights; a reader sees the whole file or none."""
    path = scales_path(folder, scales.checkpoint)
    text = json.dumps({"format": FORMAT, **asdict(scales)}, indent=1) + "\n"
    write_whole(path, text)
    renew_checksums(folder, (path.name,))
    return path


def _from_json(data: Mapping[str, Any]) -> Fp8Scales:
    if data["format"] != FORMAT:
        raise ValueError(f"wanted format {FORMAT}, got {data['format']!r}")
    layers = tuple(
        LayerRanges(*(Range(**layer[name]) for name in ("input", "hidden")))
        for layer in data["layers"]
    )
    return Fp8Scales(
        str(data["checkpoint"]),
        float(data["percentile"]),
        int(data["frames"]),
        str(data["source"]),
        layers,
        {name: Range(**seen) for name, seen in data.get("inputs", {}).items()},
    )
