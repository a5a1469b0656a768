"""Measures how large the inputs of vision's and prefix's products get while a backend runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from thor_policy_ros.backends.fp8_scales import LayerRanges, Range
from thor_policy_ros.backends.fused_weights import quantisable
from thor_policy_ros.model.gemma import Mlp
from thor_policy_ros.model.pi05 import Pi05


@dataclass
class _Seen:
    """Absmax by frame, f32[] on the device: reading them would wait for it."""

    input: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)


class ActivationRanges:
    """What was seen by the MLPs that a prefix computes: all but the last layer's."""

    def __init__(self, model: Pi05) -> None:
        self._mlps: list[Mlp] = [layer.mlp for layer in list(model.language.layers)[:-1]]  # type: ignore[misc]
        self._seen = [_Seen() for _ in self._mlps]
        self._products = dict(quantisable(model))
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in self._products}

    @property
    def frames(self) -> int:
        """How many prefixes were measured."""
        return min((len(seen.input) for seen in self._seen), default=0)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Prefixes computed inside are measured."""
        handles = [
            module.register_forward_pre_hook(_keeps_absmax(seen))
            for mlp, layer in zip(self._mlps, self._seen, strict=True)
            for module, seen in ((mlp, layer.input), (mlp.down_proj, layer.hidden))
        ]
        handles += [
            product.register_forward_pre_hook(_keeps_absmax(self._inputs[name]))
            for name, product in self._products.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layers(self, percentile: float) -> tuple[LayerRanges, ...]:
        """By layer, keeping that percentile over the frames; ValueError before any frame."""
        if not self.frames:
            raise ValueError("a calibration wants at least 1 frame, got none")
        return tuple(
            LayerRanges(_range(seen.input, percentile), _range(seen.hidden, percentile))
            for seen in self._seen
        )

    def inputs(self, percentile: float) -> dict[str, Range]:
        """By the name of each product of vision and prefix; ValueError before any frame."""
        if not all(self._inputs.values()):
            raise ValueError("a calibration wants at least 1 frame, got none")
        return {name: _range(seen, percentile) for name, seen in self._inputs.items()}


def _keeps_absmax(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].detach().abs().amax().float())

    return hook


def _range(absmax: Sequence[Tensor], percentile: float) -> Range:
    values = torch.stack(list(absmax)).cpu().numpy()
    return Range(float(np.percentile(values, percentile)), float(values.max()))
