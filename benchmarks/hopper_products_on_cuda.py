"""The products of vision tower and prefix on a Hopper GPU: cuBLAS, and ours cut in several ways.

    PYTHONPATH=. python3 benchmarks/hopper_products_on_cuda.py --out FILE

Microseconds of one product in a graph of many, each with weights of its own, which come from the
GPU's memory (260 MB of them in turns); two cameras, 20 prompt tokens in a bucket of 32. cuBLAS:
with GELU where it has it and without where not, GEGLU never. error: norm of what differs from
the same operands in float64, over its norm. 15 seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3, device_matmul
from thor_policy_ros.backends.kernels.hopper_product import (
    Epilogue,
    HopperProducts,
    Tiling,
    tiling_for,
)
from thor_policy_ros.evaluation.result_files import machine_of, versions

WEIGHT_BYTES = 260e6
CALLS, REPLAYS = 24, 7


class Product(NamedTuple):
    """cuts: beside the one that is chosen."""

    tokens: int
    rows: int
    inputs: int
    epilogue: Epilogue
    biased: bool
    cuts: tuple[Tiling, ...]


PRODUCTS = {
    "vision qkv": Product(512, 3456, 1152, "plain", True, (Tiling(88, 1),)),
    "vision out": Product(512, 1152, 1152, "parts", True, (Tiling(128, 1, 3),)),
    "vision fc1": Product(512, 4304, 1152, "gelu", True, (Tiling(176, 1), Tiling(80, 2))),
    "vision fc2": Product(
        512, 1152, 4304, "parts", True, (Tiling(128, 1, 3), Tiling(176, 1, 4), Tiling(80, 1, 2))
    ),
    "prefix qkv": Product(544, 2560, 2048, "plain", False, (Tiling(112, 1),)),
    "prefix o": Product(544, 2048, 2048, "parts", False, (Tiling(184, 1, 2),)),
    "prefix gate_up": Product(544, 32768, 2048, "geglu", False, (Tiling(136, 2), Tiling(184, 2))),
    "prefix down": Product(
        544, 2048, 16384, "parts", False, (Tiling(136, 2, 4), Tiling(184, 2, 5), Tiling(136, 1, 2))
    ),
}


class Operands:
    """Random ones of a product; weights enough to find none in a cache."""

    def __init__(self, product: Product, fp8: bool) -> None:
        tokens, rows, inputs, self.epilogue, biased, _ = product
        dtype = E4M3 if fp8 else torch.bfloat16
        copies = max(2, min(CALLS, int(WEIGHT_BYTES / (rows * inputs * dtype.itemsize))))
        deviation = 2.0 if fp8 else inputs**-0.5
        self.x = torch.randn(tokens, inputs, device="cuda").to(dtype)
        self.weights = [
            (torch.randn(rows, inputs, device="cuda") * deviation).to(dtype) for _ in range(copies)
        ]
        self.bias = torch.randn(rows, device="cuda").bfloat16() if biased else None
        self.scales: dict[str, Any] = {}
        self.quantise: Tensor | None = None
        if fp8:
            self.scales["input_scale"] = torch.tensor(0.5, device="cuda")
            self.scales["weight_scale"] = torch.tensor(inputs**-0.5, device="cuda")
            if self.epilogue in ("gelu", "geglu"):
                self.quantise = torch.tensor(0.1, device="cuda")

    def exact(self) -> Tensor:
        product = self.x.double() @ self.weights[0].double().t()
        for scale in self.scales.values():
            product *= scale.double()
        product = product if self.bias is None else product + self.bias.double()
        if self.epilogue == "geglu":
            gate, up = product.chunk(2, 1)
            return F.gelu(gate, approximate="tanh") * up
        return F.gelu(product, approximate="tanh") if self.epilogue == "gelu" else product

    def by_cublas(self, weight: Tensor) -> Tensor:
        if self.scales:
            return device_matmul(self.x, weight.t(), *self.scales.values(), self.bias)
        if self.epilogue == "gelu":
            assert self.bias is not None
            return torch._addmm_activation(self.bias, self.x, weight.t(), use_gelu=True)
        return F.linear(self.x, weight, self.bias)

    def ours(
        self, products: HopperProducts, weight: Tensor, cut: Tiling, out: Any = None
    ) -> Tensor:
        return products(
            self.x,
            weight,
            self.epilogue,
            bias=self.bias,
            quantise=self.quantise,
            out=out,
            tiling=cut,
            **self.scales,
        )

    def error(self, got: Tensor) -> float:
        wide = got.double().sum(0) if self.epilogue == "parts" else got.double()
        wide = wide if self.quantise is None else wide * self.quantise.double()
        wanted = self.exact()
        return float((wide - wanted).norm() / wanted.norm())


def microseconds(calls: Sequence[Callable[[], object]]) -> float:
    """Of one of them, in a graph of all."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def measured(product: Product, fp8: bool, products: HopperProducts, processors: int) -> Any:
    """By cut, the chosen one first."""
    operands, turns = Operands(product, fp8), []
    steps = -(-product.inputs * operands.x.element_size() // 128)
    chosen = tiling_for(product.tokens, product.rows, steps, product.epilogue, processors)
    while len(turns) < CALLS:
        turns += operands.weights
    result: dict[str, Any] = {
        "cublas_us": microseconds([partial(operands.by_cublas, w) for w in turns])
    }
    for cut in dict.fromkeys((chosen, *product.cuts)):
        out = operands.ours(products, operands.weights[0], cut)
        calls = [partial(operands.ours, products, w, cut, out) for w in turns]
        error = operands.error(out.clone())
        result[f"{cut.tokens} tokens, {cut.rows} rows, {cut.splits} parts"] = {
            "us": microseconds(calls),
            "error": error,
            "chosen": cut == chosen,
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device())
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    products = HopperProducts(device, processors)
    results: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "machine": machine_of(device),
        "versions": versions(),
    }
    for name, product in PRODUCTS.items():
        for fp8 in (False, True):
            kind = f"{name}, {'E4M3' if fp8 else 'bfloat16'}"
            results[kind] = measured(product, fp8, products, processors)
            print(kind, json.dumps(results[kind]), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
