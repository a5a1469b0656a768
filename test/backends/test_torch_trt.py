"""Backend torch_trt on the CPU: its graphs, executed by torch, and all that runs them.

Torch-TensorRT's converter wants a CUDA driver: `benchmarks/torch_trt_on_cuda.py` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from support.torch_trt_stand_in import converted_plan_of, converted_stand_in
from support.trt_stand_in import TapedGraphs
from torch.export import ExportedProgram

from thor_policy_ros.backends.cuda_graphs import Recorder
from thor_policy_ros.backends.pipelined import PipelinedBackend
from thor_policy_ros.backends.registry import BACKENDS, availability, create_backend
from thor_policy_ros.backends.torch_trt import (
    Loaded,
    TorchTRTKVCacheEngine,
    engines_of,
)
from thor_policy_ros.backends.torch_trt_parts import GRAPHS, export_part, operations_of
from thor_policy_ros.backends.trt_backend import TensorRTBackend
from thor_policy_ros.backends.trt_engines import Obtained
from thor_policy_ros.backends.trt_execution import (
    DeviceEngine,
    EngineExecutionError,
    EngineRefusedError,
    WorkingMemory,
)
from thor_policy_ros.backends.trt_parts import PARTS
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.types import (
    F32,
    Backend,
    BackendSpec,
    BackendUnavailableError,
    Guidance,
    ModelInputs,
    StalePrefixError,
)

CONFIG = toy_config()
CPU = torch.device("cpu")
NOISE = toy_noise()[0].numpy()
PIPELINED = BackendSpec("torch_trt_beside", "torch_trt", pipelined=True)
ALL = tuple(GRAPHS)

# Every operation of the three graphs; Torch-TensorRT 2.11 and 2.13 convert all of them.
KNOWN_OPERATIONS = {
    "<built-in function getitem>",
    "<built-in function mul>",
    "aten._assert_tensor_metadata.default",
    "aten._to_copy.default",
    "aten._unsafe_view.default",
    "aten.add.Tensor",
    "aten.addcmul.default",
    "aten.cat.default",
    "aten.clone.default",
    "aten.gelu.default",
    "aten.linear.default",
    "aten.matmul.default",
    "aten.mean.dim",
    "aten.mul.Tensor",
    "aten.permute.default",
    "aten.roll.default",
    "aten.rsqrt.default",
    "aten.select.int",
    "aten.slice.Tensor",
    "aten.softmax.int",
    "aten.split.Tensor",
    "aten.sub.Tensor",
    "aten.sym_size.int",
    "aten.transpose.int",
    "aten.unbind.int",
    "aten.unsqueeze.default",
    "aten.view.default",
}

Programs = dict[str, ExportedProgram]


def exported(dtype: torch.dtype) -> Programs:
    """Each part from a model that holds nothing but the part, as the build process does it."""
    return {
        name: export_part(name, load_pi05(TOY, CONFIG, "cpu", dtype, PARTS[name].holds))
        for name in GRAPHS
    }


@pytest.fixture(scope="module", name="programs")
def _programs() -> Programs:
    return exported(torch.float32)


@pytest.fixture(scope="module", name="half_programs")
def _half_programs() -> Programs:
    return exported(torch.bfloat16)


def make(
    programs: Programs,
    spec: BackendSpec = BACKENDS["torch_trt_freq1"],
    compiled: tuple[str, ...] = ALL,
    dtype: torch.dtype = torch.float32,
    recorder: Recorder | None = None,
) -> TensorRTBackend:
    tensorrt = converted_stand_in(programs, CONFIG)
    loaded = {
        name: Loaded(
            DeviceEngine(tensorrt, memoryview(converted_plan_of(name)), name),
            Obtained(memoryview(b""), TOY, "", {}),
        )
        for name in compiled
    }
    model = load_pi05(TOY, CONFIG, dtype=dtype)
    engines = engines_of(loaded, model, CPU)
    return TensorRTBackend(spec, model, engines, recorder=recorder)


@pytest.fixture(scope="module", name="backend")
def _backend(programs: Programs) -> Iterator[TensorRTBackend]:
    made = make(programs, recorder=TapedGraphs())
    yield made
    made.close()


def inputs_of(cameras: int, words: int, seed: int = 0) -> ModelInputs:
    random, size = np.random.default_rng(seed), CONFIG.vision.image_size
    images = random.uniform(-1, 1, (CONFIG.num_cameras, 3, size, size)).astype(np.float32)
    tokens = random.integers(1, CONFIG.vocab_size, CONFIG.max_token_len).astype(np.int32)
    present = np.arange(CONFIG.num_cameras) < cameras
    return ModelInputs(images, present, tokens, np.arange(CONFIG.max_token_len) < words)


def frame(made: Backend, inputs: ModelInputs, steps: int = 3) -> F32:
    return made.denoise(made.prefill(inputs, 0.0), NOISE, steps)


class TestGraphs:
    @pytest.mark.parametrize("name", GRAPHS)
    def test_are_of_plain_operations(
        self, programs: Programs, half_programs: Programs, name: str
    ) -> None:
        """No norm, no attention and nothing that depends on data: no size but the inputs'."""
        for program in (programs[name], half_programs[name]):
            assert set(operations_of(program)) <= KNOWN_OPERATIONS
            assert not program.graph_signature.buffers_to_mutate
            assert not [s for s in program.range_constraints if str(s).startswith("u")]

    @pytest.mark.parametrize("name", GRAPHS)
    def test_take_and_give_what_the_buffers_are_for(self, programs: Programs, name: str) -> None:
        signature = programs[name].graph_signature
        assert signature.user_inputs == tuple(GRAPHS[name].inputs(CONFIG))
        assert len(signature.user_outputs) == len(GRAPHS[name].outputs)

    def test_norms_and_softmax_are_float32_in_bfloat16(self, half_programs: Programs) -> None:
        seen = set()
        for program in half_programs.values():
            for node in program.graph.nodes:
                kind = str(node.target)
                if kind in ("aten.rsqrt.default", "aten.softmax.int", "aten.mean.dim"):
                    assert node.meta["val"].dtype == torch.float32
                    seen.add(kind)
                if kind == "aten.matmul.default":
                    assert node.meta["val"].dtype == torch.bfloat16
        assert len(seen) == 3

    def test_hold_the_weights_of_their_part_alone(self, programs: Programs) -> None:
        for name, program in programs.items():
            held = sum(p.numel() for p in program.state_dict.values())
            wanted = [
                p.numel()
                for key, p in load_pi05(TOY, CONFIG).named_parameters()
                if PARTS[name].holds(key)
            ]
            assert held == sum(wanted) > 0


class TestBackend:
    def test_meets_the_recorded_outputs(self, backend: TensorRTBackend) -> None:
        """Also after frames of other sizes, and as it was recorded."""
        recorded = toy_outputs()
        kept = recorded["prefix_pad_mask"][0]
        for other in (inputs_of(3, 24), inputs_of(1, 2), inputs_of(2, 17, seed=1)):
            prefix = backend.prefill(toy_model_inputs(), 0.0)
            assert largest_error(prefix.keys, recorded["prefix_k"][..., kept, :]) < TOLERANCE
            assert largest_error(prefix.values, recorded["prefix_v"][..., kept, :]) < TOLERANCE
            for steps in (1, 3, 10):
                actions = torch.from_numpy(backend.denoise(prefix, NOISE, steps))
                assert largest_error(actions, recorded[f"actions_{steps}_steps"][0]) < TOLERANCE
            frame(backend, other)

    def test_every_number_of_cameras_and_words_is_as_pytorch_computes_it(
        self, backend: TensorRTBackend
    ) -> None:
        reference = create_backend("pytorch", TOY, CONFIG, "cpu", "float32")
        for cameras in (1, 2, 3):
            for words in (1, 23, 24):
                inputs = inputs_of(cameras, words, seed=words)
                assert np.abs(frame(backend, inputs) - frame(reference, inputs)).max() < 2e-5

    @pytest.mark.parametrize("compiled", [("prefix",), ("vision", "denoise"), ALL])
    def test_parts_left_in_pytorch_change_nothing(
        self, programs: Programs, compiled: tuple[str, ...]
    ) -> None:
        actions = torch.from_numpy(frame(make(programs, compiled=compiled), toy_model_inputs(), 3))
        assert largest_error(actions, toy_outputs()["actions_3_steps"][0]) < TOLERANCE

    def test_bfloat16_stays_close_to_float32(self, half_programs: Programs) -> None:
        made = make(half_programs, dtype=torch.bfloat16)
        assert made.dtype == torch.bfloat16
        ours = frame(made, toy_model_inputs(), 10).ravel()
        theirs = toy_outputs()["actions_10_steps"][0].numpy().ravel()
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert 0.999 < cosine < 1.0

    def test_pipelined_frames_are_the_same_and_stale_ones_refused(
        self, programs: Programs, backend: TensorRTBackend
    ) -> None:
        beside = PipelinedBackend(make(programs, PIPELINED))
        frames = [inputs_of(2, 17), inputs_of(1, 24, seed=1), inputs_of(3, 2, seed=2)]
        wanted = [frame(backend, inputs) for inputs in frames]
        first, second = beside.prefill(frames[0], 0.0), beside.prefill(frames[1], 0.1)
        for prefix, actions in ((first, wanted[0]), (second, wanted[1])):
            assert np.array_equal(beside.denoise(prefix, NOISE, 3), actions)
        beside.prefill(frames[2], 0.2)
        with pytest.raises(StalePrefixError, match="prefill again"):
            beside.denoise(first, NOISE, 3)

    def test_guidance_is_that_of_pytorch_and_off_at_weight_0(
        self, backend: TensorRTBackend
    ) -> None:
        reference = create_backend("pytorch", TOY, CONFIG, "cpu", "float32")
        inputs, free = toy_model_inputs(), frame(backend, toy_model_inputs(), 5)
        rows, weights = np.full(NOISE.shape, 0.4, np.float32), np.zeros(len(NOISE), np.float32)
        off = backend.denoise(backend.prefill(inputs, 0.0), NOISE, 5, Guidance(rows, weights))
        assert np.array_equal(off, free)
        weights[:4] = 1
        ours, theirs = (
            made.denoise(made.prefill(inputs, 0.0), NOISE, 5, Guidance(rows, weights))
            for made in (backend, reference)
        )
        assert np.abs(ours - theirs).max() < 2e-5
        assert np.abs(ours - free).max() > 0.1

    def test_what_is_not_finite_reaches_the_actions_and_no_later_frame(
        self, backend: TensorRTBackend
    ) -> None:
        good, bad = inputs_of(1, 2), inputs_of(3, 24)
        wanted = frame(backend, good)
        bad.images[:] = np.nan
        assert np.isnan(frame(backend, bad)).all()
        assert np.array_equal(frame(backend, good), wanted)


class TestEngines:
    def test_with_other_outputs_than_the_graphs_are_refused(self, programs: Programs) -> None:
        tensorrt = converted_stand_in(programs, CONFIG)
        loaded = DeviceEngine(tensorrt, memoryview(converted_plan_of("vision")), "prefix")
        with pytest.raises(EngineRefusedError, match=r"outputs \['output0'\]; .*'keys', 'values'"):
            TorchTRTKVCacheEngine(loaded, WorkingMemory([loaded], CPU), CPU)

    def test_of_other_sizes_are_refused_before_they_run(self, programs: Programs) -> None:
        made = make(programs)
        with pytest.raises(EngineExecutionError, match=r"takes no 'embeddings' of \[9000"):
            made._engines.prefix.launch(  # type: ignore[union-attr]
                0,
                {
                    "embeddings": torch.zeros(9000, CONFIG.language.width),
                    "cos": torch.zeros(9000, CONFIG.language.head_dim),
                    "sin": torch.zeros(9000, CONFIG.language.head_dim),
                    "bias": torch.zeros(9000),
                    "keys": torch.zeros(1),
                    "values": torch.zeros(1),
                },
            )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("name", [n for n, s in BACKENDS.items() if s.engine == "torch_trt"])
def test_without_a_gpu_it_says_what_is_missing(name: str) -> None:
    assert len(availability(name)) >= 1
    with pytest.raises(BackendUnavailableError, match=f"'{name}' cannot run here; missing: "):
        create_backend(name, TOY, CONFIG)
