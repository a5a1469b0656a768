"""The pytorch engine with the prefix's MLPs in FP8: gate and up in E4M3, down in bfloat16.

Down stays bfloat16 in the hybrid: its inputs reach thousands in the last layers, and quantising
them outside of a fused kernel costs more than the faster product saves. `FP8MLP` and
`FP8MLPWithStaticScale` have all three in FP8, to be measured against it.

Scales of the inputs come from calibration (`thor-policy calibrate`), else from each call's own
absmax. Only the language model changes: vision tower and action expert stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thor_policy_ros.backends.fp8 import Fp8Linear, ScaledMatmul, device_matmul
from thor_policy_ros.backends.fp8_scales import Fp8Scales, LayerRanges, read_scales
from thor_policy_ros.backends.fp8_stored import gate_up_name, read_stored_fp8
from thor_policy_ros.backends.pytorch import PyTorchBackend, checked_device, checked_dtype
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.gemma import Mlp
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.types import BackendSpec, BackendUnavailableError

LEAST_CAPABILITY = (8, 9)


def missing() -> tuple[str, ...]:
    """FP8 products of torch, and a GPU that has them."""
    if not torch.cuda.is_available():
        return (f"a CUDA GPU of capability 8.9 or later (torch {torch.__version__} sees none)",)
    return _missing_on(torch.device("cuda"))


def load(
    spec: BackendSpec,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> PyTorchBackend:
    """See `registry.create_backend`. ValueError for a scales file that is not the checkpoint's."""
    target = checked_device(device)
    lacks = _missing_on(target)
    if checked_dtype(dtype, target) != torch.bfloat16:
        lacks = (*lacks, f"dtype 'bfloat16' (it was asked for {dtype})")
    if lacks:
        raise BackendUnavailableError(f"backend {spec.name!r} wants {'; '.join(lacks)}")
    scales = None
    if spec.fp8_scale == "static":
        scales = read_scales(checkpoint, config.language.depth - 1)
    model = load_quantised(checkpoint, config, target, scales)
    return PyTorchBackend(spec, model, notes=notes_of(scales), warnings=warnings_of(spec, scales))


def load_quantised(
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device,
    scales: Fp8Scales | None,
    matmul: ScaledMatmul = device_matmul,
) -> Pi05:
    """The model in bfloat16 with its MLPs in FP8: read as stored where `thor-policy convert --fp8`
    stored them, else cast from the dense weights."""
    layers = config.language.depth - 1
    stored = read_stored_fp8(checkpoint, layers)
    if stored is None:
        model = load_pi05(checkpoint, config, device, torch.bfloat16)
        quantise_mlps(model, scales, matmul)
        return model
    quantised = {i: stored[i] for i in range(layers) if _stays_in_range(scales, i)}
    skipped = {gate_up_name(i) for i in quantised}
    model = load_pi05(
        checkpoint, config, device, torch.bfloat16, lambda parameter: parameter not in skipped
    )
    for i, (weight, scale) in quantised.items():
        layer = model.language.layers[i]
        shape = (2 * config.language.mlp_dim, config.language.width)
        absmax = None if scales is None else scales.layers[i].input.kept
        gate_up = Fp8Linear.quantised(weight.to(device), scale.to(device), shape, absmax, matmul)
        layer.mlp = HybridMlp.of(gate_up, layer.mlp.down_proj)  # type: ignore[union-attr,arg-type]
    return model.eval()


def quantise_mlps(
    model: Pi05, scales: Fp8Scales | None, matmul: ScaledMatmul = device_matmul
) -> None:
    """Replace, in place, every MLP that a prefix computes and whose activations stay in range.

    scales: None measures them in each call. The last layer's MLP is not among them: of that
    layer a prefix takes keys and values alone.
    """
    for index, layer in enumerate(list(model.language.layers)[:-1]):
        if _stays_in_range(scales, index):
            ranges = None if scales is None else scales.layers[index]
            layer.mlp = HybridMlp(layer.mlp, ranges, matmul)  # type: ignore[arg-type]


def _stays_in_range(scales: Fp8Scales | None, layer: int) -> bool:
    return scales is None or not scales.layers[layer].input.overflows


def warnings_of(spec: BackendSpec, scales: Fp8Scales | None) -> tuple[str, ...]:
    """What the user of a loaded engine should mend."""
    if spec.fp8_scale != "static" or scales is not None:
        return ()
    return (
        "no FP8 scales beside the checkpoint: dynamic ones are used; run `thor-policy calibrate`",
    )


def notes_of(scales: Fp8Scales | None) -> tuple[str, ...]:
    """What diagnostics say of a loaded engine: a measured choice, nothing to mend."""
    layers = scales.layers if scales else ()
    dense = [str(index) for index, ranges in enumerate(layers) if ranges.input.overflows]
    if dense:
        return (f"MLPs of layers {', '.join(dense)} stay bfloat16: they overflow E4M3",)
    return ()


class HybridMlp(nn.Module):
    """gate and up in FP8, down as it was. ranges: of this layer, or None for dynamic scales."""

    def __init__(
        self, mlp: Mlp, ranges: LayerRanges | None, matmul: ScaledMatmul = device_matmul
    ) -> None:
        super().__init__()
        absmax = None if ranges is None else ranges.input.kept
        self.gate_up_proj = Fp8Linear(mlp.gate_up_proj.weight, absmax, matmul)
        self.down_proj = mlp.down_proj

    @classmethod
    def of(cls, gate_up_proj: Fp8Linear, down_proj: nn.Linear) -> HybridMlp:
        """Of parts that are quantised already."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.gate_up_proj, made.down_proj = gate_up_proj, down_proj
        return made

    def forward(self, x: Tensor) -> Tensor:
        """x: [...,W] -> [...,W]."""
        return _gated(x, self.gate_up_proj, self.down_proj)


class FP8MLP(nn.Module):
    """gate, up and down in FP8, each call's own scales."""

    def __init__(self, mlp: Mlp, matmul: ScaledMatmul = device_matmul) -> None:
        super().__init__()
        self.gate_up_proj = Fp8Linear(mlp.gate_up_proj.weight, None, matmul)
        self.down_proj = Fp8Linear(mlp.down_proj.weight, None, matmul)

    def forward(self, x: Tensor) -> Tensor:
        """x: [...,W] -> [...,W]."""
        return _gated(x, self.gate_up_proj, self.down_proj)


class FP8MLPWithStaticScale(nn.Module):
    """gate, up and down in FP8, with calibrated scales of input and hidden activation."""

    def __init__(self, mlp: Mlp, ranges: LayerRanges, matmul: ScaledMatmul = device_matmul) -> None:
        super().__init__()
        self.gate_up_proj = Fp8Linear(mlp.gate_up_proj.weight, ranges.input.kept, matmul)
        self.down_proj = Fp8Linear(mlp.down_proj.weight, ranges.hidden.kept, matmul)

    def forward(self, x: Tensor) -> Tensor:
        """x: [...,W] -> [...,W]."""
        return _gated(x, self.gate_up_proj, self.down_proj)


def _gated(x: Tensor, gate_up_proj: Callable[[Tensor], Tensor], down: nn.Module) -> Tensor:
    gate, up = gate_up_proj(x).chunk(2, -1)
    out: Tensor = down(F.gelu(gate, approximate="tanh") * up)
    return out


def _missing_on(device: torch.device) -> tuple[str, ...]:
    if not hasattr(torch, "_scaled_mm"):
        return (f"package torch 2.6 or later with torch._scaled_mm (here is {torch.__version__})",)
    if device.type != "cuda":
        return (f"a CUDA GPU of capability 8.9 or later (device is {str(device)!r})",)
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        major, minor = capability
        name = torch.cuda.get_device_name(device)
        return (f"a GPU of capability 8.9 or later ({name} has {major}.{minor})",)
    return ()
