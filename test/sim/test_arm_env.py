"""The simulated robot: its commands, sensors, suction and pictures."""

import numpy as np
import pytest
from support.tabletop import move_tip

from thor_policy_ros.sim.arm_env import CAMERA_SLOTS, TabletopArm
from thor_policy_ros.sim.scene import OBJECT_RADIUS_M, SERVO_LAG_S, TABLE_X_M, TABLE_Y_M

TOP_M = 2 * OBJECT_RADIUS_M


@pytest.fixture(scope="module")
def arm() -> TabletopArm:
    """One arm for all tests: each resets it."""
    return TabletopArm(image_size=32)


def grip(arm: TabletopArm, index: int) -> None:
    """Take hold of a parked object."""
    x, y, _ = arm.objects()[index]
    move_tip(arm, (x, y, TOP_M + 0.06), 0.0, 1.0)
    move_tip(arm, (x, y, TOP_M - 0.004), 1.0, 0.4)
    assert arm.held == index


class TestEpisodes:
    def test_the_seed_decides_everything(self, arm):
        def play() -> tuple[bytes, bytes]:
            arm.reset(7, 0.1)
            move_tip(arm, (0.45, -0.1, 0.1), 1.0, 0.6)
            return arm.pose().tobytes(), arm.images()["left_wrist_0_rgb"].tobytes()

        first = play()
        arm.reset(8, 0.05)
        move_tip(arm, (0.3, 0.2, 0.03), 1.0, 0.6)
        assert play() == first

    def test_seeds_differ(self, arm):
        arm.reset(1, 0.1)
        one = arm.pose()
        arm.reset(2, 0.1)
        assert not np.array_equal(one, arm.pose())

    def test_time_and_timeout(self, arm):
        arm.reset(0, 0.0)
        assert (arm.time_s, arm.outcome()) == (0.0, "running")
        arm.advance(7.9)
        assert arm.outcome() == "running"
        arm.advance(0.1)
        assert arm.time_s == pytest.approx(8.0)
        assert arm.outcome() == "timeout"

    def test_a_recorded_pose_shows_the_same_picture(self, arm):
        arm.reset(3, 0.1)
        arm.advance(0.5)
        pose, picture = arm.pose(), arm.images()["base_0_rgb"]
        arm.advance(0.5)
        assert not np.array_equal(arm.images()["base_0_rgb"], picture)
        arm.show(pose)
        assert np.array_equal(arm.images()["base_0_rgb"], picture)


class TestServos:
    def test_measured_joints_trail_a_moving_setpoint_by_the_stated_lag(self, arm):
        arm.reset(0, 0.0)
        start, speed = arm.state().astype(float), 0.6
        for step in range(1, 61):
            targets = start.copy()
            targets[:4] += speed * 0.01 * step
            arm.command(targets)
            arm.advance(0.01)
        trail_s = (targets[:4] - arm.state()[:4]) / speed
        # A command is in force for the 10 ms that follow, so half of that is no lag at all.
        np.testing.assert_allclose(trail_s, SERVO_LAG_S - 0.005, atol=0.004)

    def test_it_holds_a_setpoint_against_gravity(self, arm):
        arm.reset(0, 0.0)
        before = arm.state()
        arm.advance(2.0)
        np.testing.assert_allclose(arm.state(), before, atol=1e-4)

    def test_setpoints_beyond_the_limits_are_clipped(self, arm):
        arm.reset(0, 0.0)
        arm.command(np.array([9.0, 0.3, 1.9, 0.9, 0.0]))
        arm.advance(3.0)
        assert arm.state()[0] == pytest.approx(arm.limits.upper[0], abs=1e-3)

    @pytest.mark.parametrize("targets", [np.zeros(4), np.full(5, np.nan)], ids=["shape", "NaN"])
    def test_a_malformed_command_is_refused(self, arm, targets):
        arm.reset(0, 0.0)
        with pytest.raises(ValueError, match="wants 5 finite numbers"):
            arm.command(targets)

    def test_time_passes_in_whole_physics_steps(self, arm):
        with pytest.raises(ValueError, match=r"multiple of 0\.005 s; got 0\.003"):
            arm.advance(0.003)


class TestObjects:
    def test_they_drift_at_the_given_speed_and_stay_on_the_table(self, arm):
        arm.reset(4, 0.12)
        low, high = np.array([TABLE_X_M, TABLE_Y_M]).T
        path = []
        for _ in range(160):
            path.append(arm.objects()[:, :2])
            arm.advance(0.05)
        speed = np.linalg.norm(np.diff(path, axis=0), axis=-1) / 0.05
        assert np.median(speed) == pytest.approx(0.12, rel=0.02)
        assert (np.array(path) > low - 0.02).all() and (np.array(path) < high + 0.02).all()

    def test_they_do_not_run_through_each_other(self, arm):
        for seed in range(5):
            arm.reset(seed, 0.12)
            for _ in range(80):
                arm.advance(0.1)
                places = arm.objects()[:, :2]
                gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
                assert gaps[np.triu_indices(3, 1)].min() > TOP_M

    def test_parked_objects_stay(self, arm):
        arm.reset(4, 0.0)
        before = arm.objects()
        arm.advance(3.0)
        np.testing.assert_allclose(arm.objects(), before, atol=1e-3)

    def test_an_object_may_be_put_elsewhere_and_stays_there(self, arm):
        arm.reset(4, 0.0)
        before, picture = arm.objects(), arm.images()["base_0_rgb"]
        arm.move_object(1, before[1, :2] + (0.03, -0.02))
        assert not np.array_equal(arm.images()["base_0_rgb"], picture)
        arm.advance(0.5)
        expected = before + np.array([[0, 0, 0], [0.03, -0.02, 0], [0, 0, 0]])
        np.testing.assert_allclose(arm.objects(), expected, atol=1e-3)

    def test_an_object_stops_the_tool(self, arm):
        arm.reset(5, 0.0)
        x, y, _ = arm.objects()[0]
        move_tip(arm, (x, y, TOP_M + 0.05), 0.0, 1.0)
        move_tip(arm, (x, y, TOP_M - 0.025), 0.0, 0.5)
        assert arm.tip()[2] > TOP_M - 0.020
        assert arm.objects()[0, 2] == pytest.approx(OBJECT_RADIUS_M, abs=2e-3)


class TestSuction:
    def test_it_takes_hold_carries_and_lets_go(self, arm):
        arm.reset(6, 0.0)
        grip(arm, 1)
        assert arm.state()[4] == 1.0
        move_tip(arm, (0.42, 0.1, 0.2), 1.0, 1.0)
        offset = arm.objects()[1] - arm.tip()
        np.testing.assert_allclose(offset, (0, 0, -OBJECT_RADIUS_M), atol=6e-3)
        move_tip(arm, (0.42, 0.1, 0.2), 0.0, 0.5)
        assert (arm.held, arm.state()[4]) == (-1, 0.0)
        assert arm.objects()[1, 2] == pytest.approx(OBJECT_RADIUS_M, abs=2e-3)

    @pytest.mark.parametrize("aside", [0.0, 0.03])
    @pytest.mark.parametrize("suction", [0.4, 1.0])
    def test_it_needs_the_valve_and_a_top_under_the_lip(self, arm, aside, suction):
        arm.reset(6, 0.0)
        x, y, _ = arm.objects()[1]
        move_tip(arm, (x, y + aside, TOP_M + 0.06), 0.0, 1.0)
        move_tip(arm, (x, y + aside, TOP_M), suction, 0.4)
        assert (arm.held == 1) == (aside == 0.0 and suction > 0.5)

    def test_lifting_the_wrong_object_ends_the_episode(self, arm):
        arm.reset(6, 0.0, "pick up the red object")
        grip(arm, (arm.episode.target + 1) % 3)
        x, y, _ = arm.tip()
        move_tip(arm, (x, y, 0.2), 1.0, 0.6)
        assert arm.outcome() == "wrong_object"


class TestPictures:
    def test_slots_shapes_and_content(self, arm):
        arm.reset(0, 0.0)
        images = arm.images()
        assert tuple(images) == CAMERA_SLOTS
        for image in images.values():
            assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
            assert image.std() > 10

    def test_an_object_is_seen_where_it_is_projected(self):
        arm = TabletopArm(image_size=128)
        arm.reset(0, 0.0, "pick up the red cube")
        target = arm.episode.target
        u, v = arm.objects_in_images()[0, target]
        red, green, blue = arm.images()["base_0_rgb"][int(v * 128), int(u * 128)].astype(int)
        assert red > 2 * max(green, blue)

    def test_the_wrist_camera_turns_with_the_arm_and_sees_its_tip(self, arm):
        camera = arm._cameras["left_wrist_0_rgb"]
        seen = []
        for seed in range(3):
            arm.reset(seed, 0.0)
            seen.append(camera.project(arm._data, arm.tip()))
        np.testing.assert_allclose(seen, np.broadcast_to(seen[0], (3, 2)), atol=1e-4)
        assert seen[0][0] == pytest.approx(0.5, abs=1e-4) and 0.5 < seen[0][1] < 0.9

    def test_the_outside_view(self, arm):
        arm.reset(0, 0.0)
        view = arm.render(96, 72)
        assert (view.shape, view.dtype) == ((72, 96, 3), np.uint8)
        assert np.array_equal(view, arm.render(96, 72))

    def test_varied_looks_differ_from_episode_to_episode_only(self):
        arm = TabletopArm(image_size=32, vary_look=True)
        arm.reset(0, 0.0)
        first = arm.images()["base_0_rgb"]
        arm.reset(0, 0.0)
        assert np.array_equal(arm.images()["base_0_rgb"], first)
        plain = TabletopArm(image_size=32)
        plain.reset(0, 0.0)
        assert not np.array_equal(plain.images()["base_0_rgb"], first)
