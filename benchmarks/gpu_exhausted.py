"""A GPU whose memory is used up: what a second backend, and then a frame, come to.

Part of gpu_checks.py. The first backend serves ticks in its inference thread all the while, as in
the policy node. Plain torch allocations fill the GPU but for a part of one engine; then

1. every other engine is loaded as the node loads one: torch's out-of-memory error is expected, the
   first backend goes on (a frame may be refused while the load lasts), and answers bit for bit;
2. with nothing left at all, a frame of the first backend fails with the same error, which the node
   does not take for a poisoned process; with memory back, it answers bit for bit again;
3. the engine that was refused loads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory_budget import MemoryBudget
from runtime_soak import Frames, Ticking, references_of, verified

from thor_policy_ros.ros.inference_thread import InferenceThread, Tick
from thor_policy_ros.ros.memory_use import memory_values
from thor_policy_ros.runtime.gpu_errors import (
    forget_frames,
    is_out_of_memory,
    needs_new_process,
    release_unused_memory,
)
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification_inputs import synthetic_observations

MIB = 1 << 20
PART_LEFT = 0.3
"""Of the first engine's memory is left free: a load begins, and cannot end."""
GIVEN_BACK = 0.02
"""Of that memory may be held longer than the refused load: allocators keep blocks of 2 MiB."""
Values = dict[str, float]
Left = Callable[[int], AbstractContextManager[Any]]


class GuardedFrames(Frames):
    """As the node's frame loop: memory that ran out while a load is under way refuses a frame."""

    load_under_way = False

    def on_tick(self, tick: Tick) -> None:
        loading = self.load_under_way
        try:
            super().on_tick(tick)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not (loading or self.load_under_way):
                raise
            self.refused.append(f"while another backend loads: {error}"[:200])


def exhausted(
    checkpoint: Path, names: Sequence[str], device: str, config: str | None
) -> dict[str, Any]:
    """names: of one backend of each engine; the first one runs."""
    references = references_of(checkpoint, device, config)
    before = _held_mb(device)
    first = verified(checkpoint, names[0], device, references, config)
    engine_bytes = _engine_bytes(first, before, device)
    frames, failures = GuardedFrames(first, names[0]), []
    inference = InferenceThread("inference", failures.append)
    inference.run_on_ticks(frames.on_tick).result()
    left = _left(device)

    def answer() -> np.ndarray:
        return inference.call(lambda: _answer(first)).result()

    def held_mb() -> Values:
        return inference.call(lambda: _held_mb(device)).result()

    def load(name: str) -> UnifiedPolicy:
        return verified(checkpoint, name, device, references, config)

    found: dict[str, Any] = {"engine_mb": engine_bytes / 1e6, "loads": {}}
    with Ticking(inference):
        wanted = answer()
        for name in names[1:]:
            found["loads"][name] = _refused_load(
                name, load, frames, answer, wanted, left(int(engine_bytes * PART_LEFT)), held_mb
            )
    inference.stop_ticks().result()
    found["frame"] = _failed_frame(first, inference, wanted, left, device)
    found["loads_afterwards"] = {name: _loads(name, load) for name in names[1:]}
    found.update(frames=dict(frames.counts), refused=frames.refused[:5])
    found["refused_frames"] = len(frames.refused)
    found["failures"] = [repr(error) for error in failures]
    inference.call(first.close).result()
    inference.end()
    return {**found, "faults": _faults(found)}


def _refused_load(
    name: str,
    load: Callable[[str], UnifiedPolicy],
    frames: GuardedFrames,
    answer: Callable[[], np.ndarray],
    wanted: np.ndarray,
    exhaustion: AbstractContextManager[Any],
    held_mb: Callable[[], Values],
) -> dict[str, Any]:
    """What became of the load, of the frames meanwhile and of the memory that it took.

    held_mb: between two frames: one that is computed holds memory of its own.
    """
    error, as_expected = "none: it loaded", False
    count, begun_s = frames.counts[frames.name], time.perf_counter()
    frames.load_under_way = True
    with exhaustion:
        before = held_mb()
        try:
            load(name).close()
        except Exception as raised:  # noqa: BLE001 - it is the result
            error = f"{type(raised).__name__}: {raised}"[:300]
            as_expected = is_out_of_memory(raised) and not needs_new_process(raised)
            forget_frames(raised)
        after = held_mb()
        equal = bool(np.array_equal(answer(), wanted))
    frames.load_under_way = False
    return {
        "error": error,
        "as_expected": as_expected,
        "seconds": time.perf_counter() - begun_s,
        "frames_meanwhile": frames.counts[frames.name] - count,
        "still_held_mb": {name: after[name] - before[name] for name in before},
        "bit_equal": equal,
    }


def _failed_frame(
    policy: UnifiedPolicy, inference: InferenceThread, wanted: np.ndarray, left: Left, device: str
) -> dict[str, Any]:
    """With nothing left, and what torch kept for the frame's tensors given back before."""

    def starved() -> np.ndarray:
        release_unused_memory()
        with left(0):
            return _answer(policy)

    try:
        inference.call(starved).result()
        error, as_expected = "none: the frame needed no memory", False
    except Exception as raised:  # noqa: BLE001 - it is the result
        error = f"{type(raised).__name__}: {raised}"[:300]
        as_expected = is_out_of_memory(raised) and not needs_new_process(raised)
        forget_frames(raised)
    again = inference.call(lambda: _answer(policy)).result()
    return {
        "error": error,
        "as_expected": as_expected,
        "bit_equal_with_memory_back": bool(np.array_equal(again, wanted)),
    }


def _loads(name: str, load: Callable[[str], UnifiedPolicy]) -> str:
    try:
        load(name).close()
    except Exception as error:  # noqa: BLE001 - it is the result
        return f"{type(error).__name__}: {error}"[:300]
    return "verified"


def _faults(found: dict[str, Any]) -> list[str]:
    faults = [f"a tick failed: {error}" for error in found["failures"]]
    bound_mb = max(GIVEN_BACK * found["engine_mb"], 2 * MIB / 1e6)
    for name, load in found["loads"].items():
        if not load["as_expected"]:
            faults.append(f"{name} was to be refused for memory: {load['error']}")
        if not load["bit_equal"]:
            faults.append(f"after {name} was refused the first backend answers otherwise")
        for kind, held_mb in load["still_held_mb"].items():
            if held_mb > bound_mb:
                faults.append(f"{name} was refused and holds {held_mb:.1f} MB of {kind}")
    if not found["frame"]["as_expected"]:
        faults.append(f"a frame without memory: {found['frame']['error']}")
    if not found["frame"]["bit_equal_with_memory_back"]:
        faults.append("after a frame without memory the backend answers otherwise")
    for name, said in found["loads_afterwards"].items():
        if said != "verified":
            faults.append(f"{name} does not load with memory back: {said}")
    return faults


def _answer(policy: UnifiedPolicy) -> np.ndarray:
    return policy.infer(synthetic_observations(policy.config, 1)[0], num_steps=3, seed=7).actions


def _held_mb(device: str) -> Values:
    """Of the GPU, without what torch keeps for tensors to come; nothing on a CPU."""
    release_unused_memory()
    values = memory_values(torch.device(device))
    return {name: float(str(mb)) for name, mb in values.items() if name.startswith("gpu_")}


def _engine_bytes(policy: UnifiedPolicy, before: Values, device: str) -> int:
    """On a GPU what it takes there; on a CPU the size of its weights."""
    if before:
        return int((_held_mb(device)["gpu_used_mb"] - before["gpu_used_mb"]) * 1e6)
    model = policy.backend.model  # type: ignore[attr-defined]
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _left(device: str) -> Left:
    """On a CPU memory runs out for the thread that enters it alone."""
    if not device.startswith("cuda"):
        return MemoryBudget
    return lambda num_bytes: _filled(num_bytes, device)


@contextmanager
def _filled(num_bytes: int, device: str) -> Iterator[None]:
    """Tensors take the whole GPU but for `num_bytes`, to the last 2 MiB."""
    spare = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    held, size = [], 1 << 34
    while size >= 2 * MIB:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            size //= 2
    del spare
    release_unused_memory()
    try:
        yield
    finally:
        held.clear()
        release_unused_memory()
