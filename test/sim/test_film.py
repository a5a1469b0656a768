"""Recorded poses give back the episode's pictures."""

import numpy as np
import pytest

from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.sim.film import VIDEO_PX, film_frames, write_video
from thor_policy_ros.sim.recording import Recorder, load_episode


@pytest.fixture
def recorded(tmp_path):
    env = TabletopArm()
    env.reset(5, 0.1)
    recorder, images = Recorder(tmp_path), []
    for _ in range(3):
        recorder.add_pose(env.pose(), env.time_s)
        images.append(env.images()["base_0_rgb"])
        env.advance(0.05)
    path = recorder.finish(5, 0.1, env.instruction, "timeout")
    return load_episode(path), images


def test_shown_poses_look_like_the_episode(recorded) -> None:
    episode, images = recorded
    env = TabletopArm()
    env.reset(episode.seed, episode.speed_m_s, episode.instruction)
    for pose, image in zip(episode.poses, images, strict=True):
        env.show(pose)
        np.testing.assert_array_equal(env.images()["base_0_rgb"], image)


def test_frames_are_due_at_the_recording_rate(tmp_path) -> None:
    recorder = Recorder(tmp_path, frame_dt_s=0.05)
    for step in range(11):
        recorder.add_pose(np.full(3, step, float), step * 0.01)
    episode = load_episode(recorder.finish(1, 0.0, "follow the red ball", "success"))
    assert episode.poses[:, 0].tolist() == [0, 5, 10]


def test_a_film_moves_and_is_a_video(recorded, tmp_path) -> None:
    episode, _ = recorded
    frames = list(film_frames(TabletopArm(), episode))
    assert frames[0].shape == (VIDEO_PX[1], VIDEO_PX[0], 3)
    assert (frames[0] != frames[1]).any()
    write_video([episode], tmp_path / "film.mp4")
    assert b"ftyp" in (tmp_path / "film.mp4").read_bytes()[:64]


def test_nothing_recorded_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="no episode was recorded"):
        write_video([], tmp_path / "film.mp4")
