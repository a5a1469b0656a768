"""Programmatic dependent launch: a kernel begins while the one before it in its stream still runs.

A kernel lets the next one begin as soon as it has itself waited, so that two run at a time and no
more. Before it waits it may read what the kernel right in front of it does not write (whatever was
written earlier is there by then): its weights above all. To bring more of them into the L2 cache
meanwhile gained nothing (measured on an H200).
Hopper (9.0) and later; off unless a target asks for it.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Go on when the previous kernel is complete and visible; then let the next one begin."""
    if OVERLAP:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
