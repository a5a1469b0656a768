"""What a client asks for in one frame, and what it is answered.

Beyond openpi's protocol a client of this server may fix the noise and the number of denoise steps
of a request (`NOISE`, `NUM_STEPS`): that makes an answer repeatable, so that it can be compared
with a reference. Other servers pass such names over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.serving.inference_worker import Answer
from thor_policy_ros.serving.observation_keys import ObservationKeys, observation_of
from thor_policy_ros.serving.served_policy import MAX_STEPS, Request
from thor_policy_ros.types import F32

NOISE, NUM_STEPS = "thor/noise", "thor/num_steps"


@dataclass(frozen=True)
class RequestForm:
    """What every request of a server is read with. num_steps, prompt: where a client says none."""

    config: PolicyConfig
    keys: ObservationKeys
    num_steps: int = 10
    prompt: str = ""

    def facts(self) -> dict[str, Any]:
        """For a client that reads the server's metadata."""
        return {
            "observation_keys": list(self.keys.names),
            "optional_keys": [*sorted(self.keys.optional), NOISE, NUM_STEPS],
        }

    def request(self, message: Mapping[str, Any], stamp_s: float) -> Request:
        """ValueError says what is wrong with the message: wanted and got."""
        steps = message.get(NUM_STEPS, self.num_steps)
        if not isinstance(steps, (int, np.integer)) or not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"{NUM_STEPS}: wanted a whole number from 1 to {MAX_STEPS}: {steps!r}")
        observation = observation_of(message, self.keys, stamp_s, self.prompt)
        return Request(observation, int(steps), self._noise(message.get(NOISE)))

    def _noise(self, noise: Any) -> F32 | None:
        wanted = (self.config.model.action_horizon, self.config.model.action_dim)
        if noise is None:
            return None
        if not isinstance(noise, np.ndarray) or noise.shape != wanted:
            shape = list(noise.shape) if isinstance(noise, np.ndarray) else type(noise).__name__
            raise ValueError(f"{NOISE}: wanted floats {list(wanted)}, got {shape}")
        if not np.isfinite(noise).all():
            raise ValueError(f"{NOISE}: wanted finite numbers")
        return noise.astype(np.float32)


def reply_to(answer: Answer, before_ms: float | None) -> dict[str, Any]:
    """As openpi's server replies. before_ms: whole time of the client's request before, if any."""
    timing = {
        "infer_ms": answer.infer_ms,
        "queue_ms": answer.queue_ms,
        "batch": answer.batch,
    }
    if before_ms is not None:
        timing["prev_total_ms"] = before_ms
    return {
        "actions": answer.chunk.actions,
        "policy_timing": {"infer_ms": answer.infer_ms},
        "server_timing": timing,
    }
