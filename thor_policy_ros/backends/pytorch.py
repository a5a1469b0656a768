"""pi0.5 in plain PyTorch, eager, on a CPU or a CUDA device: the reference of every engine.

Three savings over `Pi05` as it stands, all exact (the recorded outputs are met either way):
masked cameras and padding are dropped before the prefix, the last prefix layer stops at its
keys and values, and what depends on the flow's time alone is computed once per step count.
`thor-policy parity` also checks `Pi05`'s own full path, with padding and hidden states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thor_policy_ros.backends.flow_guidance import GuidanceBuffers
from thor_policy_ros.backends.prefix_buffers import PrefixBuffers
from thor_policy_ros.backends.stage_times import ClockTimes, CudaTimes, StageTimes
from thor_policy_ros.backends.vision_tokens import VisionTokens
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.gemma import Modulation, Rope, rope_tables
from thor_policy_ros.model.pi05 import Pi05, flow_times
from thor_policy_ros.types import (
    F32,
    BackendSpec,
    BackendUnavailableError,
    Bool,
    Guidance,
    ModelInputs,
    PrefixKV,
    StalePrefixError,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def missing() -> tuple[str, ...]:
    """Nothing: it runs wherever torch does."""
    return ()


def load(
    spec: BackendSpec,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> PyTorchBackend:
    """See `registry.create_backend`."""
    target = checked_device(device)
    model = load_pi05(checkpoint, config, target, checked_dtype(dtype, target))
    return PyTorchBackend(spec, model)


class Slot(NamedTuple):
    """Where one prefix lives, and how long it and its last denoising took."""

    buffers: PrefixBuffers
    times: StageTimes


class PyTorchBackend:
    """One model; one prefix slot, or two that are filled in turn for a pipelined spec.

    One thread calls it. A prefix is valid until its slot is filled again: until the next
    prefill, or the one after it. Stages run in the current CUDA stream.

    model: in eval mode, on its device. clock: seconds, times the stages on a CPU.
    notes: facts about the loaded engine, for diagnostics. warnings: what the user should mend.
    """

    takes_clean_rows = True

    def __init__(
        self,
        spec: BackendSpec,
        model: Pi05,
        clock: Callable[[], float] = time.perf_counter,
        notes: tuple[str, ...] = (),
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        self.notes = notes
        self.warnings = warnings
        self.device = model.action_in_proj.weight.device
        self.dtype = model.dtype
        self._model: Pi05 | None = model
        self._config = model.config
        self._generation = 0
        self._modulations: dict[tuple[int, int], list[list[Modulation]]] = {}
        self._guidance: dict[int, GuidanceBuffers] = {}
        self._vision = VisionTokens()
        self._allocate(2 if spec.pipelined else 1, clock)

    @property
    def model(self) -> Pi05:
        """The network, to be measured; RuntimeError once closed."""
        return self._open_model()

    @property
    def prefix_slots(self) -> int:
        """How many prefixes are valid at a time."""
        return len(self._slots)

    def warmup(self) -> None:
        """One frame of the largest prefix: libraries choose their kernels, memory is taken."""
        config, size = self._config, self._config.vision.image_size
        inputs = ModelInputs(
            images=np.zeros((config.num_cameras, 3, size, size), np.float32),
            image_mask=np.ones(config.num_cameras, np.bool_),
            tokens=np.zeros(config.max_token_len, np.int32),
            token_mask=np.ones(config.max_token_len, np.bool_),
        )
        noise = np.zeros((config.action_horizon, config.action_dim), np.float32)
        self.denoise(self.prefill(inputs, 0.0), noise, 10)

    @torch.inference_mode()
    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        """Encode the present images and the prompt; what the slot held becomes stale."""
        return self._prefill(inputs, observed_at_s, None)

    @torch.inference_mode()
    def prefill_keeping(self, inputs: ModelInputs, observed_at_s: float, keep: Bool) -> PrefixKV:
        """As `prefill`, with the vision tokens of the cameras of `keep`, bool[V], as they were
        in the prefill before; ValueError for a camera that it did not hold."""
        return self._prefill(inputs, observed_at_s, keep)

    def _prefill(self, inputs: ModelInputs, observed_at_s: float, keep: Bool | None) -> PrefixKV:
        model = self._open_model()
        self._generation += 1
        slot = self._slot_of(self._generation)
        with slot.times.stage("vision"):
            image_tokens = self._vision.of(inputs, self._image_tokens, keep)
        with slot.times.stage("prefill"):
            tokens = self._to_device(inputs.tokens[inputs.token_mask].astype(np.int64))
            embeddings = torch.cat((image_tokens, model.language.embed(tokens)))[None]
            rope = self._rope_of(0, embeddings.shape[1])
            slot.buffers.fill(model.language.encode_keys_values(embeddings, rope, None))
        return PrefixKV(*slot.buffers.prefix, observed_at_s, self._generation)

    @torch.inference_mode()
    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        """Euler's rule from noise f32[H,32] to normalised actions f32[H,32].

        Reading the result is the only wait for the device. Raises StalePrefixError for a
        prefix whose slot was filled again.
        """
        model = self._open_model()
        self._check(prefix, noise, num_steps)
        pull = None if guidance is None else self._guidance_of(guidance, num_steps)
        clean = 0 if guidance is None else guidance.clean_rows
        slot = self._timed = self._slot_of(prefix.generation)
        with slot.times.stage("denoise"):
            x = self._to_device(np.asarray(noise, np.float32))[None]
            rope = self._rope_of(slot.buffers.length, self._config.action_horizon)
            if pull is not None and clean:
                x = torch.cat((pull.target[:, :clean], x[:, clean:]), 1)
            for step, modulations in enumerate(self._modulations_of(model, num_steps, clean)):
                hidden = model.action_in_proj(x).to(self.dtype)
                hidden = model.expert(hidden, modulations, rope, None, slot.buffers.extend)
                velocity = model.action_out_proj(hidden.float())
                if pull is not None:
                    velocity = pull.guided(step, x, velocity)
                    velocity[:, :clean] = 0.0
                x = torch.sub(x, velocity, alpha=1 / num_steps)
        actions: F32 = x[0].cpu().numpy()
        return actions

    def stage_times_ms(self) -> Mapping[str, float]:
        """'vision' and 'prefill' of the prefix denoised last, and that 'denoise', on the device
        where it is a GPU. A prefix still being made in the other slot is not waited for."""
        return self._timed.times.read_ms()

    def close(self) -> None:
        """Drop weights and buffers; any later call raises RuntimeError."""
        self._model = None
        self._modulations.clear()
        self._guidance.clear()
        self._vision.forget()
        self._slots.clear()
        del self._timed, self._rope
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _allocate(self, slots: int, clock: Callable[[], float]) -> None:
        config, on_gpu = self._config, self.device.type == "cuda"
        self._slots = [
            Slot(
                PrefixBuffers(config, self.device, self.dtype),
                CudaTimes() if on_gpu else ClockTimes(clock),
            )
            for _ in range(slots)
        ]
        self._timed = self._slots[0]
        positions = torch.arange(config.max_prefix_len + config.action_horizon, device=self.device)
        self._rope = rope_tables(positions[None], config.language.head_dim)

    def _slot_of(self, generation: int) -> Slot:
        return self._slots[generation % len(self._slots)]

    def _open_model(self) -> Pi05:
        if self._model is None:
            raise RuntimeError(f"backend {self.spec.name!r} is closed; create a new one")
        return self._model

    def _image_tokens(self, images: F32) -> Tensor:
        """f32[v,3,S,S] -> [v,N,W]."""
        return self._open_model().embed_image(self._to_device(images))

    def _rope_of(self, start: int, length: int) -> Rope:
        """Views of the tables: without padding, a token's position is its index."""
        cos, sin = self._rope
        return Rope(cos[:, start : start + length], sin[:, start : start + length])

    def _modulations_of(
        self, model: Pi05, num_steps: int, clean_rows: int = 0
    ) -> list[list[Modulation]]:
        """Every adaptive norm's modulation, by step: computed once for each step count, and for
        each number of leading rows that are given at time 0."""
        key = (num_steps, clean_rows)
        if key not in self._modulations:
            times = flow_times(num_steps, self.device)
            if clean_rows:
                times = times[:, None].repeat(1, self._config.action_horizon)
                times[:, :clean_rows] = 0.0
            batched = model.modulations(times)
            self._modulations[key] = [
                [Modulation(m.scale[i], m.shift[i], m.gate[i].to(self.dtype)) for m in batched]
                for i in range(num_steps)
            ]
        return self._modulations[key]

    def _guidance_of(self, guidance: Guidance, num_steps: int) -> GuidanceBuffers:
        """On the device, by step count; ValueError for guidance that does not fit."""
        if num_steps not in self._guidance:
            horizon, action_dim = self._config.action_horizon, self._config.action_dim
            made = GuidanceBuffers(num_steps, horizon, action_dim, self.device, clean_rows=True)
            self._guidance[num_steps] = made
        self._guidance[num_steps].set(guidance)
        return self._guidance[num_steps]

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """Copy without waiting: on CUDA through pinned memory of torch's own pool."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

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


def checked_device(name: torch.device | str | None) -> torch.device:
    """A device that is there; BackendUnavailableError says what is missing."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        _unavailable(
            f"device {str(device)!r} was asked for, but torch {torch.__version__} sees no CUDA"
            " device; install a CUDA build of torch and its driver, or choose device 'cpu'"
        )
    if device.type not in ("cpu", "cuda"):
        _unavailable(f"device {str(device)!r} is not supported; choose 'cpu' or 'cuda'")
    return device


def checked_dtype(name: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; BackendUnavailableError for any other."""
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype not in DTYPES.values():
        _unavailable(
            f"dtype {name!r} is not supported; choose one of: {', '.join(DTYPES)} (float16"
            " overflows: inputs of the last down projections reach thousands)"
        )
    assert dtype is not None
    return dtype


def _unavailable(reason: str) -> NoReturn:
    raise BackendUnavailableError(f"backend 'pytorch': {reason}")
