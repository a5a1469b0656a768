"""What the inference thread does with a tick: snapshot, step, publish, count."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np

from thor_policy_ros.msg import ActionChunk as ActionChunkMsg
from thor_policy_ros.msg import FrameInputs, FrameLatency
from thor_policy_ros.ros.conversions import chunk_to_msg, inputs_msg, latency_msg, seconds
from thor_policy_ros.ros.decision_record import DecisionRecord
from thor_policy_ros.ros.inference_thread import Tick
from thor_policy_ros.runtime.frame_hops import FrameHops, Hops
from thor_policy_ros.runtime.gpu_errors import is_out_of_memory
from thor_policy_ros.runtime.latency import LatencyWindow, Quantiles, RateMeter
from thor_policy_ros.runtime.latency_injection import InjectedLatency
from thor_policy_ros.runtime.latest_frames import LatestFrames, NotReady
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.real_time_chunking import RealTimeChunking
from thor_policy_ros.runtime.reuse import ReuseRules
from thor_policy_ros.types import FrameTiming, Observation, StepResult

STAGES = (
    "wait",
    "preprocess",
    "vision",
    "prefill",
    "denoise",
    "postprocess",
    "publish",
    "total",
    "prefix_age",
)
RATE_WINDOW_S = 5.0
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class FrameSettings:
    """What may change between two frames. seed: -1 draws a seed for each frame."""

    num_steps: int
    deadline_ms: float
    seed: int
    rules: ReuseRules = field(default_factory=ReuseRules)
    blending: str = "crossfade"
    injected: InjectedLatency = field(default_factory=InjectedLatency)


@dataclass(frozen=True)
class PolicyFacts:
    """What a configured policy says of itself in every message.

    state_dim: of the state that the policy is given; zeros where the robot sends none.
    """

    backend: str
    action_names: tuple[str, ...]
    state_dim: int


@dataclass
class FrameCounts:
    """Since activation or the last reset. ticks: served, ready or not. unwanted: served
    without a chunk on purpose, since the one in hand goes on."""

    ticks: int = 0
    chunks: int = 0
    refused: int = 0
    unwanted: int = 0
    overrun_ticks: int = 0
    not_ready_ticks: int = 0
    deadline_misses: int = 0

    @property
    def missed_ticks(self) -> int:
        """Control ticks without a frame."""
        return self.overrun_ticks + self.not_ready_ticks


@dataclass(frozen=True)
class FrameStatistics:
    """A consistent copy for diagnostics.

    not_ready: why the last tick had no observation, () if it had. refusal: why its chunk was
    refused, '' if it was not. chunk_age_s: since the last chunk, None before the first.
    miss_ratio: share of recent frames that missed the deadline.
    """

    counts: FrameCounts
    quantiles_ms: dict[str, Quantiles]
    chunk_rate_hz: float
    chunk_age_s: float | None
    miss_ratio: float
    not_ready: tuple[str, ...]
    refusal: str
    prompt: str
    decisions: DecisionRecord = field(default_factory=DecisionRecord)


@dataclass(frozen=True)
class _Times:
    """When a frame began, its chunk was made, and was handed over; by the clock of its tick."""

    begun_s: float
    stepped_s: float
    done_s: float


class ChunkPublisher(Protocol):
    """Where a frame's messages go; all are called in the inference thread."""

    def chunk(self, message: ActionChunkMsg) -> None: ...

    def latency(self, message: FrameLatency) -> None: ...

    def wants_inputs(self) -> bool: ...

    def inputs(self, message: FrameInputs) -> None: ...


class FrameLoop:
    """Serves ticks in the inference thread; `statistics` and `discard` may be called from any.

    load_under_way: another backend takes memory meanwhile. Set in any thread.
    chunking: is told of every chunk that is published, and forgets at a reset.
    hops: is told of images and answers by the node.
    ros_now_s: ROS time, the clock of every stamp. Durations are taken by `time.perf_counter`,
    whose readings the ticks carry.
    """

    def __init__(
        self,
        runner: PolicyRunner,
        frames: LatestFrames,
        facts: PolicyFacts,
        publisher: ChunkPublisher,
        ros_now_s: Callable[[], float],
        settings: Callable[[], FrameSettings],
        window: int,
        chunking: RealTimeChunking | None = None,
        hops: FrameHops | None = None,
    ) -> None:
        self._runner: PolicyRunner | None = runner
        self._frames = frames
        self._facts = facts
        self._publisher = publisher
        self._ros_now_s = ros_now_s
        self._settings = settings
        self._window = window
        self._chunking = chunking
        self._hops = hops or FrameHops()
        self._random = np.random.default_rng()
        self._drawn_seed: int | None = None
        self._hurried = threading.Event()
        self._pause = ""
        self.load_under_way = False
        self._lock = threading.Lock()
        self._discard = False
        self._sequence = 0
        self._frame = 0
        self._clear()

    def hand_over(self, runner: PolicyRunner, backend: str) -> None:
        """From the next frame on `runner` infers, under this name. In the inference thread."""
        runner.reset("backend changed")
        self._runner = runner
        self._pause = ""
        self.rename(backend)

    def rename(self, backend: str) -> None:
        """The same runner under another backend's name. In the inference thread."""
        self._facts = replace(self._facts, backend=backend)

    def pause(self, reason: str) -> None:
        """No frame until a runner is handed over. In the inference thread."""
        self._runner = None
        self._pause = reason

    def begin(self) -> None:
        """A new activation: chunks are numbered from 1. In the inference thread."""
        self._sequence = self._frame = 0
        self.reset()

    def reset(self) -> None:
        """Forget the prefix and the counters. In the inference thread."""
        if self._runner is not None:
            self._runner.reset()
        with self._lock:
            self._clear()
            self._discard = False
        self._hurried.clear()
        if self._chunking is not None:
            self._chunking.reset()

    def discard(self) -> None:
        """The frame now computed must not be published; holds until `reset`."""
        self._hurried.set()
        with self._lock:
            self._discard = True

    def on_tick(self, tick: Tick) -> None:
        """One frame. A ValueError (an instruction that is too long, say) refuses the frame;
        what else the policy raises passes through.
        """
        begun_s = time.perf_counter()
        now_s = self._ros_now_s()
        paused = NotReady((self._pause,)) if self._runner is None else None
        found = paused or self._frames.snapshot(now_s)
        if isinstance(found, NotReady):
            self._count_not_ready(tick, found)
            return
        settings = self._settings()
        waited_s = begun_s - tick.at_s
        observation, seed = self._completed(found), self._next_seed(settings)
        result = self._step(observation, now_s, tick, settings, waited_s, seed)
        if settings.injected.active:
            self._hurried.wait(settings.injected.draw_s(self._random))
        with self._lock:
            if self._discard:
                return
        stepped_s = time.perf_counter()
        if result.chunk is not None:
            self._publish_chunk(result, found.prompt, settings.blending, now_s)
        done_s = time.perf_counter()  # what follows is told of the frame, and no part of it
        hops = self._hops.of_frame(found.input_stamps_s, now_s)
        self._publish_latency(result, tick, settings, _Times(begun_s, stepped_s, done_s), hops)
        if self._publisher.wants_inputs():
            message = inputs_msg(observation, result, seed=seed, tick=tick.number, now_s=now_s)
            message.sequence, message.decision = self._sequence, _decision(result)
            self._publisher.inputs(message)
        self._prepare_next(settings)

    def statistics(self) -> FrameStatistics:
        now_s = time.perf_counter()
        with self._lock:
            return FrameStatistics(
                counts=replace(self._counts),
                quantiles_ms=self._latency.quantiles(),
                chunk_rate_hz=self._chunk_rate.rate_hz(now_s),
                chunk_age_s=now_s - self._chunk_at_s if self._counts.chunks else None,
                miss_ratio=float(np.mean(self._misses)) if self._misses else 0.0,
                not_ready=self._not_ready,
                refusal=self._refusal,
                prompt=self._prompt,
                decisions=self._decisions.copy(),
            )

    def _clear(self) -> None:
        self._counts = FrameCounts()
        self._latency = LatencyWindow(self._window)
        self._chunk_rate = RateMeter(RATE_WINDOW_S)
        self._chunk_at_s = 0.0
        self._misses: deque[bool] = deque(maxlen=self._window)
        self._not_ready: tuple[str, ...] = ()
        self._refusal = ""
        self._prompt = ""
        self._decisions = DecisionRecord()

    def _completed(self, observation: Observation) -> Observation:
        if observation.state.shape[0] == self._facts.state_dim:
            return observation
        return replace(observation, state=np.zeros(self._facts.state_dim, np.float32))

    def _next_seed(self, settings: FrameSettings) -> int:
        """Of this frame's noise; one that is drawn can be published, and the frame repeated."""
        seed = self._coming_seed(settings)
        self._frame += 1
        self._drawn_seed = None
        return seed

    def _coming_seed(self, settings: FrameSettings) -> int:
        if settings.seed >= 0:
            return settings.seed + self._frame
        if self._drawn_seed is None:
            self._drawn_seed = int(self._random.integers(LARGEST_SEED))
        return self._drawn_seed

    def _prepare_next(self, settings: FrameSettings) -> None:
        """Draws the next frame's noise while nobody waits for it: 0.15 ms with cold caches."""
        assert self._runner is not None
        self._runner.draw_ahead(self._coming_seed(settings))

    def _step(
        self,
        observation: Observation,
        now_s: float,
        tick: Tick,
        settings: FrameSettings,
        waited_s: float,
        seed: int,
    ) -> StepResult:
        assert self._runner is not None
        self._runner.rules = settings.rules
        loading = self.load_under_way
        try:
            return self._runner.step(
                observation,
                now_s,
                tick.number,
                settings.num_steps,
                seed=seed,
                waited_s=waited_s,
            )
        except ValueError as error:
            return StepResult(None, FrameTiming(), refused=str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not (loading or self.load_under_way):
                raise  # the load ends, and gives back what it took; this backend is as it was
            return StepResult(None, FrameTiming(), refused=f"while another backend loads: {error}")

    def _count_not_ready(self, tick: Tick, found: NotReady) -> None:
        with self._lock:
            self._counts.ticks += 1
            self._counts.overrun_ticks += tick.missed
            self._counts.not_ready_ticks += 1
            self._not_ready = found.reasons

    def _publish_chunk(
        self, result: StepResult, prompt: str, blending: str, began_s: float
    ) -> None:
        assert result.chunk is not None
        self._sequence += 1
        message = chunk_to_msg(
            result.chunk,
            sequence=self._sequence,
            backend=self._facts.backend,
            instruction=prompt,
            joint_names=self._facts.action_names,
            prefix_age_s=result.timing.prefix_age_ms * 1e-3,
            now_s=self._ros_now_s(),
        )
        message.blending, message.guided_rows = blending, result.guided_rows
        if self._chunking is not None:  # before an executor can answer
            published_s = seconds(message.header.stamp)
            self._chunking.sent(self._sequence, result.chunk, prompt, began_s, published_s)
        self._publisher.chunk(message)
        with self._lock:
            self._prompt = prompt

    def _publish_latency(
        self,
        result: StepResult,
        tick: Tick,
        settings: FrameSettings,
        times: _Times,
        hops: Hops,
    ) -> None:
        publish_ms = (times.done_s - times.stepped_s) * 1e3
        message = latency_msg(
            result.timing,
            wait_ms=(times.begun_s - tick.at_s) * 1e3,
            publish_ms=publish_ms if result.chunk is not None else 0.0,
            total_ms=(times.done_s - tick.at_s) * 1e3,
            now_s=self._ros_now_s(),
        )
        for name, value_ms in asdict(hops).items():
            setattr(message, name, value_ms)
        message.sequence = self._sequence
        message.backend = self._facts.backend
        message.decision = _decision(result)
        message.prefix_reused = result.chunk is not None and result.chunk.prefix_reused
        message.deadline_ms = settings.deadline_ms
        message.deadline_missed = message.total_ms > settings.deadline_ms
        self._count_frame(result, tick, message, times.done_s, hops)
        self._publisher.latency(message)

    def _count_frame(
        self, result: StepResult, tick: Tick, message: FrameLatency, done_s: float, hops: Hops
    ) -> None:
        assert self._runner is not None
        with self._lock:
            counts = self._counts
            counts.ticks += 1
            counts.overrun_ticks += tick.missed
            counts.deadline_misses += message.deadline_missed
            if result.chunk is not None:
                counts.chunks += 1
                self._chunk_rate.tick(done_s)
                self._chunk_at_s = done_s
            elif result.refused:
                counts.refused += 1
            else:
                counts.unwanted += 1
            self._latency.add(hops.known())
            if result.chunk is not None or result.refused:
                self._latency.add({stage: getattr(message, f"{stage}_ms") for stage in STAGES})
                self._misses.append(message.deadline_missed)
            self._decisions.add(result, self._runner)
            self._not_ready = ()
            self._refusal = result.refused
            message.dropped_frames = sum(self._frames.drops.values())
            message.missed_ticks = counts.missed_ticks


def _decision(result: StepResult) -> str:
    """As the messages say it."""
    return f"refused: {result.refused}" if result.refused else result.decision
