"""Whose attention the prefix gets on a GPU, and what is said where it is not Hopper's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from thor_policy_ros.backends import fused_attention, fused_trial
from thor_policy_ros.backends.kernels.capability import DeviceLimits

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forget_trials() -> Iterator[None]:
    fused_attention._refused.cache_clear()
    yield
    fused_attention._refused.cache_clear()


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a((9, 0), monkeypatch)
    monkeypatch.setattr(fused_attention, "kernels_can_overlap", lambda device: True)
    monkeypatch.setattr(fused_attention, "create_ops", lambda name, *arguments: name)
    monkeypatch.setattr(fused_attention, "HopperAttention", lambda *arguments: object())


def on_a(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = DeviceLimits(capability, 227 * 1024, 132)
    monkeypatch.setattr(fused_trial, "limits_of", lambda device: limits)


@pytest.mark.parametrize("capability", [(8, 9), (10, 0), (11, 0)])
def test_other_gpus_are_said(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    on_a(capability, monkeypatch)
    ops, note = fused_attention.attending_ops(GPU, None)
    assert ops == "triton"
    assert note.startswith("the prefix's attention by Triton") and "Hopper (9.0)" in note


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_trial.importlib.util, "find_spec", lambda name: None)
    ops, note = fused_attention.attending_ops(GPU, None)
    assert ops == "triton"
    assert "cuda-core" in note


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_trial_that_is_wrong_leaves_triton(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_attention, "_trial_error", lambda attention, device: error)
    ops, note = fused_attention.attending_ops(GPU, None)
    assert ops == "triton"
    assert f"off by {error:.3g}" in note


def test_what_a_driver_refuses_leaves_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> float:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(fused_attention, "_trial_error", refused)
    ops, note = fused_attention.attending_ops(GPU, None)
    assert ops == "triton"
    assert "RuntimeError: no such instruction" in note


def test_a_load_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> float:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(fused_attention, "_trial_error", full)
    with pytest.raises(torch.OutOfMemoryError):
        fused_attention.attending_ops(GPU, None)


def test_a_trial_is_made_once_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper_ops = pytest.importorskip(
        "thor_policy_ros.backends.kernels.hopper_ops", reason="Triton is not installed"
    )
    trials = []
    monkeypatch.setattr(hopper_ops, "HopperOps", lambda *arguments: ("hopper", *arguments[1:]))
    monkeypatch.setattr(
        fused_attention, "_trial_error", lambda attention, device: trials.append(device) or 0.001
    )
    for _ in range(2):
        ops, note = fused_attention.attending_ops(GPU, None)
        assert ops == ("hopper", True, None)
        assert note == "the prefix's attention on Hopper's matrix instructions"
    assert trials == [GPU]
