"""Recorded frames and the labels made from them."""

from dataclasses import fields

import numpy as np
import pytest

from thor_policy_ros.sim.instructions import FOLLOW, HOLD_STILL, PICK_UP, parse_instruction
from thor_policy_ros.training.disturbed_expert import FRAMES_PER_EPISODE, record_episodes
from thor_policy_ros.training.expert_data import ExpertData, generate, label_batch

EPISODES = 18  # two jobs, one of them not full
SIZE = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ExpertData:
    return generate(tmp_path_factory.mktemp("data"), EPISODES, seed=3, workers=2, image_size=SIZE)


def test_every_frame_is_there_with_its_shape(data):
    count = EPISODES * FRAMES_PER_EPISODE
    assert len(data) == count
    assert {f.name: getattr(data, f.name).shape for f in fields(data)} == {
        "images": (count, 2, SIZE, SIZE, 3),
        "state": (count, 5),
        "held": (count,),
        "objects": (count, 3, 3),
        "velocities": (count, 3, 2),
        "object_uv": (count, 2, 3, 2),
        "colours": (count, 3),
        "shapes": (count, 3),
        "episode": (count,),
        "tick": (count,),
        "speed": (count,),
    }
    np.testing.assert_array_equal(data.episode, np.repeat(np.arange(EPISODES), FRAMES_PER_EPISODE))
    assert data.images.reshape(count, -1).std(axis=1).min() > 0


def test_an_episode_depends_on_its_number_and_the_seed_alone(data):
    again = record_episodes(3, [17], SIZE)
    rows = data.episode == 17
    for name, values in again.items():
        kept = getattr(data, name)
        np.testing.assert_array_equal(kept[rows], values.astype(kept.dtype), err_msg=name)
    other = record_episodes(4, [17], SIZE)
    assert not np.array_equal(other["state"], again["state"])


def test_what_was_written_is_read_again(data, tmp_path):
    written = generate(tmp_path, 1, seed=3, workers=1, image_size=SIZE)
    read = ExpertData.load(tmp_path, in_memory=True)
    for field in fields(ExpertData):
        loaded = getattr(read, field.name)
        assert not isinstance(loaded, np.memmap)
        np.testing.assert_array_equal(loaded, getattr(written, field.name))


def test_progress_reaches_the_end(tmp_path):
    seen = []
    generate(tmp_path, 1, workers=1, image_size=8, progress=lambda *done: seen.append(done))
    assert seen == [(1, 1)]


def test_something_is_held_and_something_moves(data):
    assert 0.02 < (data.held >= 0).mean() < 0.6
    np.testing.assert_array_equal(data.held >= 0, data.state[:, 4] == 1)
    assert np.abs(np.diff(data.state[:, :4], axis=0)).max() > 0.02


class TestLabels:
    def test_a_prompt_names_its_target_in_the_scene(self, data):
        index = np.arange(len(data))
        labels = label_batch(data, index, np.random.default_rng(0), blank_fraction=0.2)
        assert set(labels.verb.tolist()) == {PICK_UP, FOLLOW, HOLD_STILL}
        for row, prompt in enumerate(labels.prompts):
            if labels.verb[row] == HOLD_STILL:
                assert (prompt, labels.target[row]) == ("", -1)
                continue
            task = parse_instruction(prompt)
            assert task.verb == labels.verb[row]
            assert task.colour == data.colours[row, labels.target[row]]

    def test_a_blank_prompt_holds_still(self, data):
        labels = label_batch(data, np.arange(50), np.random.default_rng(0), blank_fraction=1.0)
        expected = np.repeat(data.state[:50, None], 10, axis=1)
        np.testing.assert_array_equal(labels.actions, expected)
        assert np.isnan(labels.target_uv).all()

    def test_one_frame_teaches_many_instructions(self, data):
        index = np.zeros(200, int)
        labels = label_batch(data, index, np.random.default_rng(0), blank_fraction=0.0)
        assert len(set(labels.prompts)) > 6
        assert len(np.unique(labels.actions.round(4), axis=0)) >= 3

    def test_the_target_is_pointed_at_only_where_it_is_seen(self, data):
        labels = label_batch(data, np.arange(len(data)), np.random.default_rng(1), 0.0)
        seen = ~np.isnan(labels.target_uv).any(axis=-1)
        assert 0.9 < seen[:, 0].mean() <= 1.0
        assert 0.2 < seen[:, 1].mean() < 1.0
        assert (labels.target_uv[seen] >= 0).all() and (labels.target_uv[seen] <= 1).all()

    def test_foresight_is_what_makes_velocities_count(self, data):
        index = np.flatnonzero((data.speed > 0.05) & (data.held < 0))
        far = label_batch(data, index, np.random.default_rng(2), 0.0, foresight=1.0)
        near = label_batch(data, index, np.random.default_rng(2), 0.0, foresight=0.0)
        assert far.prompts == near.prompts
        assert np.abs(far.actions[:, -1] - near.actions[:, -1]).max() > 0.02
