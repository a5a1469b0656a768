"""The fused engine: pi0.5 without anything it need not compute, as a few CUDA graphs.

What is saved is saved exactly: masked cameras and padding are dropped (prompts fill up to the
next of a few bucket lengths, whose padding nothing sees); the last prefix layer stops at its keys
and values; the flow's times are turned into constants once for each step count; an instruction
is embedded once. Keys and values lie in fixed memory, the suffix behind the prefix. A frame is
one vision graph, one prefix graph and one denoise graph; which of them depends on the number of
cameras, the prompt's bucket and the step count, and all are captured at warm-up: nothing is
compiled or captured while a robot moves.

On a CPU the same sequence runs without graphs and without buckets, in torch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from thor_policy_ros.backends.fp8 import device_matmul
from thor_policy_ros.backends.fused_denoiser import Denoiser
from thor_policy_ros.backends.fused_frames import WHAT, frames_refused
from thor_policy_ros.backends.fused_host import HostOps, HostProducts, onednn_is_there
from thor_policy_ros.backends.fused_network import (
    Expert,
    Tools,
    encode_prefix,
    image_tokens,
)
from thor_policy_ros.backends.fused_products import DeviceProducts
from thor_policy_ros.backends.fused_programs import CudaGraphs, Prepare, Programs
from thor_policy_ros.backends.fused_slot import EmbeddedPrompts, Slot
from thor_policy_ros.backends.fused_weights import FusedModel, take_weights
from thor_policy_ros.backends.kernels.expert_stack import ExpertStack
from thor_policy_ros.backends.kernels.ops import create_ops
from thor_policy_ros.backends.pytorch import checked_device, checked_dtype
from thor_policy_ros.backends.stage_times import ClockTimes, CudaTimes, StageTimes
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.types import (
    F32,
    BackendSpec,
    Guidance,
    ModelInputs,
    PrefixKV,
    StalePrefixError,
)

PROMPT_BUCKETS = (32, 64, 128)
"""And the model's own maximum. 20 tokens in 32 make a prefix of two cameras 2 % longer."""
STEP_COUNTS = (10, 5, 3, 2, 1)
"""Captured whole; any other count is one launch, or replays the graph of a single step."""
STACK_STEP_COUNTS = tuple(range(10, 0, -1))
"""Where all steps are one launch: a graph is three nodes then, and a launch without one leaves the
device idle for 0.2 ms (four steps, H200)."""


@dataclass(frozen=True)
class Execution:
    """How the engine runs.

    make_tools: operations and products, one set for each stream. make_graphs: what prepares the
    programs of a stream, or None to run them as they are. padded: prompts fill up to the next
    bucket, so that programs have a few fixed sizes. step_counts: denoised by one program each.
    make_stack: what runs all denoise steps in one launch, and a note about it. in_place: whether
    the operations read images at their addresses, in the host's memory too.
    """

    make_tools: Callable[[], Tools]
    make_graphs: Callable[[], Prepare] | None
    padded: bool
    buckets: tuple[int, ...] = PROMPT_BUCKETS
    step_counts: tuple[int, ...] = STEP_COUNTS
    make_stack: Callable[[FusedModel], tuple[ExpertStack | None, str]] | None = None
    in_place: bool = False


def missing() -> tuple[str, ...]:
    """On a GPU: Triton, and a GPU that the kernels know. A CPU needs nothing but torch."""
    if not torch.cuda.is_available():
        return ()
    from thor_policy_ros.backends.kernels.capability import missing_for_triton

    return missing_for_triton(torch.device("cuda"))


def load(
    spec: BackendSpec,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> FusedBackend:
    """See `registry.create_backend`."""
    target = checked_device(device)
    model = load_pi05(checkpoint, config, target, checked_dtype(dtype, target))
    execution = execution_on(target, model.dtype)
    return FusedBackend(spec, take_weights(model), execution, notes=_notes(target, model.dtype))


def execution_on(device: torch.device, dtype: torch.dtype) -> Execution:
    """Triton and graphs on a GPU; on a CPU torch without either."""
    if device.type == "cuda":
        stack = _device_stack if dtype == torch.bfloat16 else None
        tools = partial(_gpu_tools, device)
        return Execution(tools, CudaGraphs, padded=True, make_stack=stack, in_place=True)
    if dtype == torch.float32:
        return Execution(_host_tools, None, padded=False)
    return Execution(partial(_device_tools, "reference", device), None, padded=False)


def _notes(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Whose products a CPU runs on: the faster ones are not in every torch."""
    if device.type != "cpu":
        return ()
    packed = dtype == torch.float32 and onednn_is_there()
    return (f"products by {'oneDNN, packed once' if packed else 'torch, nothing packed'}",)


def _device_tools(ops_name: str, device: torch.device, overlap: bool = False) -> Tools:
    ops = create_ops(ops_name, device, overlap)
    return Tools(ops, DeviceProducts(ops, device_matmul))


def _gpu_tools(device: torch.device) -> Tools:
    from thor_policy_ros.backends.fused_attention import attending_ops
    from thor_policy_ros.backends.fused_hopper import FinishedProducts, finished_products

    finished, of_products = finished_products(device)
    ops, of_attention = attending_ops(device, finished)
    notes = (of_products, of_attention)
    if finished is None:
        return Tools(ops, DeviceProducts(ops, device_matmul), notes)
    return Tools(ops, FinishedProducts(ops, finished), notes)


def _device_stack(model: FusedModel) -> tuple[ExpertStack | None, str]:
    from thor_policy_ros.backends.fused_stack import stack_of

    return stack_of(model)


def _host_tools() -> Tools:
    products = HostProducts()
    return Tools(HostOps(products), products)


class FusedBackend:
    """One model with one prefix slot, or two that are filled in turn for a pipelined spec.

    One thread calls it; its stages run in the current CUDA stream. A prefix is valid until its
    slot is filled again. clock: seconds, times the stages on a CPU. notes: facts about the
    loaded engine, for diagnostics. resizes_frames: whether it takes `ModelInputs.frames`.
    """

    def __init__(
        self,
        spec: BackendSpec,
        model: FusedModel,
        execution: Execution,
        clock: Callable[[], float] = time.perf_counter,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        self.notes = notes
        self.device = model.device
        self.dtype = model.dtype
        self._model: FusedModel | None = model
        self._config = model.config
        self._execution = execution
        self._generation = 0
        slots, on_gpu = 2 if spec.pipelined else 1, self.device.type == "cuda"
        self._times: list[StageTimes] = [
            CudaTimes() if on_gpu else ClockTimes(clock) for _ in range(slots)
        ]
        self._timed = self._times[0]
        self._slots = [Slot(model, execution.padded, execution.in_place) for _ in range(slots)]
        self._embedded = EmbeddedPrompts(model.source.language.embed, self.device)
        # Prefill and denoising of a pipelined engine run at the same time: nothing is shared.
        make = execution.make_graphs
        self._prefix_programs = Programs(make and make())
        self._denoise_programs = Programs(make and make())
        self._tools = execution.make_tools()
        stack, stack_note = None, ""
        if execution.make_stack is not None:
            stack, stack_note = execution.make_stack(model)
        self.resizes_frames, frames_note = self._try_frames()
        more = filter(None, (stack_note, frames_note))
        self.notes = (*notes, *self._tools.notes, *more)
        expert = Expert(execution.make_tools().ops, model.expert, stack)
        self._step_counts = execution.step_counts if stack is None else STACK_STEP_COUNTS
        self._denoiser = Denoiser(model, expert, self._denoise_programs, self._step_counts)

    def _try_frames(self) -> tuple[bool, str]:
        """Whether the engine resizes camera frames, and what the notes say of it."""
        if not self._execution.in_place:
            return False, ""
        lacks = frames_refused(self._tools.ops, self._config.vision.image_size, self.device)
        return not lacks, f"camera frames resized by Pillow: {lacks}" if lacks else WHAT

    @property
    def prefix_slots(self) -> int:
        """How many prefixes are valid at a time."""
        return len(self._slots)

    @property
    def programs(self) -> tuple[Programs, Programs]:
        """Those of vision and prefix, and those of the denoising, to be counted and measured."""
        return self._prefix_programs, self._denoise_programs

    def warmup(self) -> None:
        """Prepare everything that a frame may need: every number of cameras, bucket and step
        count, and a step count that has no program of its own."""
        model, execution = self._open_model(), self._execution
        config = model.config
        sizes = [(config.num_cameras, config.max_token_len)]
        if execution.make_graphs is not None:
            cameras = range(1, config.num_cameras + 1)
            sizes = list(itertools.product(cameras, self._buckets()))
        images = [seen * config.vision.num_tokens for seen, _ in sizes]
        prefixes = [rows + tokens for rows, (_, tokens) in zip(images, sizes, strict=True)]
        self._tools.products.prepare(model, images, prefixes)
        for inputs in (_empty_inputs(config, *size) for size in sizes):
            for _ in self._slots:
                self.prefill(inputs, 0.0)
        self._prefix_programs.complete()
        noise = np.zeros((config.action_horizon, config.action_dim), np.float32)
        uncommon = max(self._step_counts, default=0) + 1
        for _ in self._slots:
            prefix = self.prefill(inputs, 0.0)
            for steps in (*self._step_counts, uncommon):
                self.denoise(prefix, noise, steps)
        self._denoise_programs.complete()

    @torch.inference_mode()
    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        """Encode the present images and the prompt; what the slot held becomes stale."""
        model = self._open_model()
        tokens = inputs.tokens[inputs.token_mask]
        present = [camera for camera, seen in enumerate(inputs.image_mask.tolist()) if seen]
        if not present or not len(tokens):
            raise ValueError(
                "prefill wants at least one image and one token; got"
                f" {len(present)} images and {len(tokens)} tokens"
            )
        cameras = len(present)
        self._generation += 1
        index = self._generation % len(self._slots)
        slot, times = self._slots[index], self._times[index]
        with times.stage("vision"):
            if inputs.frames:
                slot.put_frames(self._tools.ops, inputs.frames, present)
            else:
                slot.put_images(inputs.images, present)
            self._run_vision(model, index, cameras)
        with times.stage("prefill"):
            slot.put_prompt(tokens, cameras, self._embedded)
            self._run_prefix(model, index, cameras, self._bucket(len(tokens)))
        return PrefixKV(*slot.prefix, observed_at_s, self._generation)

    @torch.inference_mode()
    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        """Euler's rule from noise f32[H,32] to normalised actions f32[H,32].

        Reading the result is the only wait for the device. Raises StalePrefixError for a
        prefix whose slot was filled again.
        """
        self._open_model()
        self._check(prefix, noise, num_steps)
        index = prefix.generation % len(self._slots)
        times = self._timed = self._times[index]
        with times.stage("denoise"):
            self._denoiser.run(index, self._slots[index], noise, num_steps, guidance)
        return self._denoiser.actions()

    def stage_times_ms(self) -> Mapping[str, float]:
        """'vision' and 'prefill' of the prefix denoised last, and that 'denoise', on the device
        where it is a GPU. A prefix still being made in the other slot is not waited for."""
        return self._timed.read_ms()

    def close(self) -> None:
        """Drop weights, buffers and graphs; any later call raises RuntimeError."""
        self._model = None
        for programs in self.programs:
            programs.clear()
        self._slots.clear()
        del self._denoiser, self._embedded, self._tools  # products keep weights as they want them
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_vision(self, model: FusedModel, index: int, cameras: int) -> None:
        slot, rows = self._slots[index], cameras * self._config.vision.num_tokens

        def work() -> None:
            heads, images = self._config.vision.num_heads, slot.images.first(cameras)
            made = image_tokens(self._tools, model.vision, heads, images)
            slot.embeddings[:rows].copy_(made)

        self._prefix_programs.run(("vision", index, cameras), work)
        slot.launched()

    def _run_prefix(self, model: FusedModel, index: int, cameras: int, bucket: int) -> None:
        slot, images = self._slots[index], cameras * self._config.vision.num_tokens
        rows = images + bucket if self._execution.padded else slot.length

        def work() -> None:
            encode_prefix(self._tools, model.prefix, slot.embeddings[:rows].clone(), slot.place)

        self._prefix_programs.run(("prefix", index, cameras, bucket), work)

    def _bucket(self, tokens: int) -> int:
        """The least bucket that holds a prompt."""
        return min(size for size in self._buckets() if size >= tokens)

    def _buckets(self) -> tuple[int, ...]:
        most = self._config.max_token_len
        return (*(size for size in sorted(self._execution.buckets) if size < most), most)

    def _open_model(self) -> FusedModel:
        if self._model is None:
            raise RuntimeError(f"backend {self.spec.name!r} is closed; create a new one")
        return self._model

    def _check(self, prefix: PrefixKV, noise: F32, num_steps: int) -> None:
        if prefix.generation <= self._generation - len(self._slots):
            raise StalePrefixError(
                f"prefix {prefix.generation} was overwritten by prefix {self._generation};"
                " denoise a prefix before the next prefill, or prefill again"
            )
        wanted = (self._config.action_horizon, self._config.action_dim)
        if noise.shape != wanted:
            raise ValueError(f"denoise wants noise of shape {wanted}, got {noise.shape}")
        if num_steps < 1:
            raise ValueError(f"denoise wants at least 1 step, got {num_steps}")


def _empty_inputs(config: Pi05Config, cameras: int, tokens: int) -> ModelInputs:
    """A frame of that many cameras and prompt tokens."""
    size = config.vision.image_size
    return ModelInputs(
        images=np.zeros((config.num_cameras, 3, size, size), np.float32),
        image_mask=np.arange(config.num_cameras) < cameras,
        tokens=np.zeros(config.max_token_len, np.int32),
        token_mask=np.arange(config.max_token_len) < tokens,
    )
