"""Whether a model's action expert can run as one launch a step, and the object that does it."""

from __future__ import annotations

import importlib.util

import torch

from thor_policy_ros.backends.fused_weights import FusedModel
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.expert_stack import (
    CLUSTERS,
    ExpertStack,
    StackPlan,
    stack_plan,
)

NEEDED = ("cuda.core", "cuda.bindings")


def stack_of(model: FusedModel) -> tuple[ExpertStack | None, str]:
    """On the model's GPU, and a note that says which it is: one launch a step, or why not."""
    lacks = missing(model)
    if lacks:
        return None, f"a kernel for each product of a denoise step ({lacks})"
    for cluster in CLUSTERS:
        plan = _plan(model, cluster)
        if plan is None or plan.cluster > cluster:
            continue
        stack = ExpertStack(plan, model.expert.layers, model.device)
        if stack.fits:
            return stack, f"one launch a denoise step, on {plan.blocks} multiprocessors"
    return None, "a kernel for each product of a denoise step (the GPU cannot hold all blocks of one)"


def missing(model: FusedModel) -> str:
    """Why there is no stack for this model here, '' where there is."""
    packages = [name for name in NEEDED if not _is_there(name)]
    if packages:
        return "the package cuda-core is not installed"
    if model.dtype != torch.bfloat16:
        return f"one launch for all of them computes in bfloat16, not {model.dtype}"
    if _plan(model, CLUSTERS[-1]) is None:
        return "one launch for all of them is made for other sizes or another GPU"
    return ""


def _plan(model: FusedModel, cluster: int) -> StackPlan | None:
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
        fp8=model.expert.layers[0].qkv.scale is not None,
        limits=limits_of(model.device),
        cluster=cluster,
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
