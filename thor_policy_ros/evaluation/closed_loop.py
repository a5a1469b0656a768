"""One episode of the simulated arm, driven as a robot is: policy ticks, delay, 100 Hz executor.

All time is simulated, so an episode follows from its seed and settings.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from thor_policy_ros.evaluation.motion_trace import MotionTrace
from thor_policy_ros.runtime.blending import BLENDINGS
from thor_policy_ros.runtime.camera_images import through_jpeg
from thor_policy_ros.runtime.executor import ChunkExecutor
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.real_time_chunking import ChunkingRules, RealTimeChunking
from thor_policy_ros.sim.arm_env import TICK_S, TabletopArm
from thor_policy_ros.sim.instructions import VERBS
from thor_policy_ros.types import ActionChunk, Observation, StepResult

CONTROL_DT_S = 0.01
INSTRUCTIONS = ("right", "blank", "wrong")
JPEG = "jpeg_"  # and the quality
IMAGES = ("normal", "black", f"{JPEG}90", f"{JPEG}50", f"{JPEG}20")
INDEXINGS = ("aligned", "naive")


@dataclass(frozen=True)
class Conditions:
    """How episodes are run.

    instruction: 'right', 'blank' or 'wrong' (another object of the scene; success still means
    the one intended). images: 'normal', 'black', or as they
    come out of a JPEG of that quality. speed_m_s: of the objects.
    latency_ms: simulated time from an observation to its chunk reaching the executor.
    replan: policy ticks of 0.1 s between two chunks.
    indexing: a chunk is executed from the row of its observation's age ('aligned'), or from
    row 0 when it arrives ('naive', to see what that costs).
    blending: how chunks join, with 'rtc' by `rtc` as well. crossfade_s, ensemble_decay: of the
    executor.
    """

    instruction: str = "right"
    images: str = "normal"
    speed_m_s: float = 0.12
    num_steps: int = 3
    latency_ms: float = 0.0
    replan: int = 1
    seed: int = 0
    indexing: str = "aligned"
    blending: str = "crossfade"
    crossfade_s: float = 0.1
    ensemble_decay: float = 0.5
    rtc: ChunkingRules = field(default_factory=ChunkingRules)

    def __post_init__(self) -> None:
        for name, choices in (
            ("instruction", INSTRUCTIONS),
            ("images", IMAGES),
            ("indexing", INDEXINGS),
            ("blending", BLENDINGS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; choose one of: {', '.join(choices)}"
                )
        for name, least in (("speed_m_s", 0), ("num_steps", 1), ("latency_ms", 0), ("replan", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} wants at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class EpisodeRecord:
    """How one episode went. `told`: what the policy was asked; `duration_s` is simulated.

    refused_chunks: by the policy's own check or by the executor; last_refusal: why.
    """

    seed: int
    verb: str
    intended: str
    told: str
    outcome: str
    duration_s: float
    refused_chunks: int
    last_refusal: str = ""

    @property
    def success(self) -> bool:
        return self.outcome == "success"


Takes = Callable[[StepResult], float]
"""Simulated seconds that the policy computed for a result."""


def run_episode(
    env: TabletopArm,
    runner: PolicyRunner,
    conditions: Conditions,
    episode_seed: int,
    trace: MotionTrace | None = None,
    takes_s: Takes | None = None,
) -> EpisodeRecord:
    """Play the episode of `episode_seed` to its verdict. trace, takes_s: see `ControlLoop`."""
    env.reset(episode_seed, conditions.speed_m_s)
    told = told_instruction(env, conditions, episode_seed)
    runner.reset()
    runner.chunking = RealTimeChunking(
        replace(conditions.rtc, enabled=conditions.blending == "rtc")
    )
    loop = ControlLoop(env, runner, conditions, told, episode_seed, trace, takes_s)
    while env.outcome() == "running":
        loop.advance()
    return EpisodeRecord(
        seed=episode_seed,
        verb=VERBS[env.episode.verb],
        intended=env.instruction,
        told=told,
        outcome=env.outcome(),
        duration_s=round(env.time_s, 3),
        refused_chunks=loop.refused,
        last_refusal=loop.last_refusal,
    )


def told_instruction(env: TabletopArm, conditions: Conditions, episode_seed: int) -> str:
    """What the policy is asked in this episode under the conditions."""
    if conditions.instruction == "blank":
        return ""
    if conditions.instruction == "wrong":
        return env.wrong_instruction(np.random.default_rng(episode_seed))
    return env.instruction


def noise_seed(conditions: Conditions, episode_seed: int, tick: int) -> int:
    """Seed of the flow's noise: fixed by the settings, different for every chunk."""
    text = f"{conditions.seed}/{episode_seed}/{tick}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


class ControlLoop:
    """The 100 Hz loop of one episode: observe, infer, deliver late, execute, let time pass.

    trace: is told every command and every chunk that is followed.
    takes_s: a policy that computes is served its next tick when it is done; then its result
    is delivered too. None computes in no time.
    """

    def __init__(
        self,
        env: TabletopArm,
        runner: PolicyRunner,
        conditions: Conditions,
        told: str,
        episode_seed: int,
        trace: MotionTrace | None = None,
        takes_s: Takes | None = None,
    ) -> None:
        self._env, self._runner, self._conditions = env, runner, conditions
        self._told, self._episode_seed = told, episode_seed
        self._trace, self._takes_s = trace, takes_s
        self._executor = ChunkExecutor(
            env.joint_names,
            env.limits,
            CONTROL_DT_S,
            crossfade_s=conditions.crossfade_s,
            blending=conditions.blending,
            ensemble_decay=conditions.ensemble_decay,
        )
        self._under_way: deque[tuple[float, int, ActionChunk]] = deque()
        self._chunks = 0
        self._control_ticks = 0
        self._waiting_tick: int | None = None
        self._busy_until_s = 0.0
        self.refused = 0
        self.last_refusal = ""

    def advance(self) -> None:
        """One control tick of CONTROL_DT_S."""
        now_s = self._control_ticks * CONTROL_DT_S
        every = round(TICK_S * self._conditions.replan / CONTROL_DT_S)
        if self._control_ticks % every == 0:
            self._waiting_tick = round(now_s / TICK_S)
        if self._waiting_tick is not None and now_s >= self._busy_until_s - 1e-9:
            self._infer(now_s, self._waiting_tick)
            self._waiting_tick = None
        self._deliver(now_s)
        self._execute(now_s)
        self._env.advance(CONTROL_DT_S)
        self._control_ticks += 1

    def _infer(self, now_s: float, tick: int) -> None:
        result = self._runner.step(
            self._observation(now_s),
            now_s,
            tick,
            self._conditions.num_steps,
            seed=noise_seed(self._conditions, self._episode_seed, tick),
            waited_s=now_s - tick * TICK_S,
        )
        done_s = now_s + (self._takes_s(result) if self._takes_s is not None else 0.0)
        self._busy_until_s = done_s
        if result.chunk is None:
            self._refuse(result.refused)
        else:
            self._send(result.chunk, now_s, done_s)

    def _send(self, chunk: ActionChunk, began_s: float, done_s: float) -> None:
        arrives_s = done_s + self._conditions.latency_ms / 1e3
        self._chunks += 1
        self._under_way.append((arrives_s, self._chunks, chunk))
        if self._runner.chunking is not None:
            self._runner.chunking.sent(self._chunks, chunk, self._told, began_s, done_s)

    def _deliver(self, now_s: float) -> None:
        while self._under_way and self._under_way[0][0] <= now_s + 1e-9:
            _, number, chunk = self._under_way.popleft()
            if self._conditions.indexing == "naive":
                chunk = replace(chunk, observed_at_s=now_s)
            refused = self._executor.accept(chunk, self._env.joint_names, now_s)
            self._refuse(refused)
            self._answer(number, refused, now_s)
            if self._trace is not None and not refused:
                self._trace.joined(chunk, now_s)

    def _answer(self, number: int, refused: str, now_s: float) -> None:
        """What the executor tells the policy of a chunk."""
        if self._runner.chunking is None:
            return
        if refused:
            self._runner.chunking.refused(number)
        else:
            self._runner.chunking.taken_up(number, now_s)

    def _execute(self, now_s: float) -> None:
        self._executor.set_measured(self._env.state(), now_s)
        command = self._executor.command(now_s)
        if command.positions is None:
            return
        self._env.command(command.positions.astype(np.float32))
        if self._trace is not None:
            self._trace.command(command.positions)

    def _refuse(self, reason: str) -> None:
        if reason:
            self.refused += 1
            self.last_refusal = reason

    def _observation(self, now_s: float) -> Observation:
        images = self._env.images()
        if self._conditions.images == "black":
            images = {slot: np.zeros_like(image) for slot, image in images.items()}
        elif self._conditions.images.startswith(JPEG):
            quality = int(self._conditions.images.removeprefix(JPEG))
            images = {slot: through_jpeg(image, quality) for slot, image in images.items()}
        return Observation(images, self._env.state(), self._told, now_s)
