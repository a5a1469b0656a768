"""When the expert runs as one launch a step, and what is said where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.fused_engine import ON_CPU, fused_backend
from support.golden import TOY, toy_config

from thor_policy_ros.backends import fused_stack
from thor_policy_ros.backends.fused_weights import FusedModel, take_weights
from thor_policy_ros.model.checkpoint import load_pi05


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
