"""From action chunks to the one command for now, whatever chunks and clock do.

Time. `actions[k]` is the command for `observed_at_s + k * dt_s`, so a chunk that comes late is
joined where it should be by now. Limits are kept per control tick: every call of `command` is
one tick of `control_dt_s`, however much time the caller's clock says has passed. After a leap
forward the motion catches up with the chunk within the limits, or stops if the chunk has run
out. A clock that goes back by up to `CLOCK_TOLERANCE_S` stands still; by more, and the chunk
belongs to another time: the robot decelerates to rest and waits for a new one.

The robot. Commands begin where the joints are measured. Joints that are no longer measured stop
the motion until they are; joints that are far from their commands stop it until `reset`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from thor_policy_ros.runtime.acceptance import form_refusal, time_refusal
from thor_policy_ros.runtime.blending import Joining
from thor_policy_ros.runtime.executor_stats import ExecutorStats, check_joints
from thor_policy_ros.runtime.following import age_fault, distance_fault, lag_fault
from thor_policy_ros.runtime.limiter import F64, JointLimiter
from thor_policy_ros.runtime.motion_guard import MotionGuard
from thor_policy_ros.runtime.trajectory import Crossfade, Trajectory, constant
from thor_policy_ros.runtime.workspace import WorkspaceBox, WorkspaceWatch
from thor_policy_ros.types import ActionChunk, JointLimits

CommandState = Literal["waiting", "tracking", "holding", "stopped"]

# A smaller step back is a clock being disciplined; a larger one is another clock (a simulation
# that restarted, a bag played again).
CLOCK_TOLERANCE_S = 0.1
RESUME_SHARE = 0.2  # of the velocity limits, at the beginning of a motion
START_TOLERANCE_M = 0.01  # outside the workspace, and then only inwards


@dataclass(frozen=True)
class Command:
    """What to send to the joints now.

    positions: f64[A] in the executor's joint order, robot units, or None while 'waiting'.
        float64, since rounding to float32 reads as 1e-2 rad/s^2 at 100 Hz.
    velocities: f64[A] per second, of the step that leads to `positions`. Both read-only.
    reason: why the state is not 'tracking', else ''.
    """

    positions: F64 | None
    velocities: F64 | None
    state: CommandState
    reason: str = ""


_COUNTERS = tuple(f.name for f in fields(ExecutorStats) if f.name != "last_refusal")


class ChunkExecutor:
    """Consumes chunks at any rate, gives one limited command a tick. One thread owns it.

    limits: f32[A], in the order of `joint_names`. Joints whose velocity and acceleration are
        inf follow the (crossfaded) chunk directly.
    crossfade_s: fade from the trajectory before to a new chunk's; 0 switches at once.
    blending, ensemble_decay: see `blending.Joining`.
    hold_timeout_s: how long the last row is held before the robot is stopped.
    max_chunk_age_s: no command is executed later than this after its observation.
    max_future_s: how far ahead of `now_s` a chunk's observation may be (clocks differ).
    start_tolerance: how far outside its limits, in robot units, a joint may be measured at the
        start; it is then brought to the limit. Beyond, the executor does not start.
    max_measured_age_s: no motion when the joints were measured longer ago than this.
    max_lag_s: no motion when a joint is farther from its command than it moves in this time at
        full speed.
    guard: who else may stop the robot; the caller keeps it and sets it.
    workspace: where the tool stays, None is anywhere.
    """

    def __init__(
        self,
        joint_names: Sequence[str],
        limits: JointLimits,
        control_dt_s: float = 0.01,
        crossfade_s: float = 0.1,
        hold_timeout_s: float = 0.5,
        max_chunk_age_s: float = 1.0,
        max_future_s: float = 0.05,
        start_tolerance: float = 0.05,
        max_measured_age_s: float = math.inf,
        max_lag_s: float = math.inf,
        blending: str = "crossfade",
        ensemble_decay: float = 0.5,
        guard: MotionGuard | None = None,
        workspace: WorkspaceBox | None = None,
    ) -> None:
        self.guard = guard or MotionGuard()
        self._workspace = WorkspaceWatch(workspace) if workspace is not None else None
        self.set_resume(0.0, math.inf)
        self.joint_names = tuple(joint_names)
        check_joints(self.joint_names, limits)
        if not (math.isfinite(control_dt_s) and control_dt_s > 0):
            raise ValueError(f"executor wants a positive control_dt_s, got {control_dt_s}")
        if not start_tolerance >= 0:
            raise ValueError(f"executor wants start_tolerance >= 0, got {start_tolerance}")
        self.set_times(crossfade_s, hold_timeout_s, max_chunk_age_s, max_future_s)
        self.set_trust(max_measured_age_s, max_lag_s)
        self._joining = Joining(blending, ensemble_decay)
        self.control_dt_s = control_dt_s
        self._start_tolerance = start_tolerance
        self._limits = limits
        self._limiter = JointLimiter(limits, control_dt_s)
        self._started = self._braking = False
        self.reset()

    @property
    def stats(self) -> ExecutorStats:
        return ExecutorStats(**self._counts, last_refusal=self._last_refusal)

    @property
    def resting(self) -> bool:
        """Whether the commands stand still, or there are none. Joints that follow directly, as a
        gripper does, always rest: they have nothing to decelerate by.
        """
        commanded = self._started or self._braking
        limited = np.isfinite(self._limits.acceleration)
        return not (commanded and self._limiter.velocities[limited].any())

    def reset(self) -> None:
        """Forget everything; the next start is from a newly measured position.

        Commands that were moving decelerate to rest first, within the limits: see `resting`.
        """
        self._braking = not self.resting
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._last_refusal = ""
        self._now_s = -math.inf
        self._started = False
        self._measured: F64 | None = None
        self._measured_at_s = -math.inf
        self._pending: Trajectory | None = None
        self._joining.forget()
        self._plan: Crossfade | None = None
        self._reference: F64 = np.zeros(len(self.joint_names))
        self._observed_at_s = -math.inf
        self._stop_reason = ""
        self._lag_fault = ""
        self._moving_ticks = 0

    def set_resume(self, ramp_s: float, max_start_s: float) -> None:
        """How motion begins, also after a stop: over `ramp_s` the allowed speed rises to the
        limits; no start from farther than a joint moves in `max_start_s` at full speed.
        """
        if not (0 <= ramp_s < math.inf and max_start_s > 0):
            raise ValueError(
                "executor wants a finite resume ramp and a positive start time in s, got "
                f"{ramp_s}, {max_start_s}"
            )
        self._ramp_s, self._max_start_s = ramp_s, max_start_s

    def set_times(
        self,
        crossfade_s: float,
        hold_timeout_s: float,
        max_chunk_age_s: float,
        max_future_s: float = 0.05,
    ) -> None:
        """Change the times, also while running; ValueError if one makes no sense."""
        times = (crossfade_s, hold_timeout_s, max_chunk_age_s, max_future_s)
        if not all(math.isfinite(x) and x >= 0 for x in times) or max_chunk_age_s == 0:
            raise ValueError(
                "executor wants finite times of at least 0 s and a positive max_chunk_age_s, got "
                f"{crossfade_s=}, {hold_timeout_s=}, {max_chunk_age_s=}, {max_future_s=}"
            )
        self._crossfade_s, self._hold_timeout_s = crossfade_s, hold_timeout_s
        self._max_chunk_age_s, self._max_future_s = max_chunk_age_s, max_future_s

    def set_trust(self, max_measured_age_s: float, max_lag_s: float) -> None:
        """Change what is trusted of the robot, also while running; inf is any measurement."""
        if not (max_measured_age_s > 0 and max_lag_s > 0):
            raise ValueError(
                "executor wants positive max_measured_age_s and max_lag_s, got "
                f"{max_measured_age_s}, {max_lag_s}"
            )
        self._max_measured_age_s, self._max_lag_s = max_measured_age_s, max_lag_s

    def set_blending(self, blending: str, ensemble_decay: float) -> None:
        """How the next chunks join, also while running; ValueError names the choices."""
        self._joining.set(blending, ensemble_decay)

    def set_measured(self, positions: npt.ArrayLike, stamp_s: float) -> str:
        """Where the joints were at `stamp_s`, in the executor's order: the motion starts there
        and is watched by it.

        Returns '' or why the measurement is refused.
        """
        measured = np.array(positions, dtype=np.float64)
        if measured.shape != (len(self.joint_names),):
            return (
                f"measured positions want shape ({len(self.joint_names)},), "
                f"got {measured.shape}; order them by joint_names"
            )
        if not (np.isfinite(measured).all() and math.isfinite(stamp_s)):
            bad = [n for n, x in zip(self.joint_names, measured, strict=True) if not np.isfinite(x)]
            return (
                f"measured positions want finite values and stamp; got {bad} not finite, "
                f"stamp {stamp_s} s; check the joint state's source"
            )
        self._measured = measured
        self._measured_at_s = stamp_s
        return ""

    def clock_jumped(self, now_s: float, by_s: float) -> None:
        """The caller's clock was set to `now_s`, `by_s` away from where it should be.

        What chunks and measurements say of the old time is void: the robot decelerates to rest.
        """
        way = "ahead" if by_s > 0 else "back"
        self._begin_other_time(now_s, f"the clock jumped {way} by {abs(by_s):.3f} s")

    def accept(
        self,
        chunk: ActionChunk,
        joint_names: Sequence[str],
        now_s: float,
        allow_older: bool = False,
    ) -> str:
        """Follow `chunk` from now on; returns '' or why it is refused.

        joint_names: of the chunk's columns; any order, the same joints as the executor's.
        allow_older: take a chunk whose observation is older than the current chunk's.
        A refused chunk changes nothing but the counters.
        """
        reason = self._refusal(chunk, tuple(joint_names), now_s, allow_older)
        if reason:
            self._counts["refused"] += 1
            self._last_refusal = reason
            return reason
        self._counts["accepted"] += 1
        self._advance_clock(now_s)
        self._observed_at_s = chunk.observed_at_s
        self._follow(self._trajectory(chunk, joint_names), self._now_s)
        return ""

    def command(self, now_s: float) -> Command:
        """The command of this tick; to be called once every `control_dt_s`."""
        self._advance_clock(now_s)
        now_s = self._now_s
        if self._braking:
            return self._come_to_rest()
        if not self._started:
            reason = self._start(now_s)
            if reason:
                return Command(None, None, "waiting", reason)
        state, reason = self._state(now_s)
        self._moving_ticks = 0 if state == "stopped" else self._moving_ticks + 1
        if state == "stopped":
            self._stop(reason)
            self._limiter.brake()
        else:
            self._track(now_s)
        self.guard.note("stop", state == "stopped")
        self.guard.note("hold", state == "holding")
        return self._commanded(state, reason)

    def _come_to_rest(self) -> Command:
        """After a reset. Where the joints were measured while they moved is no place to start."""
        self._limiter.brake()
        self._braking = not self.resting
        self._measured = None
        return self._commanded("stopped", "reset: decelerating to rest")

    def _commanded(self, state: CommandState, reason: str) -> Command:
        positions, velocities = self._limiter.positions, self._limiter.velocities
        # The next step starts from these very arrays.
        positions.flags.writeable = velocities.flags.writeable = False
        return Command(positions, velocities, state, reason)

    def _refusal(
        self, chunk: ActionChunk, chunk_joints: tuple[str, ...], now_s: float, allow_older: bool
    ) -> str:
        jumped = self._went_back_s(now_s) > CLOCK_TOLERANCE_S
        newest_s = -math.inf if allow_older or jumped else self._observed_at_s
        return form_refusal(chunk, chunk_joints, self.joint_names) or time_refusal(
            chunk,
            now_s if jumped else max(now_s, self._now_s),
            newest_s,
            self._max_chunk_age_s,
            self._max_future_s,
        )

    def _trajectory(self, chunk: ActionChunk, joint_names: Sequence[str]) -> Trajectory:
        columns = [list(joint_names).index(name) for name in self.joint_names]
        return Trajectory(
            rows=chunk.actions[:, columns].astype(np.float64),
            starts_at_s=chunk.observed_at_s,
            dt_s=chunk.dt_s,
            ends_at_s=min(chunk.ends_at_s, chunk.observed_at_s + self._max_chunk_age_s),
        )

    def _went_back_s(self, now_s: float) -> float:
        if not math.isfinite(now_s):
            raise ValueError(f"executor wants a finite time in s, got {now_s}")
        return self._now_s - now_s

    def _advance_clock(self, now_s: float) -> None:
        back_s = self._went_back_s(now_s)
        if back_s <= CLOCK_TOLERANCE_S:
            self._now_s = max(self._now_s, now_s)
            return
        self._begin_other_time(now_s, f"the clock went back by {back_s:.3f} s")

    def _begin_other_time(self, now_s: float, how: str) -> None:
        self._counts["clock_jumps"] += 1
        self._now_s = now_s
        self._observed_at_s = -math.inf
        self._measured = None
        self._pending = None
        self._stop(f"{how}; waiting for a chunk of the new time")

    def _start(self, now_s: float) -> str:
        """Begin at the measured position; returns '' or what is missing."""
        if self.guard.halt:
            self._pending = None
            return self.guard.halt
        if self._measured is None:
            return "the joints have not been measured; check the joint state topic"
        if self._pending is None or self._pending.ends_at_s < now_s:
            return "no valid chunk has come; check the policy"
        max_age_s = min(self._max_measured_age_s, self._max_chunk_age_s)
        fault = age_fault(now_s - self._measured_at_s, max_age_s) or self._outside_limits(
            self._measured
        )
        fault = fault or self._bad_beginning(self._measured, self._pending, now_s)
        if fault:
            return fault
        self._limiter.start(self._measured)
        if self._workspace is not None:
            self._workspace.start(self._limiter.positions)
        self._started = True
        self._follow(self._pending, now_s)
        self._pending = None
        return ""

    def _bad_beginning(self, measured: F64, pending: Trajectory, now_s: float) -> str:
        """Why the chunk does not begin where the robot is, or the robot not in its workspace."""
        fault = distance_fault(
            measured,
            self._limiter.clip(pending.at(now_s)),
            self._limits.velocity.astype(np.float64),
            self._max_start_s,
            self.joint_names,
        )
        if not fault and self._workspace is not None:
            fault = self._workspace.box.refusal(measured, START_TOLERANCE_M)
        self.guard.note("start_refused", bool(fault))
        return fault

    def _outside_limits(self, measured: F64) -> str:
        outside = np.abs(self._limiter.clip(measured) - measured)
        outside[np.isinf(self._limits.velocity)] = 0.0
        worst = int(outside.argmax())
        if outside[worst] <= self._start_tolerance:
            return ""
        return (
            f"joint {self.joint_names[worst]!r} measured at {measured[worst]:.4f}, outside its "
            f"limits [{self._limits.lower[worst]:.4f}, {self._limits.upper[worst]:.4f}]; "
            "move it inside or correct the limits"
        )

    def _follow(self, trajectory: Trajectory, now_s: float) -> None:
        if not self._started:
            self._pending = trajectory
            return
        if self._plan is None:
            self._reference = self._limiter.clip(self._limiter.positions)
            self._plan = Crossfade(constant(self._reference))
        reference, fade_s = self._joining.join(trajectory, now_s, self._crossfade_s)
        self._plan.add(reference, now_s, fade_s)

    def _state(self, now_s: float) -> tuple[CommandState, str]:
        fault = self._fault(now_s)
        if fault:
            return "stopped", fault
        if self._plan is None:
            return "stopped", self._stop_reason
        past_s = now_s - self._plan.newest.ends_at_s
        if past_s <= 0.0:
            return "tracking", ""
        if past_s <= self._hold_timeout_s:
            return "holding", "the chunk has run out; holding its last command"
        return "stopped", (
            f"no chunk came within hold_timeout_s = {self._hold_timeout_s:g} s "
            "after the last one ran out"
        )

    def _fault(self, now_s: float) -> str:
        """Why the robot must not be moved on; a lag stays one until `reset`."""
        if self.guard.halt or self._lag_fault:
            return self.guard.halt or self._lag_fault
        measured_at_s = -math.inf if self._measured is None else self._measured_at_s
        fault = age_fault(now_s - measured_at_s, self._max_measured_age_s)
        if fault or self._measured is None:
            return fault
        self._lag_fault = lag_fault(
            self._measured,
            self._limiter.positions,
            self._limits.velocity.astype(np.float64),
            self._max_lag_s,
            self.joint_names,
        )
        return self._lag_fault

    def _track(self, now_s: float) -> None:
        assert self._plan is not None
        wanted, clip = self._plan.follow(now_s), self._limiter.clip
        reference = clip(wanted.at)
        before = self._limiter.positions, self._limiter.velocities
        done = self._limiter.follow(
            self._reference, reference, clip(wanted.low), clip(wanted.high), self._speed_share()
        )
        self._reference = reference
        self.guard.note("resume_slew", done.resume)
        if self._workspace is not None:
            inside = self._workspace.allows(self._limiter.way_to_rest())
            if not inside:
                self._limiter.positions, self._limiter.velocities = before
                self._limiter.brake()
            self.guard.note("workspace", not inside)
        outside = bool((wanted.at != reference).any())
        self._counts["clamped_position"] += done.position or outside
        self._counts["clamped_velocity"] += done.velocity
        self._counts["clamped_acceleration"] += done.acceleration

    def _speed_share(self) -> float:
        if self._ramp_s == 0.0:
            return 1.0
        risen = self._moving_ticks * self.control_dt_s / self._ramp_s
        return min(1.0, RESUME_SHARE + (1.0 - RESUME_SHARE) * risen)

    def _stop(self, reason: str) -> None:
        self._plan = None
        self._joining.forget()
        self._stop_reason = reason
