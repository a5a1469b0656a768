"""Which products the fused engine takes on a GPU, and what is said where these are not it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.fused_engine import ON_CPU, fused_backend
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise
from torch import Tensor, nn

from thor_policy_ros.backends import fused_hopper, fused_trial
from thor_policy_ros.backends.fused_hopper import FinishedProducts
from thor_policy_ros.backends.fused_network import Tools
from thor_policy_ros.backends.fused_weights import take_weights
from thor_policy_ros.backends.kernels import create_ops
from thor_policy_ros.backends.kernels.capability import DeviceLimits
from thor_policy_ros.backends.kernels.hopper_product import EPILOGUES
from thor_policy_ros.backends.kernels.reference import ReferenceOps
from thor_policy_ros.model.checkpoint import load_pi05

GPU = torch.device("cuda", 0)


class Recorder:
    """Stands in for the kernels: multiplies with torch, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[int, ...], str, bool, bool]] = []

    def code(self, tokens: int, weight: Tensor, epilogue: str, *rest: bool) -> Any:
        return (tokens, tuple(weight.shape), epilogue, *rest)

    def __call__(self, x: Tensor, weight: Tensor, epilogue: str, **more: Any) -> Tensor:
        assert x.ndim == 2
        quantised, bias = more["quantise"] is not None, more["bias"]
        self.asked.append(self.code(x.shape[0], weight, epilogue, quantised, bias is not None))
        product = nn.functional.linear(x, weight, bias)
        if epilogue == "rotated":
            return ReferenceOps().split_qkv(product, *more["rotation"])
        if epilogue == "parts":
            return torch.stack((product * 0.25, product * 0.75)).float()
        if epilogue == "geglu":
            gate, up = product.chunk(2, -1)
            return nn.functional.gelu(gate, approximate="tanh") * up
        return nn.functional.gelu(product, approximate="tanh") if epilogue == "gelu" else product


@pytest.fixture(autouse=True)
def forget_trials() -> Iterator[None]:
    fused_hopper._refused.cache_clear()
    yield
    fused_hopper._refused.cache_clear()


def on_a(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = DeviceLimits(capability, 227 * 1024, 132)
    monkeypatch.setattr(fused_trial, "limits_of", lambda device: limits)
    monkeypatch.setattr(fused_hopper, "limits_of", lambda device: limits)
    monkeypatch.setattr(fused_hopper, "HopperProducts", lambda *arguments: object())


@pytest.mark.parametrize("capability", [(8, 9), (10, 0), (11, 0)])
def test_other_gpus_are_said(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    on_a(capability, monkeypatch)
    products, note = fused_hopper.finished_products(GPU)
    assert products is None
    assert note.startswith("products by cuBLAS") and "Hopper" in note


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a((9, 0), monkeypatch)
    monkeypatch.setattr(fused_trial.importlib.util, "find_spec", lambda name: None)
    products, note = fused_hopper.finished_products(GPU)
    assert products is None
    assert "cuda-core" in note


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_trial_that_is_wrong_leaves_cublas(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a((9, 0), monkeypatch)
    monkeypatch.setattr(fused_hopper, "_trial_error", lambda products, device: error)
    products, note = fused_hopper.finished_products(GPU)
    assert products is None
    assert f"off by {error:.3g}" in note


def test_what_a_driver_refuses_leaves_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> float:
        raise RuntimeError("no such instruction")

    on_a((9, 0), monkeypatch)
    monkeypatch.setattr(fused_hopper, "_trial_error", refused)
    products, note = fused_hopper.finished_products(GPU)
    assert products is None
    assert "RuntimeError: no such instruction" in note


def test_a_load_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> float:
        raise torch.OutOfMemoryError("no room")

    on_a((9, 0), monkeypatch)
    monkeypatch.setattr(fused_hopper, "_trial_error", full)
    with pytest.raises(torch.OutOfMemoryError):
        fused_hopper.finished_products(GPU)


def test_a_trial_is_made_once_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = []
    on_a((9, 0), monkeypatch)
    monkeypatch.setattr(
        fused_hopper, "_trial_error", lambda products, device: trials.append(device) or 0.001
    )
    first, note = fused_hopper.finished_products(GPU)
    second, _ = fused_hopper.finished_products(GPU)
    assert first is not None and second is not first, "one for each stream"
    assert note == "products with what follows them in one kernel"
    assert trials == [GPU]


def test_what_is_prepared_is_what_frames_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product of a frame, at its rows, is among the kernels compiled before."""
    recorder, compiled = Recorder(), set()
    monkeypatch.setattr(fused_hopper, "fits", lambda weight, epilogue: True)
    monkeypatch.setattr(fused_hopper, "HEAD_DIM", toy_config().language.head_dim)
    monkeypatch.setattr(fused_hopper, "compile_all", compiled.update)
    ops = create_ops("reference", "cpu")
    tools = Tools(ops, FinishedProducts(ops, recorder), ("as recorded",))  # type: ignore[arg-type]
    backend = fused_backend(replace(ON_CPU, make_tools=lambda: tools))
    try:
        backend.warmup()
        assert "as recorded" in backend.notes
        assert recorder.asked
        assert set(recorder.asked) <= compiled
        assert {epilogue for *_, epilogue, _, _ in compiled} == set(EPILOGUES)
    finally:
        backend.close()


def test_sizes_without_a_kernel_go_to_cublas() -> None:
    """The toy model's, which are too narrow: not one is asked of the kernels."""
    recorder, model = Recorder(), take_weights(load_pi05(TOY, toy_config()))
    products = FinishedProducts(create_ops("reference", "cpu"), recorder)  # type: ignore[arg-type]
    layer = model.prefix.layers[0]
    x = torch.randn(3, layer.qkv.weight.shape[1])
    torch.testing.assert_close(products.linear(x, layer.qkv), x @ layer.qkv.weight.t())
    torch.testing.assert_close(products.delta(x, layer.qkv), x @ layer.qkv.weight.t())
    assert products.geglu(x, layer.gate_up, None).shape == (3, layer.gate_up.weight.shape[0] // 2)
    assert not recorder.asked


def test_a_frame_of_finished_products_meets_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of sums, GELU and GEGLU arrive where the network adds them up."""
    monkeypatch.setattr(fused_hopper, "fits", lambda weight, epilogue: True)
    monkeypatch.setattr(fused_hopper, "HEAD_DIM", toy_config().language.head_dim)
    ops, recorder = create_ops("reference", "cpu"), Recorder()
    tools = Tools(ops, FinishedProducts(ops, recorder))  # type: ignore[arg-type]
    actions = []
    for execution in (ON_CPU, replace(ON_CPU, make_tools=lambda: tools)):
        backend = fused_backend(execution)
        prefix = backend.prefill(toy_model_inputs(), 0.0)
        actions.append(torch.from_numpy(backend.denoise(prefix, toy_noise()[0].numpy(), 3)))
        backend.close()
    torch.testing.assert_close(actions[1], actions[0], rtol=0, atol=1e-5)
    assert "rotated" in {epilogue for *_, epilogue, _, _ in recorder.asked}
