"""What drives three engines as one backend: buffers, slots, streams, graphs.

Each engine's inputs and outputs lie at fixed addresses; the prefix writes its keys and values
where the denoise step reads them, and the vision tower its tokens where the prefix reads them.
Vision, prefix and, for each number of steps, the whole loop of denoise steps are CUDA graphs.
Torch does what is left: embedding the prompt, masks, and copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thor_policy_ros.backends.cuda_graphs import OwnStream, Recorder, Replays, recorder_for
from thor_policy_ros.backends.stage_times import ClockTimes, CudaTimes, StageTimes
from thor_policy_ros.backends.trt_buffers import (
    FlowState,
    PrefixInputs,
    PrefixSlot,
    PrefixTables,
    StepCount,
)
from thor_policy_ros.backends.trt_execution import RunningEngine
from thor_policy_ros.backends.trt_parts import bucket_for, prefix_lengths, prefix_sizes
from thor_policy_ros.model.pi05 import Pi05, flow_times
from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.types import (
    F32,
    BackendSpec,
    Guidance,
    ModelInputs,
    PrefixKV,
    StalePrefixError,
)

WARM_UP_STEPS = 10


@dataclass(frozen=True)
class Engines:
    """The three parts, ready to run."""

    vision: RunningEngine
    prefix: RunningEngine
    denoise: RunningEngine


class TensorRTBackend:
    """Three engines, one prefix slot, or two that are filled in turn for a pipelined spec.

    One thread calls it. A prefix is valid until its slot is filled again. Prefills and denoisings
    have streams of their own, which come after and before what the current stream holds: to a
    caller they run in the current stream. The first frame of a size captures its graphs.

    model: with the parameters that are in no engine, on the device. clock: seconds, times the
    stages on a CPU. recorder: None for CUDA graphs where there is a GPU.
    notes: facts about the loaded engines, for diagnostics. bytes_outside_torch: of device memory
    that engines hold and torch does not know of.
    """

    def __init__(
        self,
        spec: BackendSpec,
        model: Pi05,
        engines: Engines,
        *,
        notes: tuple[str, ...] = (),
        bytes_outside_torch: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        recorder: Recorder | None = None,
    ) -> None:
        self.spec = spec
        self.notes = notes
        self.bytes_outside_torch = bytes_outside_torch
        self.device = model.language.embed_tokens.weight.device
        self.dtype = model.dtype
        self._model: Pi05 | None = model
        self._engines: Engines | None = engines
        self._config = model.config
        self._lengths = prefix_lengths(model.config)
        self._generation = 0
        self._step_counts: dict[int, StepCount] = {}
        self._prefills, self._denoisings = OwnStream(self.device), OwnStream(self.device)
        self._replays = Replays(recorder or recorder_for(self.device))
        self._allocate(2 if spec.pipelined else 1, clock)

    @property
    def prefix_slots(self) -> int:
        """How many prefixes are valid at a time."""
        return len(self._slots)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, after warming up: engines that run slower than they could."""
        slow = sorted(self._replays.uncaptured)
        return (f"launched without a CUDA graph: {', '.join(slow)}",) if slow else ()

    def warmup(self) -> None:
        """A frame of every size in every slot: each graph for 10 steps is captured."""
        config = self._config
        noise = np.zeros((config.action_horizon, config.action_dim), np.float32)
        for cameras, words in prefix_sizes(config):
            for _ in self._slots:
                prefix = self.prefill(self._blank_inputs(cameras, words), 0.0)
                self.denoise(prefix, noise, WARM_UP_STEPS)

    @torch.inference_mode()
    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        """Encode the present images and the prompt; what the slot held becomes stale."""
        self._open()
        tokens = inputs.tokens[inputs.token_mask].astype(np.int64)
        images = in_model_range(inputs.images[inputs.image_mask])
        from_images = len(images) * self._config.vision.num_tokens
        valid = from_images + len(tokens)
        bucket = bucket_for(self._config, valid)
        self._generation += 1
        slot, times = self._slot_of(self._generation), self._times_of(self._generation)
        with self._prefills.entered():
            with times.stage("vision"):
                if len(images):
                    self._see(images)
            with times.stage("prefill"):
                slot.begin(bucket, valid, self._lengths[bucket])
                self._put_words(tokens, from_images, slot.length)
                self._encode(slot)
        return PrefixKV(*slot.valid_views, observed_at_s, self._generation)

    @torch.inference_mode()
    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        """Euler's rule from noise f32[H,32] to normalised actions f32[H,32].

        Reading the result is the only wait for the device. Raises StalePrefixError for a
        prefix whose slot was filled again.
        """
        self._open()
        self._check(prefix, noise, num_steps)
        slot, times = self._slot_of(prefix.generation), self._times_of(prefix.generation)
        self._timed = times
        with self._denoisings.entered():
            with times.stage("denoise"):
                count = self._step_count(num_steps)
                if guidance is not None:
                    count.guidance.set(guidance)
                self._copy(self._flow.noise, np.asarray(noise, np.float32))
                self._integrate(slot, count, guidance is not None)
            actions: F32 = self._flow.actions.cpu().numpy().copy()
        return actions

    def stage_times_ms(self) -> Mapping[str, float]:
        """'vision' and 'prefill' of the prefix denoised last, and that 'denoise', on the device.
        A prefix still being made in the other slot is not waited for."""
        return self._timed.read_ms()

    def close(self) -> None:
        """Drop graphs, engines and buffers; any later call raises RuntimeError."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # engines must not go while they run
        self._replays.clear()
        self._model = self._engines = None
        self._step_counts.clear()
        self._slots.clear()
        del self._inputs, self._flow, self._tables
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _allocate(self, slots: int, clock: Callable[[], float]) -> None:
        config, device, dtype = self._config, self.device, self.dtype
        self._tables = PrefixTables(config, device)
        self._inputs = PrefixInputs(config, device, dtype)
        self._flow = FlowState(config, device)
        self._slots = [PrefixSlot(config, self._tables, device, dtype) for _ in range(slots)]
        on_gpu = device.type == "cuda"
        self._times: list[StageTimes] = [
            CudaTimes() if on_gpu else ClockTimes(clock) for _ in range(slots)
        ]
        self._timed = self._times[0]

    def _see(self, images: npt.NDArray[np.float32]) -> None:
        """images f32[C,3,S,S] -> their tokens, in place at the front of the embeddings."""
        engine, cameras = self._open().vision, len(images)
        tokens = cameras * self._config.vision.num_tokens
        tensors = {
            "images": self._inputs.images[:cameras],
            "image_tokens": self._inputs.embeddings[:tokens],
        }
        self._copy(tensors["images"], images)
        self._run("vision", engine, cameras - 1, tensors)

    def _put_words(self, tokens: npt.NDArray[np.int64], begin: int, end: int) -> None:
        """The embedded prompt behind the images, then zeros: rows of padding are masked, but what
        is not finite in them would spread all the same."""
        assert self._model is not None
        embedded = self._model.language.embed(
            self._pinned(tokens).to(self.device, non_blocking=True)
        )
        self._inputs.embeddings[begin : begin + len(tokens)].copy_(embedded)
        self._inputs.embeddings[begin + len(tokens) : end].zero_()

    def _encode(self, slot: PrefixSlot) -> None:
        """The prefix of `embeddings`, into the slot."""
        tensors = {
            "embeddings": self._inputs.embeddings[: slot.length],
            "cos": self._tables.cos[: slot.length],
            "sin": self._tables.sin[: slot.length],
            "bias": slot.prefix_bias,
            "keys": slot.keys,
            "values": slot.values,
        }
        self._run("prefix", self._open().prefix, slot.bucket, tensors, id(slot))

    def _integrate(self, slot: PrefixSlot, count: StepCount, guided: bool) -> None:
        """From `noise` to `actions` in the flow's buffers: all steps are one recorded launch."""
        engine, flow = self._open().denoise, self._flow
        given = {
            "step": count.step,
            "cos": slot.cos,
            "sin": slot.sin,
            "keys": slot.keys,
            "values": slot.values,
            "bias": slot.suffix_bias,
            "velocity": flow.velocity,
        }

        def launch() -> None:
            x, next_x = flow.places
            x.copy_(flow.noise)
            for step, modulations in enumerate(count.modulations):
                moving = {"x": x, "next_x": next_x, "modulations": modulations}
                engine.launch(slot.bucket, {**given, **moving})
                if guided:
                    pulled = count.guidance.guided(step, x[None], flow.velocity[None])[0]
                    next_x.add_((pulled - flow.velocity) * count.step)
                x, next_x = next_x, x
            flow.actions.copy_(x)

        key = (id(slot), slot.bucket, len(count.modulations), guided)
        self._replays.run("denoise", key, launch, lambda: engine.capturable(slot.bucket))

    def _run(
        self,
        name: str,
        engine: RunningEngine,
        bucket: int,
        tensors: Mapping[str, Tensor],
        slot: int = 0,
    ) -> None:
        self._replays.run(
            name,
            (slot, bucket),
            lambda: engine.launch(bucket, tensors),
            lambda: engine.capturable(bucket),
        )

    def _step_count(self, steps: int) -> StepCount:
        """Made once for each number of steps."""
        assert self._model is not None
        if steps not in self._step_counts:
            batched = self._model.modulations(flow_times(steps, self.device))
            self._step_counts[steps] = StepCount(self._config, batched, steps)
        return self._step_counts[steps]

    def _blank_inputs(self, cameras: int, words: int) -> ModelInputs:
        config, size = self._config, self._config.vision.image_size
        return ModelInputs(
            images=np.zeros((config.num_cameras, 3, size, size), np.float32),
            image_mask=np.arange(config.num_cameras) < cameras,
            tokens=np.zeros(config.max_token_len, np.int32),
            token_mask=np.arange(config.max_token_len) < words,
        )

    def _copy(self, to: Tensor, array: npt.NDArray[Any]) -> None:
        """Without waiting: on CUDA through pinned memory of torch's own pool."""
        to.copy_(self._pinned(array), non_blocking=True)

    def _pinned(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

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

    def _slot_of(self, generation: int) -> PrefixSlot:
        return self._slots[generation % len(self._slots)]

    def _times_of(self, generation: int) -> StageTimes:
        return self._times[generation % len(self._times)]

    def _open(self) -> Engines:
        if self._engines is None:
            raise RuntimeError(f"backend {self.spec.name!r} is closed; create a new one")
        return self._engines
