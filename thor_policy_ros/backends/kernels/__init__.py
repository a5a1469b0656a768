"""The fused operations of pi0.5: a protocol, its torch reference, and Triton kernels.

Nothing here imports Triton until `create_ops("triton", device)` is called.
"""

from thor_policy_ros.backends.kernels.ops import Ops, create_ops
from thor_policy_ros.backends.kernels.resize_taps import ResizeTaps, resize_taps
from thor_policy_ros.backends.kernels.weights import (
    Folded,
    Scaled,
    Weight,
    fold,
    quantise_rows,
    rope_halves,
)

__all__ = [
    "Folded",
    "Ops",
    "ResizeTaps",
    "Scaled",
    "Weight",
    "create_ops",
    "fold",
    "quantise_rows",
    "resize_taps",
    "rope_halves",
]
