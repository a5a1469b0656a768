"""Matrix products in FP8 E4M3: 4 bits of exponent, 3 of mantissa, nothing beyond 448.

Weights are quantised once, per tensor. Activations are scaled by a power of two, which is exact
in bfloat16, so that the cast is their only rounding; values beyond the range saturate. On a GPU
the product is `torch._scaled_mm`; `emulated_matmul` computes the same from the same quantised
operands in float32, for tests on a CPU.

Letters: M rows (tokens), K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
ALIGNMENT = 16
"""K and N of `torch._scaled_mm` want to be multiples of this; zeros fill them up."""
_LEAST_ABSMAX = 1e-12

ScaledMatmul = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(a e4m3[M,K] row-major, b e4m3[K,N] column-major, their scales f32[]) -> bf16[M,N]."""


def activation_scale(absmax: Tensor) -> Tensor:
    """f32[]: the least power of two that brings `absmax` within E4M3."""
    return torch.exp2(torch.ceil(torch.log2(absmax.float().clamp_min(_LEAST_ABSMAX) / E4M3_MAX)))


def saturating_cast(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in E4M3; beyond the range the largest value, not NaN. `scale`: f32[]."""
    return (x * scale.reciprocal()).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)


def quantised_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """In E4M3 with one scale f32[], which brings its largest element to the end of the range."""
    wide = weight.detach().float()
    scale = wide.abs().amax().clamp_min(_LEAST_ABSMAX) / E4M3_MAX
    return saturating_cast(wide, scale), scale


def device_matmul(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None
) -> Tensor:
    """On a GPU of capability 8.9 or later. bias: bf16[N], added before the result is rounded."""
    product: Tensor = torch._scaled_mm(
        a,
        b,
        scale_a=scale_a,
        scale_b=scale_b,
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product


def emulated_matmul(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The same rounding of operands and result, summed in float32; slow, on any device."""
    product = (a.float() @ b.float()) * (scale_a * scale_b)
    return (product if bias is None else product + bias.float()).bfloat16()


class Fp8Linear(nn.Module):
    """A linear layer without bias in FP8, in and out in the dtype of x.

    weight: [N,K]. absmax: of the activations, by calibration; None measures each call's own.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None

    def __init__(
        self, weight: Tensor, absmax: float | None = None, matmul: ScaledMatmul = device_matmul
    ) -> None:
        super().__init__()
        padded = F.pad(weight.detach().float(), (0, -weight.shape[1] % ALIGNMENT))
        padded = F.pad(padded, (0, 0, 0, -weight.shape[0] % ALIGNMENT))
        held, scale = quantised_weight(padded)
        self._set(held, scale, tuple(weight.shape), absmax, matmul)

    @classmethod
    def quantised(
        cls,
        weight: Tensor,
        scale: Tensor,
        shape: tuple[int, int],
        absmax: float | None = None,
        matmul: ScaledMatmul = device_matmul,
    ) -> Fp8Linear:
        """Of `weight` and `weight_scale` as another one of this `shape` [N,K] had them."""
        wanted = tuple(size + -size % ALIGNMENT for size in shape)
        if weight.dtype != E4M3 or tuple(weight.shape) != wanted:
            raise ValueError(
                f"wanted {E4M3} {list(wanted)}, got {weight.dtype} {list(weight.shape)}"
            )
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set(weight, scale, shape, absmax, matmul)
        return made

    def _set(
        self,
        weight: Tensor,
        scale: Tensor,
        shape: tuple[int, ...],
        absmax: float | None,
        matmul: ScaledMatmul,
    ) -> None:
        self._matmul = matmul
        self._rows, self._columns = shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        fixed = None if absmax is None else activation_scale(scale.new_tensor(absmax))
        self.register_buffer("input_scale", fixed)

    def forward(self, x: Tensor) -> Tensor:
        """x: [...,K] -> [...,N]."""
        rows = x.reshape(-1, self._columns)
        scale = self.input_scale
        if scale is None:
            scale = activation_scale(rows.abs().amax())
        if self._columns % ALIGNMENT:  # F.pad copies even where it adds nothing
            rows = F.pad(rows, (0, -self._columns % ALIGNMENT))
        quantised = saturating_cast(rows, scale)
        # .t() alone: _scaled_mm wants the second operand column-major.
        out = self._matmul(quantised, self.weight.t(), scale, self.weight_scale)
        return out[:, : self._rows].to(x.dtype).unflatten(0, x.shape[:-1])
