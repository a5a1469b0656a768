"""What backends want beside a checkpoint's weights: FP8 scales, built engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thor_policy_ros.backends.engine_cache import EngineKey
from thor_policy_ros.backends.fp8_scales import Fp8Scales, read_scales
from thor_policy_ros.backends.torch_trt_settings import read_settings
from thor_policy_ros.backends.trt_engines import present_capability
from thor_policy_ros.backends.trt_parts import PARTS
from thor_policy_ros.evaluation.file_checks import read_cache
from thor_policy_ros.model.named_configs import load_policy_config
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.types import BackendSpec

BUILDERS = {
    "tensorrt": ("tensorrt", "tensorrt_rtx"),
    "tensorrt_fp8": ("tensorrt", "tensorrt_rtx"),
    "torch_trt": ("torch_tensorrt",),
}
"""By engine, the names that its files are kept under."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Of one checkpoint. engines: the keys of those that were built of its weights.
    compiled: the parts that torch_trt converts. capability: of this machine's GPU, as 'sm_110'.
    """

    folder: Path
    scales: Fp8Scales | None
    engines: Sequence[EngineKey]
    compiled: Sequence[str]
    capability: str | None

    def missing(self, spec: BackendSpec) -> tuple[str, ...]:
        """Without what the backend refuses the checkpoint."""
        uncalibrated = self.scales is None or (
            spec.engine == "fused_fp8" and not self.scales.inputs  # of an older version
        )
        if spec.engine in ("fused_fp8", "tensorrt_fp8") and uncalibrated:
            return (f"FP8 scales of {self.folder}; {self._calibrate}",)
        return ()

    def notes(self, spec: BackendSpec) -> tuple[str, ...]:
        """What the backend makes up for. Engines are told apart by weights, GPU and builder, not
        by the builder's version and options: a load may still find that it has to build."""
        if spec.engine == "fp8_mlp" and spec.fp8_scale == "static" and self.scales is None:
            return (f"no FP8 scales of {self.folder}: dynamic ones are used; {self._calibrate}",)
        lacking = self._unbuilt(spec.engine)
        if self.capability is None or not lacking:
            return ()
        return (
            f"no engine of {self.folder} for {self.capability} yet: {', '.join(lacking)}; the first"
            f" load builds it, for minutes, or `thor-policy build --backend {spec.engine}"
            f" --checkpoint {self.folder}` ahead",
        )

    @property
    def _calibrate(self) -> str:
        return f"`thor-policy calibrate --checkpoint {self.folder}`"

    def _unbuilt(self, engine: str) -> list[str]:
        if engine not in BUILDERS:
            return []
        built = {
            key.part.removeprefix("torch_trt_")
            for key in self.engines
            if key.engine in BUILDERS[engine]
            and key.capability == self.capability
            and (key.part != "prefix" or ("FP8" in key.settings) == (engine == "tensorrt_fp8"))
        }
        parts = self.compiled if engine == "torch_trt" else PARTS
        return [part for part in parts if part not in built]


def read_files(folder: Path, policy_config: str | None, cache: Path) -> CheckpointFiles:
    """Raises CheckpointError or ValueError for a folder that holds no checkpoint."""
    config = load_policy_config(folder, policy_config)
    identity = checkpoint_hash(folder)
    keys, _ = read_cache(cache)
    return CheckpointFiles(
        folder,
        read_scales(folder, config.model.language.depth - 1),
        [key for key in keys if key.checkpoint == identity],
        read_settings(folder).compiled,
        present_capability(),
    )
