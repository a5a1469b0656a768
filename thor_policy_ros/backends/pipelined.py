"""Any engine with two prefix slots: the next prefix is computed while this one is denoised.

A prefill is launched in a stream of its own and returns at once; a denoising, in the caller's
stream, waits on the device for its own prefix alone. Who drives it (PolicyRunner) launches the
prefill of frame n+1 before it denoises frame n. On a CPU the same calls run one after the
other: the results and their order are the same, only the overlap is absent.

The host launches both from one thread, so an engine bound by its launches (eager PyTorch)
gains little; an engine of a few launches (CUDA graphs, TensorRT) overlaps in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from thor_policy_ros.backends import lent_streams
from thor_policy_ros.types import F32, Backend, Guidance, ModelInputs, PrefixKV


class TwoSlots(Backend, Protocol):
    """An engine that can be pipelined: its stages run in the current CUDA stream, and
    `prefix_slots` prefixes are valid at a time, so that one is filled while one is read."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def prefix_slots(self) -> int: ...


class PipelinedBackend:
    """Runs the prefills of `engine` beside its denoisings. One thread calls it."""

    def __init__(self, engine: TwoSlots) -> None:
        if engine.prefix_slots < 2:
            raise ValueError(
                f"backend {engine.spec.name!r} wants an engine with 2 prefix slots,"
                f" got {engine.prefix_slots}"
            )
        self.spec = engine.spec
        self.device = engine.device
        self.dtype = engine.dtype
        self.notes: tuple[str, ...] = getattr(engine, "notes", ())
        self.warnings: tuple[str, ...] = getattr(engine, "warnings", ())
        self.bytes_outside_torch: int = getattr(engine, "bytes_outside_torch", 0)
        self._engine = engine
        self._beside = _SideStream(self.device) if self.device.type == "cuda" else None

    @property
    def takes_clean_rows(self) -> bool:
        """Whether leading rows may be given as they are, see `Guidance.clean_rows`."""
        return bool(getattr(self._engine, "takes_clean_rows", False))

    @property
    def resizes_frames(self) -> bool:
        """Whether `prefill` takes images as cameras send them, see `ModelInputs.frames`."""
        return bool(getattr(self._engine, "resizes_frames", False))

    def warmup(self) -> None:
        """Warms the engine up, in both streams' allocators on a GPU."""
        self._engine.warmup()
        if self._beside is not None:
            with torch.cuda.stream(self._beside.stream):
                self._engine.warmup()
            torch.cuda.synchronize(self.device)
        self.warnings = getattr(self._engine, "warnings", ())

    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        """Launch the prefix of `inputs`; valid until the prefill after the next."""
        if self._beside is None:
            return self._engine.prefill(inputs, observed_at_s)
        return self._beside.prefill(self._engine, inputs, observed_at_s)

    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        """Integrate the flow, once the device has `prefix`; a later prefix may still be made."""
        if self._beside is not None:
            self._beside.await_prefix(prefix)
        return self._engine.denoise(prefix, noise, num_steps, guidance)

    def stage_times_ms(self) -> Mapping[str, float]:
        """Of the prefix that was denoised last: its own vision and prefill, a frame ago."""
        return self._engine.stage_times_ms()

    def close(self) -> None:
        """Free the engine, after what is still launched."""
        if self._beside is not None:
            self._beside.stream.synchronize()
            lent_streams.give_back(self._beside.stream)
            self._beside = None
        self._engine.close()


class _SideStream:
    """The stream of the prefills, and when each of them is done."""

    def __init__(self, device: torch.device) -> None:
        self.stream = lent_streams.lend(device)
        self._done: dict[int, torch.cuda.Event] = {}

    def prefill(self, engine: TwoSlots, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        # The slot's last reader is behind us in the caller's stream.
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            prefix = engine.prefill(inputs, observed_at_s)
            event = torch.cuda.Event()
            event.record()
        newest = prefix.generation
        self._done = {g: e for g, e in self._done.items() if g > newest - engine.prefix_slots}
        self._done[newest] = event
        return prefix

    def await_prefix(self, prefix: PrefixKV) -> None:
        """The caller's stream, not the host, waits; a stale prefix is left to the engine."""
        if prefix.generation in self._done:
            torch.cuda.current_stream(self.stream.device).wait_event(self._done[prefix.generation])
