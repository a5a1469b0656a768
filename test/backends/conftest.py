"""Without a GPU, Triton kernels run in Triton's interpreter: decided before Triton is imported."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "Triton was imported before its interpreter was asked for: name test/backends first,"
            " or set TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        from support.faithful_interpreter import use_rounding_of_gpus

        use_rounding_of_gpus()
