"""Inside kernels: float32 values as E4M3, and out of parts of a sum."""

import triton
import triton.language as tl


@triton.jit
def quantised(value, scale_ptr):
    """value / scale in E4M3, saturated at its largest value (which is not NaN); NaN stays NaN."""
    scaled = value * (1.0 / tl.load(scale_ptr))
    limited = tl.clamp(scaled, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return limited.to(tl.float8e4nv)


@triton.jit
def store(pointers, value, scale_ptr, mask, QUANTISE: tl.constexpr):
    """Round once, to E4M3 or to the dtype of the destination."""
    if QUANTISE:
        tl.store(pointers, quantised(value, scale_ptr), mask=mask)
    else:
        tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def load_sum(pointers, part, mask, PARTS: tl.constexpr):
    """float32 sum of PARTS values that lie `part` elements apart."""
    value = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    for index in tl.static_range(1, PARTS):
        value += tl.load(pointers + index * part, mask=mask, other=0.0).to(tl.float32)
    return value
