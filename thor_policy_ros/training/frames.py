"""Recorded frames on the training device, with the expert's answer to every instruction.

Hindsight: one frame teaches each of its three objects under both verbs, and what to do
when nothing is asked. All chunks are computed once, before training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.sim.expert import expert_chunk
from thor_policy_ros.sim.instructions import HOLD_STILL, VERBS
from thor_policy_ros.training.expert_data import ExpertData
from thor_policy_ros.types import F32

NUM_TARGETS = 3
VALIDATION_EPISODES = 0.02
EXECUTED_ROWS = 5
SPEED_UNIT_M_S = np.float32(0.1)
SUCTION = 4
SUCTION_MARGIN = 0.1
"""Off is learnt as 0.1 and on as 0.9: what the flow leaves of its noise stays within [0,1]."""


@dataclass(frozen=True)
class Frames:
    """N frames as tensors on one device.

    images: u8[N,V,S,S,3]; state: f32[N,S] normalised; actions: f32[N,3,2,H,A] normalised
    chunks by target and verb; still: f32[N,H,A], the chunk of the blank instruction;
    uv: f32[N,V,3,2], objects' image positions; velocities: f32[N,3,2], of the objects, in
    units of SPEED_UNIT_M_S; colours, shapes: int64[N,3].
    """

    images: Tensor
    state: Tensor
    actions: Tensor
    still: Tensor
    uv: Tensor
    velocities: Tensor
    colours: Tensor
    shapes: Tensor

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def device(self) -> torch.device:
        return self.images.device


def relative_chunks(data: ExpertData, config: PolicyConfig) -> tuple[F32, F32]:
    """The expert's chunks relative to the measured joints where the config says so.

    Returns f32[N,3,2,H,A] by target and verb, and f32[N,H,A] for the blank instruction.
    """

    def chunk(target: int, verb: int) -> F32:
        count = len(data.state)
        targets = np.full(count, target)
        verbs = np.full(count, verb)
        actions = expert_chunk(data.state, data.held, data.objects, data.velocities, targets, verbs)
        actions[..., SUCTION] = SUCTION_MARGIN + (1 - 2 * SUCTION_MARGIN) * actions[..., SUCTION]
        return _relative(actions, data.state, config)

    spoken = range(len(VERBS) - 1)
    every = [np.stack([chunk(target, verb) for verb in spoken], 1) for target in range(NUM_TARGETS)]
    return np.stack(every, 1), chunk(0, HOLD_STILL)


def _relative(actions: F32, state: F32, config: PolicyConfig) -> F32:
    """actions f32[N,H,A] absolute -> relative to state f32[N,S] in the config's dimensions."""
    base = np.zeros((len(state), config.action_dim), np.float32)
    shared = min(config.action_dim, config.state_dim)
    base[:, :shared] = state[:, :shared]
    base *= np.asarray(config.relative_actions, np.float32)
    return (actions - base[:, None]).astype(np.float32)


def quantile_stats(values: F32) -> dict[str, list[float]]:
    """mean, std, q01, q99 of each column of f32[...,D], as `norm_stats.json` holds them."""
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    q01, q99 = np.quantile(flat, (0.01, 0.99), axis=0)
    stats = {"mean": flat.mean(0), "std": flat.std(0), "q01": q01, "q99": q99}
    return {name: [float(x) for x in column] for name, column in stats.items()}


def normalised(values: F32, stats: dict[str, list[float]]) -> F32:
    """Quantile normalisation to about [-1,1], without clipping."""
    low, high = np.asarray(stats["q01"]), np.asarray(stats["q99"])
    return ((values - low) / (high - low + 1e-6) * 2 - 1).astype(np.float32)


def split_frames(
    data: ExpertData, config: PolicyConfig, device: str
) -> tuple[Frames, Frames, dict[str, dict[str, list[float]]]]:
    """Training and validation frames (other episodes) and the norm statistics they use.

    Action statistics come from the rows that are executed before the next chunk comes, so
    that these fill the range; the later ones reach beyond it. ValueError for a single
    episode.
    """
    if data.episode.max() < 1:
        raise ValueError("training wants at least 2 episodes, one of them held out; got 1")
    actions, still = relative_chunks(data, config)
    executed = actions[..., :EXECUTED_ROWS, :]
    stats = {"state": quantile_stats(data.state), "actions": quantile_stats(executed)}
    columns: dict[str, Any] = {
        "images": data.images,
        "state": normalised(data.state, stats["state"]),
        "actions": normalised(actions, stats["actions"]),
        "still": normalised(still, stats["actions"]),
        "uv": data.object_uv,
        "velocities": data.velocities / SPEED_UNIT_M_S,
        "colours": data.colours.astype(np.int64),
        "shapes": data.shapes.astype(np.int64),
    }
    first_held_out = int(data.episode.max() * (1 - VALIDATION_EPISODES)) + 1
    held_out = data.episode >= first_held_out
    return _take(columns, ~held_out, device), _take(columns, held_out, device), stats


def _take(columns: dict[str, Any], which: Any, device: str) -> Frames:
    return Frames(
        **{
            name: torch.from_numpy(np.ascontiguousarray(x[which])).to(device)
            for name, x in columns.items()
        }
    )
