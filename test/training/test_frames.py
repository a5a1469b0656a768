"""The expert's answers on the device, and the statistics that normalise them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from support.demo_training import toy_config, toy_data

from thor_policy_ros.model.norm_stats import NormStats
from thor_policy_ros.sim.expert import expert_chunk
from thor_policy_ros.sim.instructions import FOLLOW, HOLD_STILL
from thor_policy_ros.training.expert_data import ExpertData
from thor_policy_ros.training.frames import (
    SUCTION,
    SUCTION_MARGIN,
    quantile_stats,
    split_frames,
)

CONFIG = toy_config()


@pytest.fixture(scope="module")
def data() -> ExpertData:
    return toy_data()


def absolute(normalised: torch.Tensor, state: np.ndarray, stats: dict) -> np.ndarray:
    """What the runtime would make of a normalised chunk."""
    held = {p: {n: np.asarray(v) for n, v in columns.items()} for p, columns in stats.items()}
    affine = NormStats(held["state"], held["actions"], "test").affine("actions", "quantile", 5)
    actions = affine.unnormalise(normalised.double().numpy())
    actions[:, :SUCTION] += state[:SUCTION]
    return actions


@pytest.mark.parametrize(("target", "verb"), [(0, 0), (2, FOLLOW), (0, HOLD_STILL)])
def test_the_runtime_would_execute_what_the_expert_said(
    data: ExpertData, target: int, verb: int
) -> None:
    frames, _, stats = split_frames(data, CONFIG, "cpu")
    wanted = expert_chunk(
        data.state,
        data.held,
        data.objects,
        data.velocities,
        np.full(len(data), target),
        np.full(len(data), verb),
    )
    for row in range(0, len(frames), 7):  # training frames come first
        chunk = frames.still[row] if verb == HOLD_STILL else frames.actions[row, target, verb]
        got = absolute(chunk, data.state[row], stats)
        np.testing.assert_allclose(got[:, :SUCTION], wanted[row, :, :SUCTION], atol=1e-5)
        np.testing.assert_array_equal(got[:, SUCTION] > 0.5, wanted[row, :, SUCTION] > 0.5)
        assert np.abs(got[:, SUCTION] - 0.5).max() <= 0.5 - SUCTION_MARGIN + 1e-5


def test_validation_episodes_are_not_trained_on(data: ExpertData) -> None:
    frames, held_out, _ = split_frames(data, CONFIG, "cpu")
    assert len(frames) + len(held_out) == len(data)
    last = data.episode == data.episode.max()
    torch.testing.assert_close(held_out.images, torch.from_numpy(data.images[last]))


def test_one_episode_is_not_enough(data: ExpertData) -> None:
    first = data.episode == 0
    alone = ExpertData(**{f.name: getattr(data, f.name)[first] for f in fields(ExpertData)})
    with pytest.raises(ValueError, match="at least 2 episodes"):
        split_frames(alone, CONFIG, "cpu")


def test_quantiles_of_known_numbers() -> None:
    stats = quantile_stats(np.linspace(0, 100, 101, dtype=np.float32)[:, None])
    assert stats["q01"] == pytest.approx([1.0]) and stats["q99"] == pytest.approx([99.0])
    assert stats["mean"] == pytest.approx([50.0])
