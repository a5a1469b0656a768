"""Whether all denoise steps of a model can be one launch, and the object that makes it."""

from __future__ import annotations

import importlib.util
import logging

import torch

from thor_policy_ros.backends.fused_steps import row_size
from thor_policy_ros.backends.fused_weights import FusedModel
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.expert_stack import ExpertStack, StackPlan, stack_plan
from thor_policy_ros.backends.kernels.weights import rope_halves

NEEDED = ("cuda.core", "cuda.bindings")
TRIAL_STEPS = 2
"""One after the other, and one that begins where another ended."""
_SINGLE = "a kernel for each product of a denoise step"
_log = logging.getLogger(__name__)


def stack_of(model: FusedModel) -> tuple[ExpertStack | None, str]:
    """On the model's GPU, after one launch for trial; and a note of which it is, or why not.

    torch.OutOfMemoryError where the packed weights find no room.
    """
    lacks = missing(model)
    if lacks:
        return None, f"{_SINGLE}: {lacks}"
    try:
        stack = _tried(model)
    except torch.OutOfMemoryError:
        raise  # a load without room is refused as a whole, not made a slower one
    except Exception as error:  # noqa: BLE001 - whatever compiler or driver refuses, single kernels run
        _log.exception("all denoise steps as one launch were refused")
        return None, f"{_SINGLE}: one launch was refused ({type(error).__name__}: {error})"
    return stack, f"one launch for all denoise steps, on {stack.plan.blocks} multiprocessors"


def missing(model: FusedModel) -> str:
    """Why there is no stack for this model here, '' where there is."""
    if not all(_is_there(name) for name in NEEDED):
        return "one launch for all of them wants the packages cuda-core and cuda-bindings"
    if model.dtype != torch.bfloat16:
        return f"one launch for all of them computes in bfloat16, not {model.dtype}"
    if _plan(model) is None:
        return "one launch for all of them is made for other sizes or another GPU"
    return ""


def _tried(model: FusedModel) -> ExpertStack:
    """RuntimeError where its result is not finite."""
    plan, device = _plan(model), model.device
    assert plan is not None
    stack = ExpertStack(plan, model.expert.layers, model.expert.into, model.expert.out, device)
    zeros, result = torch.zeros(2, plan.rows, plan.actions, device=device)
    gains = torch.zeros(TRIAL_STEPS, plan.rows, device=device)
    rows = torch.zeros(TRIAL_STEPS, row_size(model.expert), device=device)
    keys = torch.zeros(plan.layers, plan.keys, plan.head_dim, device=device, dtype=model.dtype)
    length = torch.ones(1, device=device, dtype=torch.int32)
    tables = rope_halves(plan.keys, plan.head_dim, device)
    stack.run(zeros, result, rows, zeros, gains, keys, keys, length, *tables)
    if not bool(result.isfinite().all()):
        raise RuntimeError("a trial with zeros gave what is not finite")
    return stack


def _plan(model: FusedModel) -> StackPlan | None:
    config = model.config
    expert = config.action_expert
    if expert.num_kv_heads != 1:
        return None
    return stack_plan(
        config.action_horizon,
        expert.width,
        expert.num_heads,
        expert.head_dim,
        expert.mlp_dim,
        expert.depth,
        config.max_prefix_len + config.action_horizon,
        config.action_dim,
        fp8=model.expert.layers[0].qkv.scale is not None,
        limits=limits_of(model.device),
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
