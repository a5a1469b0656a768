"""One episode: settle, look, infer, execute the first actions of the chunk, look again."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image

from thor_policy_ros.evaluation.libero.settings import (
    FAILURE,
    REFUSED,
    SETTLING_ACTION,
    SUCCESS,
    Episode,
    EpisodeRecord,
    Played,
    Settings,
)
from thor_policy_ros.runtime.unified_policy import InferenceRefusedError
from thor_policy_ros.serving.inference_worker import Answer
from thor_policy_ros.sim.libero.wire import ACTION_DIM, F64, Moved, Seen, Task
from thor_policy_ros.types import F32, U8, Observation

FILM_EVERY = 2
"""Control steps of 1/20 s between two pictures of a film."""

FILM_HZ = 10
BASE, WRIST = "base_0_rgb", "left_wrist_0_rgb"


class Simulator(Protocol):
    """What an episode needs of a simulator."""

    def reset(self, task: int, trial: int, seed: int) -> Seen: ...

    def act(self, actions: F32) -> Moved: ...


Infer = Callable[[Observation, int], Answer]
"""The chunk for an observation. Its number in the episode decides its noise."""


def observation_of(seen: Seen, language: str, stamp_s: float) -> Observation:
    """As openpi gives it to its policies: images turned by 180 degrees, state f32[8]."""
    state = np.concatenate(
        (seen.eef_position, axis_angle(seen.eef_quaternion), seen.gripper)
    ).astype(np.float32)
    images = {BASE: upright(seen.base), WRIST: upright(seen.wrist)}
    return Observation(images, state, language, stamp_s)


def upright(image: U8) -> U8:
    return np.ascontiguousarray(image[::-1, ::-1])


def axis_angle(quaternion: F64) -> F64:
    """f64[4], x y z w -> axis times angle in [0, 2 pi], f64[3]; no rotation is zeros."""
    w = min(max(float(quaternion[3]), -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return np.asarray(quaternion[:3] * (2.0 * math.acos(w) / sine), np.float64)


def play_episode(
    simulator: Simulator,
    episode: Episode,
    task: Task,
    settings: Settings,
    infer: Infer,
    filmed: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Played:
    """Play to success or the last step. What the simulator raises passes through.

    A chunk that is refused ends the episode, as a failure with its reason.
    """
    began_s = clock()
    run = _Run(settings, filmed)
    try:
        success = run.play(simulator, episode, task, infer)
        outcome, reason = (SUCCESS if success else FAILURE), ""
    except InferenceRefusedError as error:
        outcome, reason = REFUSED, str(error)
    record = EpisodeRecord(
        episode.backend,
        episode.task,
        episode.trial,
        outcome,
        run.steps,
        run.digest.hexdigest(),
        tuple(run.infer_ms),
        run.batch,
        round(clock() - began_s, 2),
        reason,
    )
    return Played(record, tuple(run.film))


class _Run:
    """What adds up while an episode is played."""

    def __init__(self, settings: Settings, filmed: bool) -> None:
        self._settings, self._filmed = settings, filmed
        self.steps = 0
        self.digest = hashlib.blake2b(digest_size=8)
        self.infer_ms: list[float] = []
        self.batch = 1
        self.film: list[bytes] = []

    def play(self, simulator: Simulator, episode: Episode, task: Task, infer: Infer) -> bool:
        settings = self._settings
        seen = simulator.reset(episode.task, episode.trial, settings.seed)
        settling = np.tile(np.asarray(SETTLING_ACTION, np.float32), (settings.settling_steps, 1))
        if settings.settling_steps:
            # As in openpi's evaluation, a task that is solved meanwhile is not over.
            for action in settling:
                seen = simulator.act(action[None]).seen
                self.steps += 1
        last = settings.settling_steps + settings.max_steps
        while self.steps < last:
            observation = observation_of(seen, task.language, self.steps / 20)
            actions = self._chunk(infer(observation, len(self.infer_ms)))
            moved = simulator.act(actions[: min(settings.replan, last - self.steps)])
            self._executed(actions, seen, moved)
            if moved.success:
                return True
            seen = moved.seen
        return False

    def _chunk(self, answer: Answer) -> F32:
        self.infer_ms.append(round(answer.infer_ms, 3))
        self.batch = max(self.batch, answer.batch)
        return answer.chunk.actions[:, :ACTION_DIM]

    def _executed(self, actions: F32, before: Seen, moved: Moved) -> None:
        self.digest.update(np.ascontiguousarray(actions[: moved.steps], np.float32).tobytes())
        if self._filmed:
            for number, image in enumerate((before.base, *moved.frames), self.steps):
                if number % FILM_EVERY == 0:
                    self.film.append(_jpeg(upright(image)))
        self.steps += moved.steps


def _jpeg(image: U8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return file.getvalue()
