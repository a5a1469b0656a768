"""Which live parameters a soak changes, how far, and what it expects the node to say of it.

Working ranges are those within which the studies of reuse and of smooth motion found the demo's
success unchanged at 0.08 m/s; what a node declares is wider. Wrong values are drawn too, to be
refused.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.parameter import Parameter

from thor_policy_ros.backends.registry import BACKENDS, availability
from thor_policy_ros.ros.parameter_tables import EXECUTOR, POLICY
from thor_policy_ros.ros.parameters import ParameterRow
from thor_policy_ros.ros.reuse_parameters import reuse_refusal
from thor_policy_ros.runtime.blending import BLENDINGS
from thor_policy_ros.runtime.real_time_chunking import MODES as RTC_MODES
from thor_policy_ros.runtime.real_time_chunking import SCHEDULES
from thor_policy_ros.runtime.reuse import MODES as REUSE_MODES

POLICY_NODE, EXECUTOR_NODE = "policy_node", "chunk_executor_node"
WRONG_SHARE, BACKEND_SHARE = 0.15, 0.2


@dataclass(frozen=True)
class Between:
    """A number drawn evenly; an integer where the parameter is one."""

    low: float
    high: float


Working = Between | tuple[Any, ...]

WORKING: Mapping[str, Mapping[str, Working]] = {
    POLICY_NODE: {
        # 0 would take the name's own, up to every third tick, which lost 2 in 100 in the study.
        "kv_reuse_freq": (1, 2),
        "reuse_mode": REUSE_MODES,
        "kv_max_age_ms": (0.0, 300.0, 1000.0),
        "kv_refresh_threshold": Between(0.0, 0.05),
        "kv_refresh_on_state": (False, True),
        "min_denoise_steps": Between(1, 3),
        "switch_mode": ("auto", "beside"),
        "control_rate_hz": Between(8.0, 15.0),
        "num_denoise_steps": Between(2, 6),
        "seed": (-1, 0, 7, 2**31 - 1),
        "max_input_age_s": Between(0.2, 0.5),
        "max_input_skew_s": Between(0.1, 0.3),
        "accept_zero_stamps": (False, True),
        "deadline_ms": (0.0, 100.0, 200.0),
        "deadline_warn_ratio": Between(0.0, 1.0),
        "deadline_error_ratio": Between(0.0, 1.0),
        "diagnostics_hysteresis": Between(0.0, 0.9),
        "input_age_warn_ratio": Between(0.0, 1.0),
        "input_rate_warn_ratio": Between(0.0, 2.0),
        "frozen_camera_after_s": Between(0.0, 10.0),
        "gpu_temperature_warn_c": Between(50.0, 100.0),
        "gpu_temperature_error_c": Between(50.0, 100.0),
        "gpu_memory_warn_ratio": Between(0.0, 1.0),
        "chunk_blending": BLENDINGS,
        "rtc_execution_horizon": Between(0, 6),
        "rtc_max_guidance_weight": Between(0.0, 1.5),
        "rtc_prefix_attention_schedule": SCHEDULES,
        "rtc_mode": RTC_MODES,
    },
    EXECUTOR_NODE: {
        "crossfade_s": Between(0.0, 0.2),
        "hold_timeout_s": Between(0.2, 1.0),
        "max_chunk_age_s": Between(0.8, 2.0),
        "max_joint_state_age_s": Between(0.3, 1.0),
        "diagnostics_hysteresis": Between(0.0, 0.9),
        "max_lag_s": Between(0.4, 1.0),
        "tick_jitter_warn_ms": Between(0.0, 50.0),
        "chunk_blending": ("", *BLENDINGS),
        "ensemble_decay": Between(0.2, 2.0),
        "resume_ramp_s": Between(0.0, 0.5),
        "max_start_s": Between(0.8, 2.0),
        "heartbeat_timeout_s": Between(0.8, 2.0),
    },
}

LEFT_OUT: Mapping[str, str] = {
    "backend": "drawn by itself, from those that run here",
    "instruction": "the simulated robot gives the words of each episode",
    "frozen_camera_action": "a simulated camera has no noise, so a robot that rests would be held",
    "inject_latency_ms": "latency added on purpose has a study of its own",
    "inject_latency_distribution": "as inject_latency_ms",
    "inject_latency_spike_ms": "as inject_latency_ms",
    "inject_latency_spike_ratio": "as inject_latency_ms",
}

ROWS: Mapping[str, Mapping[str, ParameterRow]] = {
    POLICY_NODE: {row.name: row for row in POLICY if row.live},
    EXECUTOR_NODE: {row.name: row for row in EXECUTOR if row.live},
}


@dataclass(frozen=True)
class Change:
    """One parameter to set. expected: why the node must refuse it, '' where it must not."""

    node: str
    name: str
    value: Any
    expected: str = ""


class RandomChanges:
    """Draws changes; the same seed and answers give the same ones.

    start: parameters of each node that are not the defaults. values: as the nodes have them now.
    trained_prefix: whether the checkpoint can continue a chunk as trained.
    """

    def __init__(
        self,
        seed: int,
        backends: Sequence[str],
        start: Mapping[str, Mapping[str, Any]],
        trained_prefix: bool = False,
    ) -> None:
        self._random = random.Random(seed)
        self._backends = tuple(backends)
        self._trained_prefix = trained_prefix
        self.values = _with_defaults(start)

    def pause_s(self, mean_s: float) -> float:
        return min(self._random.expovariate(1.0 / mean_s), 5.0 * mean_s)

    def draw(self) -> Change:
        kind = self._random.random()
        if kind < WRONG_SHARE:
            return self._wrong()
        if kind < WRONG_SHARE + BACKEND_SHARE:
            others = [name for name in self._backends if name != self.backend]
            return self._judged(POLICY_NODE, "backend", self._random.choice(others or [""]))
        return self._working()

    @property
    def backend(self) -> str:
        return str(self.values[POLICY_NODE]["backend"])

    def took(self, change: Change) -> None:
        """The node has the value now."""
        self.values[change.node][change.name] = change.value

    def back_to(self, wanted: Mapping[str, Mapping[str, Any]]) -> list[Change]:
        """What leads to these parameters, defaults for the others, without a refusal on the way."""
        changes = [
            Change(node, name, value)
            for node, values in _with_defaults(wanted).items()
            for name, value in values.items()
            if value != self.values[node][name]
        ]
        return sorted(changes, key=lambda change: change.name not in ("rtc_mode", *_REUSE))

    def differing_from(self, other: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The values now, by node and name, that are not those."""
        return {
            f"{change.node}.{change.name}": self.values[change.node][change.name]
            for change in self.back_to(other)
        }

    def _working(self) -> Change:
        node = POLICY_NODE if self._random.random() < 0.7 else EXECUTOR_NODE
        name = self._random.choice(sorted(WORKING[node]))
        range_ = WORKING[node][name]
        if isinstance(range_, tuple):
            return self._judged(node, name, self._random.choice(range_))
        whole = ROWS[node][name].type == "int"
        value: float = self._random.uniform(range_.low, range_.high)
        if whole:
            value = self._random.randint(int(range_.low), int(range_.high))
        return self._judged(node, name, value)

    def _wrong(self) -> Change:
        """Of any live parameter: the wrong type, no number, out of range, no such choice."""
        node = self._random.choice(sorted(ROWS))
        row = ROWS[node][self._random.choice(sorted(ROWS[node]))]
        values: list[tuple[Any, str]] = [([1.0, 2.0], "type")]
        if row.type == "double":
            values += [(math.nan, "not a number"), (math.inf, "not finite")]
        if row.bounds is not None:
            kind = float if row.type == "double" else int
            values += [(kind(row.bounds[0] - 1), "below"), (kind(row.bounds[1] + 1), "above")]
        if row.choices:
            values += [("no_such_choice", "choice")]
        if row.name == "backend":
            values += [(name, "missing") for name in BACKENDS if availability(name)]
        value, expected = self._random.choice(values)
        return Change(node, row.name, value, expected)

    def _judged(self, node: str, name: str, value: Any) -> Change:
        """With what the other parameters make of it."""
        wanted = {**self.values[node], name: value}
        refusal = ""
        if node == POLICY_NODE:
            continued = (wanted["chunk_blending"], wanted["rtc_mode"]) == ("rtc", "trained")
            refusal = reuse_refusal(wanted) or (
                "not trained" if continued and not self._trained_prefix else ""
            )
        return Change(node, name, value, refusal)


_REUSE = ("kv_reuse_freq", "reuse_mode")


def _with_defaults(given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        node: {**{name: row.default for name, row in rows.items()}, **given.get(node, {})}
        for node, rows in ROWS.items()
    }


def message_of(change: Change) -> Any:
    """The change as rcl_interfaces has it."""
    return Parameter(change.name, value=change.value).to_parameter_msg()
