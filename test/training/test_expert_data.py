"""Recorded frames."""

from dataclasses import fields

import numpy as np
import pytest

from thor_policy_ros.training.disturbed_expert import FRAMES_PER_EPISODE, record_episodes
from thor_policy_ros.training.expert_data import ExpertData, generate

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


def test_the_base_camera_sees_almost_everything_the_wrist_camera_what_is_near(data):
    seen = ((data.object_uv >= 0) & (data.object_uv <= 1)).all(axis=-1).mean(axis=(0, 2))
    assert 0.9 < seen[0] <= 1.0
    assert 0.2 < seen[1] < 1.0
