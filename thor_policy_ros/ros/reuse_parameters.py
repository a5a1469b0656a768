"""When the prefix may be used again: the policy node's parameters, and the rules they make.

`reuse_mode` is 'continue' unless set: in the study of docs/reuse.md denoising anew from an old
prefix was never better than the chunk in hand, and cost device time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from thor_policy_ros.backends.registry import REMOTE, spec_of
from thor_policy_ros.ros.parameters import ParameterRow
from thor_policy_ros.runtime.reuse import ADAPTIVE_THRESHOLD, MODES, ReuseRules

REUSE = (
    ParameterRow(
        "kv_reuse_freq",
        "int",
        0,
        "Refill the prefix every so many ticks, missed ones too; 1: every tick; 0: as the "
        "backend's name says",
        bounds=(0, 100),
        live=True,
    ),
    ParameterRow(
        "reuse_mode",
        "string",
        "continue",
        "Between refills: continue computes nothing, since the chunk in hand goes on; fixed "
        "denoises anew from the same prefix; adaptive too, but refills as soon as an image "
        "changes; deadline takes what is in time (full frame, fewer steps, reuse, none)",
        choices=MODES,
        live=True,
    ),
    ParameterRow(
        "kv_max_age_ms",
        "double",
        0.0,
        "Refill when the prefix's observation is older than this; 0: no bound but kv_reuse_freq",
        "ms",
        bounds=(0.0, 60_000.0),
        live=True,
    ),
    ParameterRow(
        "kv_refresh_threshold",
        "double",
        0.0,
        "Refill when a camera's picture differs from the prefix's by more than this share of "
        "full scale, and keep the vision tokens of the others; 0: off, in adaptive "
        f"{ADAPTIVE_THRESHOLD:g}",
        bounds=(0.0, 1.0),
        live=True,
    ),
    ParameterRow(
        "kv_refresh_on_state",
        "bool",
        True,
        "Refill when the state in the prompt changes, which it does whenever the robot moves; "
        "false: the state is as old as the images",
        live=True,
    ),
    ParameterRow(
        "min_denoise_steps",
        "int",
        1,
        "Fewest denoise steps that reuse_mode deadline may choose",
        bounds=(1, 100),
        live=True,
    ),
)


class Values(Protocol):
    """Parameters by name."""

    def __getitem__(self, name: str, /) -> Any: ...


def reuse_rules(values: Values, deadline_ms: float) -> ReuseRules:
    """The rules as the parameters are now. deadline_ms: of a frame."""
    return ReuseRules(
        mode=values["reuse_mode"],
        max_age_ms=values["kv_max_age_ms"],
        refresh_threshold=values["kv_refresh_threshold"],
        refresh_on_state=values["kv_refresh_on_state"],
        deadline_ms=deadline_ms,
        min_steps=values["min_denoise_steps"],
    )


def reuse_refusal(values: Mapping[str, Any]) -> str:
    """Why these parameters do not go together, or ''."""
    name = values["backend"]
    if not spec_of(name).pipelined and name != REMOTE.name:
        return ""
    if values["kv_reuse_freq"] > 1:
        return f"backend {name!r} refills every frame; set kv_reuse_freq to 0 or 1"
    if values["reuse_mode"] in ("adaptive", "deadline"):
        return f"backend {name!r} refills every frame; set reuse_mode to continue or fixed"
    return ""
