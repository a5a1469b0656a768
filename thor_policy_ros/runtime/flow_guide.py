"""From what a chunk is to continue, in robot units, to guidance of the flow."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.runtime.real_time_chunking import RealTimeChunking
from thor_policy_ros.types import F32, Guidance

LARGEST_TARGET = 10.0
"""Of normalised actions, which are within about 1: beyond, a dimension's statistics are those of
a constant, and the flow has never seen such a value."""


class Normalises(Protocol):
    """A policy whose commands can be turned back into what its flow gives."""

    @property
    def config(self) -> PolicyConfig: ...

    def normalise(self, actions: F32, state: F32) -> F32:
        """Commands, f32[H,A], robot units -> normalised actions, f32[H,32], made from `state`."""
        ...


def guidance_for(
    chunking: RealTimeChunking | None,
    policy: Normalises,
    state: F32,
    observed_at_s: float,
    now_s: float,
    prompt: str,
) -> Guidance | None:
    """Guidance of a chunk that is inferred from now on; None where it is off or nothing is known.

    state, observed_at_s: of the observation that the prefix was made from, to which the flow's
    actions are relative. ValueError where the rules want what the checkpoint was not trained for.
    """
    if chunking is None or not chunking.rules.enabled:
        return None
    rules, config = chunking.rules, policy.config
    if rules.mode == "trained" and not config.trained_prefix_rows:
        raise ValueError(
            f"checkpoint {config.name!r} was not trained with a prefix of actions; "
            "set rtc_mode to 'guided'"
        )
    rows = config.model.action_horizon
    found = chunking.continuation(rows, config.action_dt_s, observed_at_s, now_s, prompt)
    if found is None:
        return None
    weights, clean_rows = found.weights, 0
    if rules.mode == "trained":
        clean_rows = min(_leading_ones(weights), config.trained_prefix_rows, rows - 1)
        weights = np.where(weights >= 1.0, weights, np.float32(0.0))
    target = policy.normalise(np.where(weights[:, None] > 0, found.actions, 0.0), state)
    target = np.clip(target, -LARGEST_TARGET, LARGEST_TARGET)
    return Guidance(target, weights, rules.max_weight, clean_rows)


def _leading_ones(weights: F32) -> int:
    return int((np.cumprod(weights >= 1.0)).sum())
