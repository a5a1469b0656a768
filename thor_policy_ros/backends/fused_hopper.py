"""Products of vision tower and prefix by kernels made for Hopper, where they run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3, device_matmul
from thor_policy_ros.backends.fused_products import DeviceProducts
from thor_policy_ros.backends.fused_trial import lacking, refused
from thor_policy_ros.backends.fused_weights import FusedModel, Linear
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.hopper_product import HopperProducts, compile_all, fits
from thor_policy_ros.backends.kernels.hopper_tables import HEAD_DIM, Epilogue
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.reference import ReferenceOps
from thor_policy_ros.backends.kernels.weights import Rotation

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
        codes = {
            self._products.code(rows, layer.weight, epilogue, quantised, layer.bias is not None)
            for rows, (layer, epilogue, quantised) in (*of_images, *of_prefixes)
            if fits(layer.weight, epilogue)
        }
        if fits(model.vision.patch, "placed"):
            patch = model.vision.patch
            codes |= {self._products.code(rows, patch, "placed", False, False) for rows in images}
        compile_all(codes)

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

    def rotated(self, x: Tensor, layer: Linear, rotation: Rotation) -> Tensor | None:
        if not _rotates(layer, rotation.keys.shape[-1]):
            return super().rotated(x, layer, rotation)
        return self._product(x, layer, "rotated", rotation=rotation)

    def _product(
        self,
        x: Tensor,
        layer: Linear,
        epilogue: Epilogue,
        quantise: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        return self._products(
            x,
            layer.weight,
            epilogue,
            bias=layer.bias,
            input_scale=layer.input_scale,
            weight_scale=layer.weight_scale,
            quantise=quantise,
            rotation=rotation,
        )


def _rotates(layer: Linear, head_dim: int) -> bool:
    return layer.bias is None and head_dim == HEAD_DIM and fits(layer.weight, "rotated")


def _vision_products(model: FusedModel) -> Iterator[tuple[Linear, Epilogue, bool]]:
    """Each with whether its result is quantised."""
    for layer in model.vision.layers:
        yield layer.qkv, "plain", False
        yield layer.out, "parts", False
        yield layer.fc1, "gelu", layer.fc2.input_scale is not None
        yield layer.fc2, "parts", False
    yield model.vision.projector, "plain", False


def _prefix_products(model: FusedModel) -> Iterator[tuple[Linear, Epilogue, bool]]:
    heads: Epilogue = "plain"
    if _rotates(model.prefix.last_kv, model.config.language.head_dim):
        heads = "rotated"
    for layer in model.prefix.layers:
        yield layer.qkv, heads, False
        yield layer.o, "parts", False
        yield layer.gate_up, "geglu", layer.down.input_scale is not None
        yield layer.down, "parts", False
    yield model.prefix.last_kv, heads, False


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
    """The largest one of a plain product, one with places and one that is rotated; NaN where any
    result is."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    x, weight, places = random(40, 256).to(E4M3), random(768, 256).to(E4M3), random(20, 768)
    one, zero = torch.ones((), device=device), torch.zeros(1, device=device, dtype=torch.int32)
    keys, values, keys_wanted, values_wanted = torch.zeros(
        4, 1, 40, HEAD_DIM, device=device, dtype=torch.bfloat16
    )
    angles = random(40, HEAD_DIM // 2)
    rotation = Rotation(angles.cos(), angles.sin(), zero, keys, values)
    multiply = partial(products, x, weight, input_scale=one, weight_scale=one)
    product = x.float() @ weight.float().t()
    split = ReferenceOps().split_qkv(
        product, *rotation._replace(keys=keys_wanted, values=values_wanted)
    )
    pairs = [
        (multiply(), product),
        (multiply(epilogue="placed", places=places), product + places.repeat(2, 1)),
        (multiply(epilogue="rotated", rotation=rotation), split),
        (keys, keys_wanted),
        (values, values_wanted),
    ]
    errors = [(got.float() - w.float()).norm() / w.float().norm() for got, w in pairs]
    return float(torch.stack(errors).max())
