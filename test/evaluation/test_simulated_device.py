"""The policy computes what it computes, in another device's time."""

from __future__ import annotations

import numpy as np
import pytest
from support.fake_policy import Clock, FakePolicy
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.evaluation.simulated_device import DeviceProfile, SimulatedDevice
from thor_policy_ros.types import KeepsVision, Observation

PROFILE = DeviceProfile(vision_ms=10.0, prefill_ms=40.0, step_ms=5.0, jitter=0.0)
NOISE = toy_noise()[0].numpy()


class ToyPolicy(FakePolicy):
    """With a real engine."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.backend = create_backend("pytorch", TOY, toy_config(), "cpu", "float32")


def device(profile: DeviceProfile = PROFILE) -> SimulatedDevice:
    policy = ToyPolicy()
    return SimulatedDevice(policy, profile, policy.spec)


def test_a_frame_takes_its_stages_times_and_is_counted() -> None:
    made = device()
    inputs = toy_model_inputs()
    cameras = int(inputs.image_mask.sum())
    made.backend.denoise(made.backend.prefill(inputs, 0.0), NOISE, 4)
    assert made.clock() == pytest.approx((cameras * 10 + 40 + 20) / 1e3)
    assert (
        made.use.ms
        == pytest.approx(PROFILE.frame_ms(cameras, 4))
        == pytest.approx(1e3 * made.clock())
    )
    assert made.backend.stage_times_ms() == pytest.approx(
        {"vision": 10.0 * cameras, "prefill": 40.0, "denoise": 20.0}
    )
    use = made.use
    assert (use.images, use.prefills, use.steps, use.frames) == (cameras, 1, 4, 1)


def test_the_actions_are_the_engines() -> None:
    made, plain = device(), ToyPolicy().backend
    ours = made.backend.denoise(made.backend.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    theirs = plain.denoise(plain.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    assert np.array_equal(ours, theirs)


def test_a_camera_that_is_kept_takes_no_time() -> None:
    made = device()
    inputs = toy_model_inputs()
    made.backend.prefill(inputs, 0.0)
    before = made.use.images
    assert isinstance(made.backend, KeepsVision)
    made.backend.prefill_keeping(inputs, 0.1, np.array([True, False, False]))
    assert made.use.images - before == int(inputs.image_mask.sum()) - 1


def test_jitter_follows_from_the_episodes_seed() -> None:
    made = device(DeviceProfile(10.0, 40.0, 5.0, jitter=0.1))

    def times(seed: int) -> list[float]:
        made.begin(seed)
        return [made.takes(10.0) for _ in range(5)]

    assert times(1) == times(1) != times(2)
    assert made.use.ms == pytest.approx(sum(times(2)))
    made.begin(3)
    assert np.log([made.takes(1.0) for _ in range(400)]).std() == pytest.approx(0.1, rel=0.2)


def test_the_rest_is_the_policys() -> None:
    made = device()
    seen = Observation({"base": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32), "", 0.0)
    assert made.preprocess(seen).images.shape == (1, 3, 8, 8)
    assert made.postprocess(NOISE, seen.state).shape == (5, 2)
    assert made.config.name == "fake"
