"""What a checkpoint's owner decides about torch_trt: `torch_trt.json` beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thor_policy_ros.model.json_fields import from_json
from thor_policy_ros.types import BackendUnavailableError

FILE = "torch_trt.json"
PARTS = ("vision", "prefix", "denoise")


@dataclass(frozen=True)
class TorchTRTSettings:
    """compiled: the parts that TensorRT runs; the others are left in PyTorch.

    tuned_cameras, tuned_prompt_tokens: the sizes that kernels are chosen for; 0 is the largest.
    Every other size runs too.
    precision: '' for the dtype that the backend is loaded with.
    arguments: more for Torch-TensorRT's converter, by name, such as {"workspace_size": 1073741824}.
    """

    compiled: tuple[str, ...] = PARTS
    tuned_cameras: int = 0
    tuned_prompt_tokens: int = 0
    precision: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [part for part in self.compiled if part not in PARTS]
        if unknown or not self.compiled:
            raise ValueError(
                f"compiled wants some of {', '.join(PARTS)}, got {list(self.compiled)}"
            )
        if self.tuned_cameras < 0 or self.tuned_prompt_tokens < 0:
            raise ValueError("tuned_cameras and tuned_prompt_tokens want 0 or more")
        if self.precision not in ("", "fp8"):
            raise ValueError(
                f"precision {self.precision!r} is not a setting: the backend's dtype decides"
                " between 'bfloat16' and 'float32'"
            )


def read_settings(checkpoint: Path | str) -> TorchTRTSettings:
    """Those beside the weights, or the defaults where there is no file.

    Raises ValueError naming each wrong field, BackendUnavailableError for precision 'fp8'.
    """
    path = Path(checkpoint) / FILE
    if not path.is_file():
        return TorchTRTSettings()
    try:
        settings = from_json(TorchTRTSettings, json.loads(path.read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if settings.precision == "fp8":
        raise BackendUnavailableError(
            f"{path}: precision 'fp8' is not there: TensorRT computes in FP8 where the graph has"
            " quantise and dequantise nodes, which this version does not insert (a declared"
            " precision alone changes nothing); choose backend 'fp8_mlp', or leave it out"
        )
    return settings
