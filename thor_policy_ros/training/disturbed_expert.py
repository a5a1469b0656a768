"""Episodes of the expert with things going wrong, so that a policy sees how to recover.

The arm starts in odd places, is pushed off its path by slowly changing noise, acts on chunks of
different ages, changes its mind about object and verb, and its suction flips now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thor_policy_ros.sim.arm_env import CAMERA_SLOTS, TICK_S, TabletopArm
from thor_policy_ros.sim.episode import plan_episode
from thor_policy_ros.sim.expert import expert_chunk
from thor_policy_ros.sim.instructions import FOLLOW, PICK_UP
from thor_policy_ros.sim.kinematics import joints_for_tip, tip_position
from thor_policy_ros.sim.scene import NUM_OBJECTS, OBJECT_RADIUS_M, TABLE_X_M, TABLE_Y_M
from thor_policy_ros.types import F32

FRAMES_PER_EPISODE = 24
MAX_SPEED_M_S = 0.13
_COMMAND_S = 0.02
_COMMANDS = round(TICK_S / _COMMAND_S)
_PARKED = 0.15
_QUIET = 0.3
_TIP_NOISE_M = (0.016, 0.016, 0.012)
_JOINT_NOISE_RAD = (0.010, 0.012, 0.012, 0.030)
_NOISE_MEMORY = 0.75
_CHANGE_OF_MIND = 0.05
_SUCTION_FLIP = 0.03
_PICK_UP = 0.6

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Script:
    """The disturbances of one episode, T ticks, all drawn beforehand.

    chunk_age: how old chunks are when executed, in ticks; target, verb: int[T];
    flip: bool[T]; tip_noise: f64[T+1,3], m; joint_noise: f64[T+1,4], rad.
    """

    seed: int
    speed_m_s: float
    start_joints: F64 | None
    chunk_age: float
    target: npt.NDArray[np.int64]
    verb: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]
    tip_noise: F64
    joint_noise: F64


def record_episodes(
    seed: int, episodes: Sequence[int], image_size: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Run the numbered episodes side by side; arrays as in ExpertData, episode by episode.

    An episode depends on `seed` and its number alone.
    """
    scripts = [_write_script(seed, number) for number in episodes]
    arms = [TabletopArm(image_size, vary_look=True) for _ in scripts]
    for arm, script in zip(arms, scripts, strict=True):
        arm.reset(script.seed, script.speed_m_s, start_joints=script.start_joints)
    frames: list[list[dict[str, object]]] = [[] for _ in arms]
    for tick in range(FRAMES_PER_EPISODE):
        for row, arm in enumerate(arms):
            frames[row].append(_frame(arm, episodes[row], tick, scripts[row].speed_m_s))
        _act(arms, scripts, tick)
    flat = [frame for episode in frames for frame in episode]
    return {name: np.stack([np.asarray(f[name]) for f in flat]) for name in flat[0]}


def _frame(arm: TabletopArm, episode: int, tick: int, speed_m_s: float) -> dict[str, object]:
    images = arm.images()
    return {
        "images": np.stack([images[slot] for slot in CAMERA_SLOTS]),
        "state": arm.state(),
        "held": arm.held,
        "objects": arm.objects(),
        "velocities": arm.velocities(),
        "object_uv": arm.objects_in_images(),
        "colours": arm.episode.colours,
        "shapes": arm.episode.shapes,
        "episode": episode,
        "tick": tick,
        "speed": speed_m_s,
    }


def _act(arms: list[TabletopArm], scripts: list[_Script], tick: int) -> None:
    """One tick of all arms along disturbed expert chunks."""
    chunks = expert_chunk(
        np.stack([arm.state() for arm in arms]),
        np.array([arm.held for arm in arms]),
        np.stack([arm.objects() for arm in arms]),
        np.stack([arm.velocities() for arm in arms]),
        np.array([script.target[tick] for script in scripts]),
        np.array([script.verb[tick] for script in scripts]),
    )
    for arm, script, chunk in zip(arms, scripts, chunks, strict=True):
        for setpoint in _disturbed(chunk, script, tick):
            arm.command(setpoint)
            arm.advance(_COMMAND_S)


def _disturbed(chunk: F32, script: _Script, tick: int) -> F64:
    """f64[5,5]: the commands of one tick, 20 ms each, off the chunk by the script's noise."""
    part = np.arange(_COMMANDS) / _COMMANDS
    time = script.chunk_age + part
    row = time.astype(int)
    within = (time - row)[:, None]
    commands = chunk[row] * (1 - within) + chunk[row + 1] * within
    tip_noise = _between(script.tip_noise, tick, part)
    tips = tip_position(commands[:, :4]) + tip_noise
    commands[:, :4] = joints_for_tip(tips) + _between(script.joint_noise, tick, part)
    if script.flip[tick]:
        commands[:, 4] = 1.0 - commands[:, 4]
    return commands


def _between(noise: F64, tick: int, part: F64) -> F64:
    return noise[tick] * (1 - part)[:, None] + noise[tick + 1] * part[:, None]


def _write_script(seed: int, number: int) -> _Script:
    rng = np.random.default_rng([seed, number])
    arm_seed = int(rng.integers(2**31))
    target, verb = _intentions(rng)
    strength = 0.0 if rng.random() < _QUIET else rng.uniform(0.3, 1.6)
    return _Script(
        seed=arm_seed,
        speed_m_s=0.0 if rng.random() < _PARKED else rng.uniform(0.0, MAX_SPEED_M_S),
        start_joints=_start(rng, arm_seed),
        chunk_age=rng.uniform(0.0, 1.2),
        target=target,
        verb=verb,
        flip=_runs(rng, _SUCTION_FLIP),
        tip_noise=strength * _drifting_noise(rng, _TIP_NOISE_M),
        joint_noise=strength * _drifting_noise(rng, _JOINT_NOISE_RAD),
    )


def _intentions(
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Target and verb of each tick, with a change of mind now and then."""
    count = FRAMES_PER_EPISODE
    epoch = np.cumsum(rng.random(count) < _CHANGE_OF_MIND)
    targets = rng.integers(0, NUM_OBJECTS, count + 1)
    verbs = np.where(rng.random(count + 1) < _PICK_UP, PICK_UP, FOLLOW)
    return targets[epoch], verbs[epoch]


def _runs(rng: np.random.Generator, rate: float) -> npt.NDArray[np.bool_]:
    """bool[T]: events at `rate` a tick, each one to four ticks long."""
    flags = np.zeros(FRAMES_PER_EPISODE, bool)
    for tick in np.flatnonzero(rng.random(FRAMES_PER_EPISODE) < rate):
        flags[tick : tick + int(rng.integers(1, 5))] = True
    return flags


def _drifting_noise(rng: np.random.Generator, scale: Sequence[float]) -> F64:
    """Ornstein-Uhlenbeck noise at 10 Hz, f64[T+1,len(scale)], of standard deviation `scale`."""
    fresh = rng.standard_normal((FRAMES_PER_EPISODE + 1, len(scale)))
    noise = fresh.copy()
    for tick in range(1, len(noise)):
        noise[tick] = _NOISE_MEMORY * noise[tick - 1] + np.sqrt(1 - _NOISE_MEMORY**2) * fresh[tick]
    return noise * np.asarray(scale)


def _start(rng: np.random.Generator, arm_seed: int) -> F64 | None:
    """Start joints: the episode's own (None), near some object, or anywhere."""
    kind = rng.random()
    if kind < 0.35:
        return None
    if kind < 0.7:
        places = plan_episode(np.random.default_rng(arm_seed), None).positions
        spread = rng.choice((0.01, 0.03, 0.06))
        place = places[rng.integers(NUM_OBJECTS)] + rng.normal(0.0, spread, 2)
        height = 2 * OBJECT_RADIUS_M + rng.uniform(-0.005, 0.09)
    else:
        low, high = np.array([TABLE_X_M, TABLE_Y_M]).T
        place = rng.uniform(low - 0.02, high + 0.02)
        height = rng.uniform(0.03, 0.26)
    joints = joints_for_tip(np.array([*place, height]))
    return joints + rng.normal(0.0, 1.0, 4) * (0.0, 0.0, 0.0, 0.02)
