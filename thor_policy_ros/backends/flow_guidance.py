"""Real-time chunking: pulls a flow towards actions that the robot will already have executed.

In-painting by guidance (Black et al. 2025, "Real-time execution of action chunking flow
policies") with the identity for the Jacobian of the clean actions by the noisy ones: the
correction then follows from x_t and v alone, so it runs between the steps of any engine,
frozen and captured ones too, and costs no backward pass.

H horizon, D action dimensions of the model, N denoise steps; t = 1 is noise, t = 0 the actions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.types import F32, Guidance


def guided_velocity(
    x_t: Tensor, velocity: Tensor, t: float, target: Tensor, gain: Tensor
) -> Tensor:
    """The velocity that also leads to `target`, where `gain` is above 0.

    x_t, velocity, target: f32[1,H,D]; gain: f32[1,H,1], of this step. Where it is 0 the velocity
    is what it was, to the bit. No branch and no allocation that depends on values: it may be
    captured in a CUDA graph.
    """
    clean = x_t - t * velocity
    return velocity - gain * (target - clean)


def step_times(num_steps: int) -> tuple[float, ...]:
    """The flow's time at each of Euler's steps: 1, 1 - 1/N, ..., 1/N."""
    return tuple(1 - step / num_steps for step in range(num_steps))


def guidance_gain(t: float, num_steps: int, max_weight: float) -> float:
    """How strongly a fully weighted row is pulled at time t.

    (1-tau)/tau * ((1-tau)^2 + tau^2)/(1-tau)^2 with tau = 1 - t, as in the paper, bounded by
    `max_weight`, and by N: a step of 1/N then goes at most to the target, never past it.
    """
    tau = 1.0 - t
    bound = min(max_weight, float(num_steps))
    if tau * t * bound <= t * t + tau * tau:
        return bound
    return (t * t + tau * tau) / (tau * t)


def step_gains(guidance: Guidance, num_steps: int) -> F32:
    """f32[N,H]: each row's gain at each step."""
    gains = [guidance_gain(t, num_steps, guidance.max_weight) for t in step_times(num_steps)]
    return np.outer(gains, guidance.weights).astype(np.float32)


def check_guidance(guidance: Guidance, shape: tuple[int, int], clean_rows: bool = False) -> None:
    """ValueError for guidance that does not fit a flow of `shape`, (H, D).

    clean_rows: whether the caller can condition on a prefix of clean rows.
    """
    if guidance.actions.shape != shape:
        raise ValueError(f"guidance wants actions of shape {shape}, got {guidance.actions.shape}")
    if guidance.weights.shape != shape[:1]:
        raise ValueError(f"guidance wants {shape[0]} weights, got shape {guidance.weights.shape}")
    if not ((guidance.weights >= 0) & (guidance.weights <= 1)).all():
        raise ValueError(f"guidance wants weights in [0,1], got {guidance.weights}")
    if not np.isfinite(guidance.actions).all():
        raise ValueError("guidance wants finite actions, also where the weight is 0")
    if not 0 <= guidance.max_weight < np.inf:
        raise ValueError(f"guidance wants a finite max_weight >= 0, got {guidance.max_weight}")
    if not 0 <= guidance.clean_rows < shape[0]:
        raise ValueError(
            f"guidance wants 0 to {shape[0] - 1} clean rows, so that one is left to infer; "
            f"got {guidance.clean_rows}"
        )
    if guidance.clean_rows and not clean_rows:
        raise ValueError(
            "this engine or checkpoint takes no prefix of clean actions; use guidance by weights, "
            "or backend 'pytorch' and a checkpoint trained with prefixes"
        )


class GuidanceBuffers:
    """Guidance on the device, at fixed addresses: a graph of N steps may be captured with it.

    Off (all gains 0) until `set`. clean_rows: whether the engine also takes rows as they are.
    """

    def __init__(
        self,
        num_steps: int,
        horizon: int,
        action_dim: int,
        device: torch.device | str,
        clean_rows: bool = False,
    ) -> None:
        self._clean_rows = clean_rows
        self._shape = (horizon, action_dim)
        self._times = step_times(num_steps)
        self.target = torch.zeros(1, horizon, action_dim, device=device)
        self.gains = torch.zeros(num_steps, 1, horizon, 1, device=device)

    def set(self, guidance: Guidance | None) -> None:
        """Take the guidance of the next denoising; None is off. Never waits for the device.

        ValueError for guidance that does not fit.
        """
        if guidance is None:
            self.gains.zero_()
            return
        check_guidance(guidance, self._shape, self._clean_rows)
        self._copy(self.target, guidance.actions[None])
        self._copy(self.gains, step_gains(guidance, len(self._times))[:, None, :, None])

    def guided(self, step: int, x_t: Tensor, velocity: Tensor) -> Tensor:
        """`guided_velocity` of Euler's step number `step`, from 0; f32[1,H,D]."""
        return guided_velocity(x_t, velocity, self._times[step], self.target, self.gains[step])

    @staticmethod
    def _copy(to: Tensor, values: F32) -> None:
        source = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        if to.device.type == "cuda":
            source = source.pin_memory()
        to.copy_(source, non_blocking=True)
