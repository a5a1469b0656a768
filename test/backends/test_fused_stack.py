"""When all denoise steps are one launch, and what is said where they are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.fused_engine import ON_CPU, CountedPrograms, fused_backend, padded
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise
from torch import Tensor

from thor_policy_ros.backends import fused_stack
from thor_policy_ros.backends.fused import STACK_STEP_COUNTS
from thor_policy_ros.backends.fused_network import Expert, Flow, Place, integrate
from thor_policy_ros.backends.fused_steps import StepTable, constants_in
from thor_policy_ros.backends.fused_weights import FusedModel, take_weights
from thor_policy_ros.backends.kernels import create_ops
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.types import Guidance


@pytest.fixture
def model() -> FusedModel:
    return take_weights(load_pi05(TOY, toy_config()))


def test_another_dtype_is_said(model: FusedModel) -> None:
    assert "bfloat16, not torch.float32" in fused_stack.missing(model)


def test_other_sizes_are_said(model: FusedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    in_bfloat16 = replace(model, dtype=torch.bfloat16)
    assert "other sizes or another GPU" in fused_stack.missing(in_bfloat16)
    monkeypatch.setattr(fused_stack, "_plan", lambda model: object())
    assert fused_stack.missing(in_bfloat16) == ""


def test_a_missing_package_is_said(model: FusedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_stack, "NEEDED", ("cuda.no_such_module",))
    stack, note = fused_stack.stack_of(model)
    assert stack is None
    assert "cuda-core" in note and note.startswith("a kernel for each product")


def test_what_a_driver_refuses_runs_as_single_kernels(
    model: FusedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any) -> None:
        raise RuntimeError("too many blocks")

    monkeypatch.setattr(fused_stack, "missing", lambda model: "")
    monkeypatch.setattr(fused_stack, "_tried", refused)
    stack, note = fused_stack.stack_of(model)
    assert stack is None
    assert "too many blocks" in note


def test_a_load_without_room_is_refused(model: FusedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(fused_stack, "missing", lambda model: "")
    monkeypatch.setattr(fused_stack, "_tried", full)
    with pytest.raises(torch.OutOfMemoryError):
        fused_stack.stack_of(model)


def test_the_engine_says_which_it_is() -> None:
    execution = replace(ON_CPU, make_stack=lambda model: (None, "a kernel for each: so it is"))
    backend = fused_backend(execution)
    try:
        assert "a kernel for each: so it is" in backend.notes
    finally:
        backend.close()


class StandIn:
    """Does with the arguments of `ExpertStack.run` what the kernel does, by single operations."""

    def __init__(self, model: FusedModel) -> None:
        self._weights = model.expert
        self._expert = Expert(create_ops("reference", "cpu"), model.expert)
        self.steps: list[int] = []

    def run(
        self,
        noise: Tensor,
        result: Tensor,
        rows: Tensor,
        target: Tensor,
        gains: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        self.steps.append(len(rows))
        hidden = torch.empty(len(noise), self._weights.into[0].shape[0])
        table = StepTable(rows, tuple(constants_in(row, self._weights) for row in rows))
        layers = [(k[0], v[0]) for k, v in zip(keys, values, strict=True)]
        place = Place(layers, length, cos, sin, torch.zeros_like(length), keys, values)
        flow = Flow(noise, result, torch.empty_like(noise), hidden, target, gains)
        integrate(self._expert, flow, table, place)


@pytest.mark.parametrize("steps", [10, 4, 1, 12])
def test_every_step_count_is_one_call_of_the_stack(steps: int) -> None:
    """Of a count with a program of its own and of others; with guidance, and off afterwards."""
    stacks: list[StandIn] = []

    def made(model: FusedModel) -> Any:
        stacks.append(StandIn(model))
        return stacks[0], "a stand-in"

    ours = fused_backend(replace(padded(), make_stack=made, make_graphs=CountedPrograms))
    single = fused_backend()
    noise = toy_noise()[0].numpy()
    target, weights = np.ones_like(noise), np.linspace(1, 0, len(noise), dtype=np.float32)
    found = []
    for backend in (ours, single):
        backend.warmup()
        prefix = backend.prefill(toy_model_inputs(), 0.0)
        stacks[0].steps.clear()
        cases = None, Guidance(target, weights), None
        found.append([backend.denoise(prefix, noise, steps, guidance) for guidance in cases])
        if backend is ours:
            assert stacks[0].steps == [steps] * 3
            assert len(backend.programs[1]) == len(STACK_STEP_COUNTS)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(found[0][1] - found[0][0]).max() > 0.1
    for backend in (ours, single):
        backend.close()
