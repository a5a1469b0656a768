"""The fused engine: the recorded outputs in every bucket, and nothing prepared after warm-up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fused_engine import ON_CPU, CountedPrograms, fused_backend, padded
from support.golden import (
    TOLERANCE,
    TOY_LEROBOT,
    largest_error,
    toy_config,
    toy_model_inputs,
    toy_noise,
    toy_outputs,
)

from thor_policy_ros.backends import fused, fused_slot
from thor_policy_ros.backends.fused import Execution, FusedBackend
from thor_policy_ros.backends.fused_host import HostProducts, onednn_is_there
from thor_policy_ros.backends.pipelined import PipelinedBackend
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, create_backend
from thor_policy_ros.types import Guidance, ModelInputs, StalePrefixError

NOISE = toy_noise()[0].numpy()
TOKENS = int(toy_model_inputs().token_mask.sum())
EXECUTIONS = {
    "exact lengths": ON_CPU,
    "the longest bucket": padded(),
    "a bucket with padding": padded(4, 20),
    "a bucket that fits": padded(8, TOKENS),
}


@pytest.fixture(scope="module", params=EXECUTIONS.values(), ids=EXECUTIONS.keys())
def backend(request: pytest.FixtureRequest) -> FusedBackend:
    made = fused_backend(request.param)
    made.warmup()
    return made


@pytest.fixture(scope="module")
def reference() -> PyTorchBackend:
    made = create_backend("pytorch", TOY_LEROBOT, toy_config(), "cpu", "float32")
    assert isinstance(made, PyTorchBackend)
    return made


def varied_inputs() -> Iterator[ModelInputs]:
    """Every set of present cameras with prompts of several lengths."""
    inputs = toy_model_inputs()
    tokens = np.random.default_rng(0).integers(1, 90, 24).astype(np.int32)
    for cameras in itertools.product([True, False], repeat=3):
        for length in (1, 4, 5, 20, 24):
            if any(cameras):
                mask = np.arange(24) < length
                yield ModelInputs(inputs.images, np.array(cameras), tokens, mask)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_recorded_actions(backend: FusedBackend, num_steps: int) -> None:
    """1 step has no program of its own here, 3 and 10 have."""
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    actions = torch.from_numpy(backend.denoise(prefix, NOISE, num_steps))
    assert largest_error(actions, toy_outputs()[f"actions_{num_steps}_steps"][0]) < TOLERANCE


def test_the_prefix_holds_the_valid_tokens_and_nothing_else(backend: FusedBackend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 12.5)
    backend.denoise(prefix, NOISE, 2)  # which writes behind it, never into it
    valid = toy_outputs()["prefix_pad_mask"][0]
    assert largest_error(prefix.keys, toy_outputs()["prefix_k"][..., valid, :]) < TOLERANCE
    assert largest_error(prefix.values, toy_outputs()["prefix_v"][..., valid, :]) < TOLERANCE
    assert prefix.pad_mask.all() and prefix.pad_mask.shape == (1, int(valid.sum()))
    assert prefix.observed_at_s == 12.5


def test_any_cameras_and_prompt_match_the_reference(
    backend: FusedBackend, reference: PyTorchBackend
) -> None:
    for inputs in varied_inputs():
        ours = backend.denoise(backend.prefill(inputs, 0.0), NOISE, 3)
        theirs = reference.denoise(reference.prefill(inputs, 0.0), NOISE, 3)
        assert np.abs(ours - theirs).max() < 2e-5


def test_returning_to_a_frame_returns_its_actions(backend: FusedBackend) -> None:
    """No trace of other prompts, cameras or step counts in the fixed memory."""
    first = backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    for inputs in varied_inputs():
        backend.denoise(backend.prefill(inputs, 0.0), NOISE + 1, 4)
    again = backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    assert np.array_equal(again, first)


@pytest.mark.parametrize("num_steps", [3, 4])
def test_guidance_is_that_of_the_reference_and_off_afterwards(
    backend: FusedBackend, reference: PyTorchBackend, num_steps: int
) -> None:
    target = np.random.default_rng(1).standard_normal(NOISE.shape, dtype=np.float32)
    weights = np.linspace(1, 0, len(NOISE), dtype=np.float32)
    guidance = Guidance(target, weights)
    ours = backend.prefill(toy_model_inputs(), 0.0)
    theirs = reference.prefill(toy_model_inputs(), 0.0)
    free = backend.denoise(ours, NOISE, num_steps)
    guided = backend.denoise(ours, NOISE, num_steps, guidance)
    wanted = reference.denoise(theirs, NOISE, num_steps, guidance)
    assert np.abs(guided - wanted).max() < 2e-5
    assert np.abs(guided - free).max() > 0.1
    off = Guidance(target, np.zeros_like(weights))
    for nothing in (off, None):
        assert np.array_equal(backend.denoise(ours, NOISE, num_steps, nothing), free)


def test_after_warmup_no_frame_prepares_a_program() -> None:
    made: list[CountedPrograms] = []

    def make() -> CountedPrograms:
        made.append(CountedPrograms())
        return made[-1]

    execution = replace(padded(4, 8), make_graphs=make)
    backend = fused_backend(execution)
    backend.warmup()
    counts = [programs.prepared for programs in made]
    # 3 numbers of cameras: vision, and prefixes in 3 buckets; 2 step counts and a single step.
    assert counts == [3 + 3 * 3, 3]
    exact = fused_backend()
    for steps, inputs in zip(itertools.cycle((10, 3, 7, 1)), varied_inputs(), strict=False):
        ours = backend.denoise(backend.prefill(inputs, 0.0), NOISE, steps)
        theirs = exact.denoise(exact.prefill(inputs, 0.0), NOISE, steps)
        assert np.abs(ours - theirs).max() < 2e-5
    assert [programs.prepared for programs in made] == counts
    backend.warmup()
    assert [programs.prepared for programs in made] == counts


def test_a_program_that_warmup_left_out_is_a_defect_not_a_delay() -> None:
    backend = fused_backend(replace(padded(), make_graphs=CountedPrograms))
    backend.warmup()
    with pytest.raises(RuntimeError, match="not prepared at warm-up"):
        backend.programs[0].run(("vision", 0, 99), lambda: None)


def test_a_repeated_instruction_is_embedded_once() -> None:
    looked_up: list[int] = []

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        looked_up.append(len(tokens))
        return tokens[:, None].float()

    embedded = fused_slot.EmbeddedPrompts(embed, torch.device("cpu"))
    for _ in range(3):
        for tokens in ([1, 2], [3]):
            made = embedded(np.array(tokens, np.int32))
            assert made.flatten().tolist() == tokens
    assert looked_up == [2, 1]
    for other in range(10, 10 + fused_slot.PROMPTS_KEPT):
        embedded(np.array([other], np.int32))
    embedded(np.array([1, 2], np.int32))
    assert looked_up[-1] == 2, "the least recently used is forgotten: memory is bounded"


@pytest.mark.parametrize("execution", [ON_CPU, padded(8)], ids=["exact", "padded"])
def test_a_pipelined_engine_gives_the_same_frames(execution: Execution) -> None:
    plain = fused_backend(execution)
    beside = PipelinedBackend(fused_backend(execution, "fused_pipelined"))
    frames = list(varied_inputs())[:6]
    wanted = [plain.denoise(plain.prefill(f, 0.0), NOISE, 3) for f in frames]
    prefix, found = beside.prefill(frames[0], 0.0), []
    for ahead in (*frames[1:], frames[0]):
        following = beside.prefill(ahead, 0.0)
        found.append(beside.denoise(prefix, NOISE, 3))
        prefix = following
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_contract_of_every_engine() -> None:
    backend = fused_backend()
    old = backend.prefill(toy_model_inputs(), 0.0)
    new = backend.prefill(toy_model_inputs(), 1.0)
    with pytest.raises(StalePrefixError, match="prefill again"):
        backend.denoise(old, NOISE, 1)
    with pytest.raises(ValueError, match=r"noise of shape \(10, 32\), got \(9, 32\)"):
        backend.denoise(new, NOISE[:9], 1)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        backend.denoise(new, NOISE, 0)
    nothing = replace(toy_model_inputs(), image_mask=np.zeros(3, np.bool_))
    with pytest.raises(ValueError, match="at least one image and one token; got 0 images"):
        backend.prefill(nothing, 0.0)
    assert set(backend.stage_times_ms()) == {"vision", "prefill", "denoise"}
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.prefill(toy_model_inputs(), 0.0)


@pytest.mark.parametrize("packs", [True, False])
def test_packed_and_plain_products_agree(packs: bool) -> None:
    """Both kinds, at sizes on both sides of where packing pays."""
    products = HostProducts(packs and onednn_is_there())
    torch.manual_seed(0)
    for tokens, inputs, outputs in ((10, 24, 16), (148, 128, 768)):
        x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
        bias = torch.randn(outputs)
        exact = (x.double() @ weight.double().t() + bias).float()
        gate, up = exact.chunk(2, -1)
        gelu = torch.nn.functional.gelu
        for ours, theirs in (
            (products.product(x, weight, bias), exact),
            (products.product(x, weight, bias, gelu=True), gelu(exact, approximate="tanh")),
            (products.gated(x, weight, bias), gelu(gate, approximate="tanh") * up),
        ):
            assert (ours - theirs).norm() / theirs.norm() < 1e-6


def test_diagnostics_say_whose_products_a_cpu_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, said in ((True, "oneDNN"), (False, "nothing packed")):
        monkeypatch.setattr(fused, "onednn_is_there", lambda there=there: there)
        backend = create_backend("fused", TOY_LEROBOT, toy_config(), "cpu")
        assert said in backend.notes[0]  # type: ignore[attr-defined]


def test_the_rows_of_the_registry_load_on_a_cpu() -> None:
    for name in ("fused", "fused_freq1", "fused_pipelined"):
        backend = create_backend(name, TOY_LEROBOT, toy_config(), "cpu")
        backend.warmup()
        assert backend.spec is BACKENDS[name]
        actions = backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 10)
        recorded = toy_outputs()["actions_10_steps"][0]
        assert largest_error(torch.from_numpy(actions), recorded) < TOLERANCE
