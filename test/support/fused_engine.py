"""The fused engine on the CPU in the ways it runs: exact lengths, buckets, counted programs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from support.golden import TOY, toy_config

from thor_policy_ros.backends.fp8 import emulated_matmul
from thor_policy_ros.backends.fused import Execution, FusedBackend, execution_on
from thor_policy_ros.backends.fused_network import Tools
from thor_policy_ros.backends.fused_products import DeviceProducts
from thor_policy_ros.backends.fused_programs import Work
from thor_policy_ros.backends.fused_weights import take_weights
from thor_policy_ros.backends.kernels.ops import create_ops
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.model.checkpoint import load_pi05

ON_CPU = replace(execution_on(torch.device("cpu"), torch.float32), step_counts=(10, 3))
"""As the backends of a CPU run, in float32."""


def reference_tools() -> Tools:
    """The operations that the kernels of a GPU are tested against."""
    ops = create_ops("reference", "cpu")
    return Tools(ops, DeviceProducts(ops, emulated_matmul))


@dataclass
class CountedPrograms:
    """In place of CUDA graphs: like them it runs the work once or more when it prepares, and
    later the same work without asking again."""

    prepared: int = 0

    def __call__(self, work: Work) -> Work:
        self.prepared += 1
        work()
        return work


def padded(*buckets: int) -> Execution:
    """Fixed sizes, as a GPU has them."""
    return replace(ON_CPU, make_tools=reference_tools, padded=True, buckets=buckets)


def fused_backend(
    execution: Execution = ON_CPU, name: str = "fused_freq1", folder: Path = TOY
) -> FusedBackend:
    """The recorded toy model in float32."""
    return FusedBackend(BACKENDS[name], take_weights(load_pi05(folder, toy_config())), execution)
