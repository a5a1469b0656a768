"""Backend tensorrt on the CPU: everything but the library, which a stand-in computes with torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.golden import (
    TOLERANCE,
    TOY,
    largest_error,
    toy_config,
    toy_model_inputs,
    toy_noise,
    toy_outputs,
)
from support.toy_checkpoint import TINY, write_toy_checkpoint
from support.trt_stand_in import Config, Context, Engine, RtxContext, TapedGraphs, plan_of, stand_in

from thor_policy_ros.backends.cuda_graphs import NoGraphs, Recorder
from thor_policy_ros.backends.network_ops import Dtype, TorchOps
from thor_policy_ros.backends.pipelined import PipelinedBackend
from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.backends.tensorrt import on_device
from thor_policy_ros.backends.trt_backend import TensorRTBackend
from thor_policy_ros.backends.trt_execution import (
    DeviceEngine,
    EngineExecutionError,
    EngineRefusedError,
)
from thor_policy_ros.backends.trt_module import import_tensorrt, installed_module
from thor_policy_ros.backends.trt_parts import PARTS, bucket_for, in_no_engine, prefix_lengths
from thor_policy_ros.backends.trt_weights import checkpoint_weights
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification import verify_backend_engine
from thor_policy_ros.runtime.verification_inputs import synthetic_observations
from thor_policy_ros.types import (
    F32,
    Backend,
    BackendSpec,
    Guidance,
    ModelInputs,
    PrefixKV,
    StalePrefixError,
)

CONFIG = toy_config()
ROOMY = replace(CONFIG, max_token_len=100)
NOISE = toy_noise()[0].numpy()
PLAIN = BackendSpec("tensorrt", "tensorrt")
PIPELINED = BackendSpec("tensorrt_pipelined", "tensorrt", pipelined=True)


def make(
    spec: BackendSpec = PLAIN,
    recorder: Recorder | None = None,
    dtype: torch.dtype = torch.float32,
    config: Pi05Config = CONFIG,
    rtx: bool = False,
) -> TensorRTBackend:
    tensorrt = stand_in(load_pi05(TOY, config, dtype=dtype), rtx)
    engines = {name: DeviceEngine(tensorrt, memoryview(plan_of(name)), name) for name in PARTS}
    model = checkpoint_weights(TOY, config).load(in_no_engine, dtype)
    return TensorRTBackend(
        spec, model, on_device(engines, torch.device("cpu")), recorder=recorder or TapedGraphs()
    )


@pytest.fixture(params=[NoGraphs, TapedGraphs])
def backend(request: pytest.FixtureRequest) -> Iterator[TensorRTBackend]:
    made = make(recorder=request.param())
    yield made
    made.close()


def inputs_of(cameras: int, words: int, seed: int = 0, config: Pi05Config = CONFIG) -> ModelInputs:
    random, size = np.random.default_rng(seed), config.vision.image_size
    images = random.uniform(-1, 1, (config.num_cameras, 3, size, size)).astype(np.float32)
    tokens = random.integers(1, config.vocab_size, config.max_token_len).astype(np.int32)
    present = np.arange(config.num_cameras) < cameras
    return ModelInputs(images, present, tokens, np.arange(config.max_token_len) < words)


def frame(made: Backend, inputs: ModelInputs, steps: int = 3) -> F32:
    return made.denoise(made.prefill(inputs, 0.0), NOISE, steps)


def test_the_recorded_outputs_are_met(backend: TensorRTBackend) -> None:
    """Also after other frames, of other sizes: nothing of an earlier frame is left."""
    recorded = toy_outputs()
    kept = recorded["prefix_pad_mask"][0]
    for other in (inputs_of(3, 24), inputs_of(1, 2), inputs_of(2, 17, seed=1)):
        prefix = backend.prefill(toy_model_inputs(), 0.0)
        for ours, name in ((prefix.keys, "prefix_k"), (prefix.values, "prefix_v")):
            assert largest_error(ours[:, 0], recorded[name][:, 0][..., kept, :]) < TOLERANCE
        assert prefix.pad_mask.all() and prefix.pad_mask.shape[1] == kept.sum()
        for steps in (1, 3, 10):
            actions = torch.from_numpy(backend.denoise(prefix, NOISE, steps))
            assert largest_error(actions, recorded[f"actions_{steps}_steps"][0]) < TOLERANCE
        frame(backend, other)


@pytest.mark.parametrize("words", [0, 1, 31, 32, 33, 96, 100])
@pytest.mark.parametrize("cameras", [1, 3])
def test_every_length_in_every_bucket_is_as_pytorch_computes_it(
    roomy: tuple[TensorRTBackend, Backend], cameras: int, words: int
) -> None:
    ours, theirs = roomy
    inputs = inputs_of(cameras, words, seed=words, config=ROOMY)
    assert np.abs(frame(ours, inputs) - frame(theirs, inputs)).max() < 2e-5


def test_words_alone_are_a_prefix_too() -> None:
    inputs = inputs_of(0, 20)
    given = (inputs.images, inputs.image_mask, inputs.tokens.astype(np.int64), inputs.token_mask)
    model = load_pi05(TOY, CONFIG)
    with torch.inference_mode():
        encoded = model.prefill(*(torch.from_numpy(array)[None] for array in given))
        wanted = model.sample(encoded, torch.from_numpy(NOISE)[None], 3)[0]
    assert largest_error(torch.from_numpy(frame(make(), inputs)), wanted) < 2e-5


@pytest.fixture(scope="module", name="roomy")
def _roomy() -> tuple[TensorRTBackend, Backend]:
    """Of a config with prompts long enough for all three rooms."""
    assert len(prefix_lengths(ROOMY)) == 9
    return make(config=ROOMY), create_backend("pytorch", TOY, ROOMY, "cpu", "float32")


def test_a_frame_is_launched_as_it_was_recorded() -> None:
    """Vision, prefix and loop are recorded once for each size; later frames record nothing."""
    recorder = TapedGraphs()
    made = make(recorder=recorder)
    frame(made, inputs_of(2, 17))
    assert recorder.recorded == 3
    frame(made, inputs_of(2, 10, seed=5))  # the same bucket
    assert recorder.recorded == 3
    frame(made, inputs_of(2, 10), steps=4)
    assert recorder.recorded == 4
    frame(made, inputs_of(1, 17))
    assert recorder.recorded == 7


def test_tensorrt_rtx_is_driven_by_the_same_code() -> None:
    """It compiles for a bucket at once, and is asked whether a graph can hold a launch."""
    recorder = TapedGraphs()
    made = make(recorder=recorder, rtx=True)
    assert np.array_equal(frame(made, toy_model_inputs()), frame(make(), toy_model_inputs()))
    assert recorder.recorded == 3


def test_after_warming_up_no_size_is_new() -> None:
    recorder = TapedGraphs()
    made = make(PIPELINED, recorder)
    made.warmup()
    recorded = recorder.recorded
    for cameras in (1, 2, 3):
        for _ in range(2):
            frame(made, inputs_of(cameras, 5), steps=10)
    assert recorder.recorded == recorded


def test_what_runs_without_a_graph_is_told() -> None:
    class Refusing:
        def record(self, launch: object, capturable: object) -> None:
            return None

    made = PipelinedBackend(make(PIPELINED, Refusing()))
    assert made.warnings == ()
    made.warmup()
    assert made.warnings == ("launched without a CUDA graph: denoise, prefix, vision",)
    assert np.array_equal(frame(made, toy_model_inputs()), frame(make(), toy_model_inputs()))


def test_what_is_not_finite_does_not_outlive_its_frame(backend: TensorRTBackend) -> None:
    good, bad = inputs_of(1, 2), inputs_of(3, 24)
    wanted = frame(backend, good)
    bad.images[:] = np.nan
    assert np.isnan(frame(backend, bad)).all()
    assert np.array_equal(frame(backend, good), wanted)


def test_bfloat16_stays_close_to_float32() -> None:
    made = make(dtype=torch.bfloat16)
    assert made.dtype == torch.bfloat16
    ours = frame(made, toy_model_inputs(), steps=10).ravel()
    theirs = toy_outputs()["actions_10_steps"][0].numpy().ravel()
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert 0.999 < cosine < 1.0


def test_two_slots_are_valid_and_a_third_prefix_makes_the_first_stale() -> None:
    plain, made = make(), PipelinedBackend(make(PIPELINED))
    made.warmup()
    frames = [inputs_of(2, 17), inputs_of(1, 24, seed=1), inputs_of(3, 2, seed=2)]
    wanted = [frame(plain, inputs) for inputs in frames]
    first, second = made.prefill(frames[0], 0.0), made.prefill(frames[1], 0.1)
    for prefix, actions in ((second, wanted[1]), (first, wanted[0]), (second, wanted[1])):
        assert np.array_equal(made.denoise(prefix, NOISE, 3), actions)
    third = made.prefill(frames[2], 0.2)
    with pytest.raises(StalePrefixError, match="prefill again"):
        made.denoise(first, NOISE, 3)
    assert np.array_equal(made.denoise(third, NOISE, 3), wanted[2])


def test_a_prefix_is_stale_after_the_next_one() -> None:
    made = make()
    prefix = made.prefill(toy_model_inputs(), 0.0)
    made.prefill(toy_model_inputs(), 0.1)
    with pytest.raises(StalePrefixError):
        made.denoise(prefix, NOISE, 1)


def guidance_to(value: float, weight: float) -> Guidance:
    rows = np.full(NOISE.shape, value, np.float32)
    weights = np.zeros(len(NOISE), np.float32)
    weights[:4] = weight
    return Guidance(rows, weights)


def test_guidance_is_that_of_pytorch(backend: TensorRTBackend) -> None:
    reference = create_backend("pytorch", TOY, CONFIG, "cpu", "float32")
    inputs = toy_model_inputs()
    free = frame(backend, inputs, 5)
    for guidance in (guidance_to(0.4, 1.0), guidance_to(-0.8, 0.5)):
        ours, theirs = (
            made.denoise(made.prefill(inputs, 0.0), NOISE, 5, guidance)
            for made in (backend, reference)
        )
        assert np.abs(ours - theirs).max() < 2e-5
        assert np.abs(ours - free).max() > 0.1
    assert np.array_equal(frame(backend, inputs, 5), free), "guidance is of one denoising"


def test_guidance_of_weight_0_changes_no_bit(backend: TensorRTBackend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    free = backend.denoise(prefix, NOISE, 3)
    assert np.array_equal(backend.denoise(prefix, NOISE, 3, guidance_to(0.4, 0.0)), free)


def test_wrong_calls_are_refused(backend: TensorRTBackend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    with pytest.raises(ValueError, match=r"noise of shape \(10, 32\), got \(9, 32\)"):
        backend.denoise(prefix, NOISE[:9], 3)
    with pytest.raises(ValueError, match="at least 1 step"):
        backend.denoise(prefix, NOISE, 0)
    with pytest.raises(ValueError, match="actions of shape"):
        backend.denoise(prefix, NOISE, 3, Guidance(NOISE[:9], np.zeros(10, np.float32)))
    assert np.isfinite(backend.denoise(prefix, NOISE, 3)).all()


def test_a_closed_backend_says_so() -> None:
    made = make()
    prefix = made.prefill(toy_model_inputs(), 0.0)
    made.close()
    for call in (lambda: made.prefill(toy_model_inputs(), 0.0), lambda: frame_of(made, prefix)):
        with pytest.raises(RuntimeError, match="is closed"):
            call()


def frame_of(made: Backend, prefix: PrefixKV) -> F32:
    return made.denoise(prefix, NOISE, 1)


def test_stage_times_are_those_of_the_prefix_in_use() -> None:
    """A clock that doubles with every reading: each stage has a duration of its own."""
    readings = (float(2**n) for n in range(60))
    tensorrt = stand_in(load_pi05(TOY, CONFIG))
    engines = {name: DeviceEngine(tensorrt, memoryview(plan_of(name)), name) for name in PARTS}
    made = TensorRTBackend(
        PIPELINED,
        checkpoint_weights(TOY, CONFIG).load(in_no_engine, torch.float32),
        on_device(engines, torch.device("cpu")),
        clock=lambda: next(readings),
    )
    first = made.prefill(toy_model_inputs(), 0.0)  # readings 1, 2, 4, 8
    made.prefill(toy_model_inputs(), 0.1)  # 16 to 128
    made.denoise(first, NOISE, 1)  # 256, 512
    assert made.stage_times_ms() == {"vision": 1e3, "prefill": 4e3, "denoise": 256e3}


def test_an_engine_that_is_not_this_models_is_refused() -> None:
    """Sizes and types are compared with the buffers before anything runs."""
    other = replace(CONFIG, action_horizon=9)
    tensorrt = stand_in(load_pi05(TOY, other))
    engines = {name: DeviceEngine(tensorrt, memoryview(plan_of(name)), name) for name in PARTS}
    model = checkpoint_weights(TOY, CONFIG).load(in_no_engine, torch.float32)
    made = TensorRTBackend(PLAIN, model, on_device(engines, torch.device("cpu")))
    with pytest.raises(EngineExecutionError, match=r"engine 'denoise' takes no '\w+' of \[10"):
        frame(made, toy_model_inputs())
    half = stand_in(load_pi05(TOY, CONFIG, dtype=torch.bfloat16))
    engines["vision"] = DeviceEngine(half, memoryview(plan_of("vision")), "vision")
    made = TensorRTBackend(PLAIN, model, on_device(engines, torch.device("cpu")))
    with pytest.raises(EngineExecutionError, match=r"wants 'image_tokens' contiguous, as .*bfloat"):
        frame(made, toy_model_inputs())


def test_bytes_that_are_no_engine_are_refused_with_what_tensorrt_says() -> None:
    tensorrt = stand_in(load_pi05(TOY, CONFIG))
    with pytest.raises(
        EngineRefusedError, match=r"10.13.3 does not load engine 'prefix' here: .*an"
    ):
        DeviceEngine(tensorrt, memoryview(b"junk"), "prefix")


@pytest.mark.skipif(installed_module() is None, reason="no TensorRT is installed")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Engine, "ICudaEngine"),
        (Context, "IExecutionContext"),
        (RtxContext, "IExecutionContext"),
        (Config, "IRuntimeConfig"),
    ],
)
def test_the_library_has_all_that_its_stand_in_has(ours: type, theirs: str) -> None:
    names = [name for name in vars(ours) if not name.startswith("_")]
    real = getattr(import_tensorrt().api, theirs)
    own_fields = {"engine", "strategy"}  # of the dataclasses
    if import_tensorrt().flavour == "tensorrt":
        own_fields |= {"dynamic_shapes_kernel_specialization_strategy", "is_stream_capturable"}
    assert len(names) > 0
    assert [name for name in names if not hasattr(real, name) and name not in own_fields] == []


@pytest.mark.skipif(installed_module() is None, reason="no TensorRT is installed")
def test_the_library_has_the_names_that_choose() -> None:
    api = import_tensorrt().api
    assert api.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    assert api.TensorIOMode.INPUT != api.TensorIOMode.OUTPUT
    assert api.float32 != api.bfloat16
    if import_tensorrt().flavour == "tensorrt_rtx":
        assert api.DynamicShapesKernelSpecializationStrategy.EAGER is not None
        assert api.BuilderFlag.REQUIRE_USER_ALLOCATION is not None


class Unmasked(TorchOps):
    """A network whose builder lost the mask."""

    def input(self, name: str, shape: tuple[int, ...], dtype: Dtype) -> torch.Tensor:
        given = super().input(name, shape, dtype)
        return torch.zeros_like(given) if name == "bias" else given


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_the_verification_accepts_these_engines_and_refuses_faulty_ones(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    pipelined: bool,
    masked: bool,
) -> None:
    folder = write_toy_checkpoint(tmp_path_factory.mktemp("tiny"))
    if not masked:
        monkeypatch.setattr("support.trt_stand_in.TorchOps", Unmasked)
    spec = PIPELINED if pipelined else PLAIN
    tensorrt = stand_in(load_pi05(folder, TINY.model))
    engines = {name: DeviceEngine(tensorrt, memoryview(plan_of(name)), name) for name in PARTS}
    model = checkpoint_weights(folder, TINY.model).load(in_no_engine, torch.float32)
    made: Backend = TensorRTBackend(spec, model, on_device(engines, torch.device("cpu")))
    with UnifiedPolicy(folder) as reference, UnifiedPolicy(folder) as candidate:
        candidate.backend.close()
        candidate.spec, candidate.backend = spec, PipelinedBackend(made) if pipelined else made
        seen = synthetic_observations(TINY, 3)
        result = verify_backend_engine(candidate, seen, reference)
    assert result.ok == masked, result.reason
    assert result.backend == spec.name and len(result.keys_cosine) == TINY.model.language.depth
    assert masked or "cosine" in result.reason


def test_a_parameter_is_in_one_engine_or_with_torch() -> None:
    """But the prefix's final norm and the last layer's rest, which nothing uses."""
    for name, _ in Pi05(CONFIG).named_parameters():
        places = [part.name for part in PARTS.values() if part.holds(name)]
        places += ["torch"] if in_no_engine(name) else []
        assert len(places) == (0 if name == "language.norm.weight" else 1), name


def test_buckets_hold_every_prefix() -> None:
    lengths = prefix_lengths(CONFIG)
    assert lengths[-1] == CONFIG.max_prefix_len
    for length in range(1, lengths[-1] + 1):
        room = lengths[bucket_for(CONFIG, length)]
        assert room >= length
        assert all(other >= room for other in lengths if other >= length)
    with pytest.raises(ValueError, match="does not fit the largest"):
        bucket_for(CONFIG, lengths[-1] + 1)
