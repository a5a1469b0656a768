"""Products of vision tower and prefix by kernels made for Hopper, where they run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3, device_matmul
from thor_policy_ros.backends.fused_products import DeviceProducts
from thor_policy_ros.backends.fused_trial import lacking, refused
from thor_policy_ros.backends.fused_weights import FusedModel, Linear
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.hopper_product import (
    Epilogue,
    HopperProducts,
    compile_all,
    fits,
)
from thor_policy_ros.backends.kernels.ops import Ops

_WHAT = "products with what follows them in one kernel"


class FinishedProducts(DeviceProducts):
    """As DeviceProducts, but what follows a product happens in its kernel, for the sizes that there
    is a kernel for."""

    def __init__(self, ops: Ops, products: HopperProducts) -> None:
        super().__init__(ops, device_matmul)
        self._products = products

    def prepare(self, model: FusedModel, images: Sequence[int], prefixes: Sequence[int]) -> None:
        """Compile the kernels."""
        of_images = itertools.product(sorted(set(images)), _vision_products(model))
        of_prefixes = itertools.product(sorted(set(prefixes)), _prefix_products(model))
        compile_all(
            {
                self._products.code(rows, layer.weight, epilogue, quantised, layer.bias is not None)
                for rows, (layer, epilogue, quantised) in (*of_images, *of_prefixes)
                if fits(layer.weight, epilogue)
            }
        )

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        if not fits(layer.weight, "plain"):
            return super().linear(x, layer)
        return self._product(x, layer, "plain")

    def delta(self, x: Tensor, layer: Linear) -> Tensor:
        if not fits(layer.weight, "parts"):
            return super().delta(x, layer)
        return self._product(x, layer, "parts")

    def gelu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        if not fits(layer.weight, "gelu"):
            return super().gelu(x, layer, quantise)
        return self._product(x, layer, "gelu", quantise)

    def geglu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        if not fits(layer.weight, "geglu"):
            return super().geglu(x, layer, quantise)
        return self._product(x, layer, "geglu", quantise)

    def _product(
        self, x: Tensor, layer: Linear, epilogue: Epilogue, quantise: Tensor | None = None
    ) -> Tensor:
        return self._products(
            x,
            layer.weight,
            epilogue,
            bias=layer.bias,
            input_scale=layer.input_scale,
            weight_scale=layer.weight_scale,
            quantise=quantise,
        )


def _vision_products(model: FusedModel) -> Iterator[tuple[Linear, Epilogue, bool]]:
    """Each with whether its result is quantised."""
    for layer in model.vision.layers:
        yield layer.qkv, "plain", False
        yield layer.out, "parts", False
        yield layer.fc1, "gelu", layer.fc2.input_scale is not None
        yield layer.fc2, "parts", False
    yield model.vision.projector, "plain", False


def _prefix_products(model: FusedModel) -> Iterator[tuple[Linear, Epilogue, bool]]:
    for layer in model.prefix.layers:
        yield layer.qkv, "plain", False
        yield layer.o, "parts", False
        yield layer.gate_up, "geglu", layer.down.input_scale is not None
        yield layer.down, "parts", False
    yield model.prefix.last_kv, "plain", False


def finished_products(device: torch.device) -> tuple[HopperProducts | None, str]:
    """Once a product for trial was right; and a note of which products there are, or why not
    these."""
    reason = lacking(_WHAT, device) or _refused(device)
    if reason:
        return None, f"products by cuBLAS: {reason}"
    return _products_on(device), _WHAT


@cache
def _refused(device: torch.device) -> str:
    """As of the one trial of this process."""
    return refused(_WHAT, lambda: _trial_error(_products_on(device), device))


def _products_on(device: torch.device) -> HopperProducts:
    return HopperProducts(device, limits_of(device).multiprocessors)


def _trial_error(products: HopperProducts, device: torch.device) -> float:
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (
        torch.randn(rows, 256, device=device, generator=generator).to(E4M3) for rows in (40, 256)
    )
    one = torch.ones((), device=device)
    wanted = x.float() @ weight.float().t()
    got = products(x, weight, input_scale=one, weight_scale=one).float()
    return float((got - wanted).norm() / wanted.norm())
