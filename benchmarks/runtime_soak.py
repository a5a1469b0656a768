"""A hundred live switches of backends without ROS: one thread infers, this one loads and verifies.

Part of gpu_checks.py. What the policy node does with its two threads, on the runtime alone: every
engine is compared with the float32 reference before it takes over between two frames, and the
one before is closed. Counted: frames by backend, the longest time without a frame, memory.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from thor_policy_ros.backends.registry import spec_of
from thor_policy_ros.ros.inference_thread import InferenceThread, Tick
from thor_policy_ros.ros.memory_use import memory_values
from thor_policy_ros.ros.soak_memory import GpuMemory
from thor_policy_ros.runtime.backend_switch import is_variant
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification import ReferenceFrame, reference_frames, verify_frames
from thor_policy_ros.runtime.verification_inputs import engine_inputs, synthetic_observations

RATE_HZ = 30.0
NUM_STEPS = 3
DWELL_S = 0.1


class Frames:
    """Serves ticks in the inference thread with whatever runs."""

    def __init__(self, policy: UnifiedPolicy, name: str) -> None:
        self.counts: Counter[str] = Counter()
        self.unverified = 0
        self.refused: list[str] = []
        self.gaps_s: list[float] = []
        self.verified = {name}
        self._observations = synthetic_observations(policy.config, 4)
        self._done_s = 0.0
        self.take(policy, name)

    def take(self, policy: UnifiedPolicy, name: str) -> None:
        """From the next frame on. In the inference thread, once it runs."""
        self.policy, self.name = policy, name
        self._runner = PolicyRunner(policy, None, time.perf_counter)

    def rename(self, name: str) -> None:
        """The same engine with the reuse of another name."""
        spec = replace(self.policy.spec, name=name, reuse_every=spec_of(name).reuse_every)
        self.policy.spec = self.policy.backend.spec = spec
        self.name = name

    def on_tick(self, tick: Tick) -> None:
        now_s = time.perf_counter()
        seen = replace(self._observations[tick.number % 4], stamp_s=now_s)
        result = self._runner.step(seen, now_s, tick.number, NUM_STEPS, seed=tick.number)
        if result.chunk is None:
            self.refused.append(f"{self.name}: {result.refused}")
            return
        self.counts[self.name] += 1
        self.unverified += self.name not in self.verified
        done_s = time.perf_counter()
        if self._done_s:
            self.gaps_s.append(done_s - self._done_s)
        self._done_s = done_s


def soak(
    checkpoint: Path, names: Sequence[str], device: str, switches: int, limit_s: float
) -> dict[str, Any]:
    """Switches among `names` in turn; stops, and says so, when the time is over."""
    begun_s = time.perf_counter()
    references = references_of(checkpoint, device)
    first = verified(checkpoint, names[0], device, references)
    frames, failures, memory = Frames(first, names[0]), [], GpuMemory()
    inference = InferenceThread("inference", lambda error: failures.append(repr(error)))
    inference.run_on_ticks(frames.on_tick).result()
    rss, taken_s = [], []
    with Ticking(inference):
        for name in itertools.islice(itertools.cycle([*names[1:], names[0]]), switches):
            if failures or time.perf_counter() - begun_s > limit_s:
                break
            started_s = time.perf_counter()
            try:
                _switch(frames, inference, checkpoint, name, device, references)
            except Exception as error:  # noqa: BLE001 - a record of it; the old one goes on
                failures.append(f"{name}: {error!r}")
                continue
            taken_s.append(time.perf_counter() - started_s)
            time.sleep(DWELL_S)
            values = memory_values(getattr(frames.policy.backend, "device", None))
            memory.add(name, {k: v for k, v in values.items() if isinstance(v, float)})
            rss.append(values.get("host_rss_mb"))
    inference.stop_ticks().result()
    inference.call(frames.policy.close).result()
    inference.end()
    return {
        "switches": len(taken_s),
        "wanted": switches,
        "frames": dict(frames.counts),
        "unverified": frames.unverified,
        "refused": frames.refused[:5],
        "failures": failures[:10],
        "longest_without_a_frame_s": max(frames.gaps_s, default=None),
        "frame_period_ms_p50": float(np.median(frames.gaps_s)) * 1e3 if frames.gaps_s else None,
        "switch_s": {"p50": float(np.median(taken_s)), "max": max(taken_s)} if taken_s else {},
        "host_rss_mb": {"first": rss[0], "last": rss[-1], "max": max(rss)} if rss else {},
        "gpu_mb": memory.summary(),
        "faults": [*memory.faults(), *failures[:3]]
        + ([f"{frames.unverified} frames were not verified"] if frames.unverified else [])
        + ([] if len(taken_s) == switches else [f"{len(taken_s)} of {switches} switches"]),
        "cpu_count": os.cpu_count(),
    }


def _switch(
    frames: Frames,
    inference: InferenceThread,
    checkpoint: Path,
    name: str,
    device: str,
    references: tuple[ReferenceFrame, ...],
) -> None:
    if is_variant(frames.policy.spec, spec_of(name)):
        frames.verified.add(name)
        inference.call(lambda: frames.rename(name)).result()
        return
    policy, old = verified(checkpoint, name, device, references), frames.policy
    frames.verified.add(name)
    inference.call(lambda: frames.take(policy, name)).result()
    old.close()


def references_of(
    checkpoint: Path, device: str, config: str | None = None
) -> tuple[ReferenceFrame, ...]:
    with UnifiedPolicy(
        checkpoint, "pytorch", config=config, device=device, dtype="float32"
    ) as reference:
        seen = synthetic_observations(reference.config, 3)
        return reference_frames(
            reference, engine_inputs(reference.preprocess, reference.config, seen)
        )


def verified(
    checkpoint: Path,
    name: str,
    device: str,
    references: tuple[ReferenceFrame, ...],
    config: str | None = None,
) -> UnifiedPolicy:
    """Loaded, warmed up and compared; RuntimeError for an engine that is not the policy."""
    policy = UnifiedPolicy(checkpoint, name, config=config, device=device)
    try:
        policy.warmup()
        result = verify_frames(policy, references)
        if not result.ok:
            raise RuntimeError(f"{name} failed its verification: {result.reason}")
    except BaseException:
        policy.close()
        raise
    return policy


class Ticking:
    """Ticks at RATE_HZ while its block lasts."""

    def __init__(self, inference: InferenceThread) -> None:
        self._inference, self._over = inference, Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(1 / RATE_HZ):
            self._inference.tick(time.perf_counter())
