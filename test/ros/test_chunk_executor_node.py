"""The chunk executor in a process of its own: follows, refuses, holds, stops, begins anew."""

from __future__ import annotations

import array
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header
from std_srvs.srv import SetBool, Trigger
from support.ros_probe import RELIABLE, Probe
from trajectory_msgs.msg import JointTrajectory

from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros.conversions import chunk_to_msg, header
from thor_policy_ros.ros.diagnostics import ERROR, OK, STALE, WARN
from thor_policy_ros.ros.motion_safety import BEAT_QOS
from thor_policy_ros.ros.node_processes import NodeCommand, NodeProcesses
from thor_policy_ros.types import ActionChunk as Chunk

pytestmark = pytest.mark.node

NODE = "chunk_executor_node"
EXECUTION = f"{NODE}: execution"
JOINTS = ("a", "b", "grip")
START = (0.2, -0.3, 0.0)
VELOCITY, ACCELERATION = 2.0, 10.0
RATE_HZ = 100.0
PARAMETERS = (
    ("joint_names", "[a, b, grip]"),
    ("output", "both"),
    ("control_rate_hz", str(RATE_HZ)),
    ("hold_timeout_s", "0.3"),
    ("max_chunk_age_s", "2.0"),
    ("tick_jitter_warn_ms", "1000.0"),  # a busy machine is no fault of the node
    ("limits.lower", "[-1.0, -1.0, 0.0]"),
    ("limits.upper", "[1.0, 1.0, 1.0]"),
    ("limits.velocity", f"[{VELOCITY}, {VELOCITY}, .inf]"),
    ("limits.acceleration", f"[{ACCELERATION}, {ACCELERATION}, .inf]"),
)


class Rig:
    """The robot and the policy around one executor."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.positions: np.ndarray | None = np.array(START)
        self.ahead_s = 0.0
        self.commands: list[Float64MultiArray] = probe.listen(Float64MultiArray, f"{NODE}/commands")
        self.trajectories: list[JointTrajectory] = probe.listen(
            JointTrajectory, f"{NODE}/joint_trajectory"
        )
        self._chunks = probe.create_publisher(ActionChunk, "action_chunk", RELIABLE)
        self._joints = probe.create_publisher(JointState, "joint_states", RELIABLE)
        probe.wait(self._chunks.get_subscription_count, "the executor's subscription")
        probe.wait(lambda: probe.count_publishers(f"{NODE}/commands"), "the executor's commands")
        probe.create_timer(0.02, self._publish_joints)
        self._repeated: np.ndarray | None = None
        probe.create_timer(0.1, self._repeat)

    def repeat(self, actions: np.ndarray | None) -> None:
        """Sends the chunk ten times a second, as a policy does; None ends it."""
        self._repeated = actions

    def _repeat(self) -> None:
        if self._repeated is not None:
            self.send(self._repeated)

    def reset(self) -> None:
        """Once answered, no command comes before a new chunk."""
        assert self.probe.call(Trigger, f"{NODE}/reset", Trigger.Request()).success
        self.probe.spin_for(0.1)
        self.commands.clear()

    def send(
        self,
        actions: np.ndarray,
        age_s: float = 0.0,
        dt_s: float = 0.1,
        names: Sequence[str] = JOINTS,
        **changes: Any,
    ) -> None:
        now_s = self.probe.now_s()
        message = chunk_to_msg(
            Chunk(np.asarray(actions, np.float32), dt_s, now_s - age_s),
            sequence=1,
            backend="pytorch",
            instruction="",
            joint_names=names,
            prefix_age_s=0.0,
            now_s=now_s,
        )
        for name, value in changes.items():
            setattr(message, name, value)
        self._chunks.publish(message)

    def path(self) -> np.ndarray:
        return np.array([message.data for message in self.commands])

    def _publish_joints(self) -> None:
        if self.positions is None:
            return
        stamp_s = self.probe.now_s() + self.ahead_s
        message = JointState(header=header(stamp_s), name=list(JOINTS))
        message.position = array.array("d", self.positions.tobytes())
        self._joints.publish(message)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with NodeProcesses(tmp_path_factory.mktemp("executor")) as processes, Probe() as probe:
        processes.start([NodeCommand(NODE, parameters=PARAMETERS)])
        probe.alive = processes.require_alive
        yield Rig(probe)


@pytest.fixture
def rig(running: Rig) -> Rig:
    running.repeat(None)
    running.positions = np.array(START)
    running.ahead_s = 0.0
    running.reset()
    return running


def still(rows: int, value: Sequence[float] = (0.5, 0.0, 1.0)) -> np.ndarray:
    return np.tile(np.array(value, np.float32), (rows, 1))


def test_it_starts_at_the_measured_position_and_arrives_within_limits(rig: Rig) -> None:
    rig.send(still(20))
    rig.probe.wait(lambda: rig.commands and abs(rig.path()[-1, 0] - 0.5) < 1e-3, "the arrival")
    path = rig.path()
    np.testing.assert_allclose(path[0, :2], rig.positions[:2], atol=1e-2)
    speed = np.diff(path[:, :2], axis=0) / 0.01
    assert np.abs(speed).max() <= VELOCITY * 1.001
    assert np.abs(np.diff(speed, axis=0)).max() / 0.01 <= ACCELERATION * 1.01
    assert path[-1, 2] == 1.0, "a joint without limits follows at once"


def test_both_outputs_say_the_same(rig: Rig) -> None:
    rig.send(still(20))
    rig.probe.wait(lambda: len(rig.commands) > 30 and rig.trajectories, "commands")
    trajectory = rig.trajectories[-1]
    assert tuple(trajectory.joint_names) == JOINTS and len(trajectory.points) == 1
    point = trajectory.points[0]
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, 10_000_000)
    assert (trajectory.header.stamp.sec, trajectory.header.stamp.nanosec) == (0, 0), "begin now"
    assert list(point.positions) in [list(message.data) for message in rig.commands]


def test_columns_in_another_order_are_sorted_by_name(rig: Rig) -> None:
    rig.send(still(20, (1.0, 0.0, 0.5)), names=("grip", "b", "a"))
    rig.probe.wait(lambda: rig.commands and abs(rig.path()[-1, 0] - 0.5) < 1e-3, "the arrival")
    assert rig.path()[-1, 2] == 1.0


NAN = still(10)
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        ({"actions": NAN}, "row 3, joint 'b'"),
        ({"actions": still(10), "age_s": 2.5}, "observed 2.5"),
        ({"actions": still(10), "age_s": -3.0}, "in the future"),
        ({"actions": still(10), "age_s": 1.5, "dt_s": 0.1}, "ran out"),
        ({"actions": still(10)[:, :2], "names": ("a", "b")}, "lacks the joints"),
        ({"actions": still(10), "names": ("a", "b", "toe")}, "lacks the joints"),
        ({"actions": still(10), "horizon": 9}, "horizon 9 x action_dim 3 wants 27"),
        ({"actions": still(10), "dt": 0.0}, "dt 0.0"),
    ],
)
def test_a_chunk_that_is_refused_never_moves_the_robot(
    rig: Rig, chunk: dict[str, Any], reason: str
) -> None:
    rig.probe.spin_for(chunk.get("age_s", 0.0))  # or it would be refused for the rig's reset
    rig.send(**chunk)
    rig.probe.diagnosis(EXECUTION, STALE, reason)
    assert not rig.commands, "commanded by a refused chunk"
    rig.send(still(20, (0.2, -0.3, 0.0)))
    rig.probe.wait(lambda: len(rig.commands) > 5, "commands of a good chunk")
    rig.send(**chunk)
    values = rig.probe.diagnosis(EXECUTION, WARN, reason)
    assert reason in values["last_refusal"]
    np.testing.assert_allclose(rig.path()[-1], [0.2, -0.3, 0.0], atol=2e-3)


def test_it_holds_then_stops_and_a_new_chunk_moves_it_again(rig: Rig) -> None:
    rig.send(still(4))
    rig.probe.diagnosis(EXECUTION, ERROR, "stopped: no chunk came within hold_timeout_s = 0.3")
    path = rig.path()
    np.testing.assert_array_equal(path[-1], path[-5])
    rig.repeat(still(20, (0.0, 0.0, 0.0)))
    rig.probe.wait(lambda: abs(rig.path()[-1, 0]) < 1e-3, "motion again")
    rig.probe.diagnosis(EXECUTION, OK, "tracking")
    jump = np.abs(np.diff(rig.path()[:, :2], axis=0)).max()
    assert jump <= VELOCITY * 0.01 * 1.001


def test_nothing_is_commanded_without_a_measurement_or_a_chunk(rig: Rig) -> None:
    rig.probe.diagnosis(EXECUTION, STALE, "waiting: no valid chunk")
    assert not rig.commands


def test_after_a_reset_older_observations_are_refused(rig: Rig) -> None:
    rig.send(still(20))
    rig.probe.wait(lambda: len(rig.commands) > 5, "commands")
    rig.positions = np.array([-0.4, 0.4, 0.0])
    rig.reset()
    rig.probe.spin_for(0.1)
    rig.commands.clear()
    rig.send(still(20), age_s=0.5)
    rig.probe.diagnosis(EXECUTION, STALE, "observed before the reset")
    assert not rig.commands
    rig.send(still(20))
    rig.probe.wait(lambda: rig.commands, "commands of a new chunk")
    np.testing.assert_allclose(rig.path()[0, :2], [-0.4, 0.4], atol=1e-2)


def test_a_robot_that_is_no_longer_measured_is_stopped_and_resumes(rig: Rig) -> None:
    rig.repeat(still(20))
    rig.probe.diagnosis(EXECUTION, OK, "tracking")
    rig.positions = None
    rig.probe.diagnosis(EXECUTION, ERROR, "stopped: the measured joints are")
    rig.positions = rig.path()[-1]
    rig.probe.diagnosis(EXECUTION, OK, "tracking")


def test_ticks_are_counted_through_resets(rig: Rig) -> None:
    """Else those between a report and the reset after it would pass for missed ones."""
    rig.repeat(still(20))
    before = int(rig.probe.diagnosis(EXECUTION, OK, "tracking")["ticks"])
    rig.repeat(None)
    rig.reset()
    after = int(rig.probe.diagnosis(EXECUTION, STALE, "waiting")["ticks"])
    assert after > before >= 1


def test_a_robot_that_does_not_follow_is_stopped_until_the_reset(rig: Rig) -> None:
    rig.repeat(still(20))
    rig.probe.wait(lambda: rig.commands and abs(rig.path()[-1, 0] - 0.5) < 1e-9, "the arrival")
    rig.positions = np.array([-0.9, -0.3, 0.0])  # VELOCITY for 0.5 s is 1.0
    rig.probe.diagnosis(EXECUTION, ERROR, "from its command, more than 1.0000")
    stood = rig.path()[-1]
    rig.probe.spin_for(0.3)
    np.testing.assert_array_equal(rig.path()[-1], stood)
    rig.repeat(None)
    rig.reset()
    rig.probe.spin_for(0.3)  # what was commanded before is on its way
    rig.commands.clear()
    rig.repeat(still(20))
    rig.probe.wait(lambda: len(rig.commands) > 3, "commands after the reset")
    np.testing.assert_allclose(rig.path()[0, :2], [-0.9, -0.3], atol=1e-2)


def test_a_reset_while_moving_is_answered_once_the_robot_rests(rig: Rig) -> None:
    ramp = np.linspace((0.2, -0.3, 0.0), (1.0, 0.5, 0.0), 20)  # 0.42 rad/s for 1.9 s
    rig.send(ramp)
    rig.probe.wait(lambda: len(rig.commands) > 30, "some speed")
    assert np.abs(np.diff(rig.path()[-2:, 0]))[0] * RATE_HZ > 0.3, "under way"
    assert rig.probe.call(Trigger, f"{NODE}/reset", Trigger.Request(), again=False).success
    rig.probe.spin_for(0.2)
    path = rig.path()[:, :2]
    accelerations = np.diff(path, 2, axis=0) * RATE_HZ**2
    assert np.abs(accelerations).max() <= ACCELERATION * 1.01
    np.testing.assert_allclose(path[-1], path[-2], atol=1e-9, err_msg="it came to rest")
    count = len(rig.commands)
    rig.probe.spin_for(0.2)
    assert len(rig.commands) == count, "and no command follows"


def test_joints_from_the_future_are_refused(rig: Rig) -> None:
    """They would pass for fresh long after the robot has moved."""
    rig.ahead_s = 100.0
    rig.probe.spin_for(0.1)  # what was sent before is on its way
    rig.reset()
    rig.repeat(still(20))
    rig.probe.diagnosis(EXECUTION, STALE, "s ahead of now; compare the clocks")
    assert not rig.commands


def test_live_times_are_taken_and_nonsense_is_refused(rig: Rig) -> None:
    assert rig.probe.set_parameter(NODE, "hold_timeout_s", 5.0).successful
    rig.send(still(3))
    rig.probe.diagnosis(EXECUTION, WARN, "holding")
    assert rig.probe.set_parameter(NODE, "hold_timeout_s", 0.3).successful
    rig.probe.diagnosis(EXECUTION, ERROR, "stopped")
    refused = rig.probe.set_parameter(NODE, "crossfade_s", -1.0)
    assert not refused.successful and "crossfade_s" in refused.reason
    refused = rig.probe.set_parameter(NODE, "limits.velocity", [9.0, 9.0, 9.0])
    assert not refused.successful and "read-only" in refused.reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ((), "set joint_names"),
        (
            (("joint_names", "[a, b]"), ("dry_run", "never")),
            "set limits.lower, limits.upper, limits.velocity",
        ),
        ((*PARAMETERS, ("workspace.link", "tool")), "a workspace wants robot_description_file"),
        ((*PARAMETERS, ("limits.upper", "[1.0]")), "limits.upper has 1 values for 3 joints"),
        ((*PARAMETERS, ("limits.velocity", "[0.0, 1.0, 1.0]")), "limits.velocity holds 0.0"),
        ((*PARAMETERS, ("output", "smoke")), "choose one of: 'trajectory'"),
        ((*PARAMETERS, ("control_rate_hz", "100")), "of type 'INTEGER'"),
    ],
)
def test_a_start_without_sane_limits_is_refused_with_the_reason(
    parameters: tuple[tuple[str, str], ...], reason: str
) -> None:
    argv = NodeCommand(NODE, parameters=parameters).argv()
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert reason in ended.stderr and "Traceback" not in ended.stderr


def test_its_process_imports_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys, thor_policy_ros.ros.chunk_executor_node;"
        "print([name for name in ('torch', 'mujoco', 'sentencepiece') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


SAFETY = f"{NODE}: safety"


def test_an_emergency_stop_is_latched_and_the_robot_goes_on_when_told(rig: Rig) -> None:
    rig.repeat(still(20))
    rig.probe.wait(lambda: len(rig.commands) > 5, "commands")
    assert rig.probe.call(Trigger, f"{NODE}/estop", Trigger.Request()).success
    rig.probe.diagnosis(EXECUTION, ERROR, "emergency stop")
    values = rig.probe.diagnosis(SAFETY, ERROR, "emergency stop")
    assert values["estopped"] == "1" and values["interventions.emergency_stop"] == "1"
    rig.probe.spin_for(1.0)  # the stop is said at once; braking takes its time
    stood = rig.path()[-1]
    enable = SetBool.Request(data=True)
    assert not rig.probe.call(SetBool, f"{NODE}/enable", enable).success
    rig.probe.spin_for(0.2)
    np.testing.assert_array_equal(rig.path()[-1], stood)
    assert rig.probe.call(Trigger, f"{NODE}/reset_estop", Trigger.Request()).success
    rig.probe.diagnosis(SAFETY, ERROR, "disabled")
    assert rig.probe.call(SetBool, f"{NODE}/enable", enable).success
    rig.positions = rig.path()[-1]
    rig.probe.diagnosis(EXECUTION, OK, "tracking")


def test_a_policy_that_falls_silent_stops_the_robot(rig: Rig) -> None:
    beats = rig.probe.create_publisher(Header, "heartbeat", BEAT_QOS)
    timer = rig.probe.create_timer(0.1, lambda: beats.publish(Header()))
    rig.repeat(still(20))
    rig.probe.diagnosis(EXECUTION, OK, "tracking")
    rig.probe.wait(beats.get_subscription_count, "the executor's subscription")
    rig.probe.spin_for(0.3)
    timer.cancel()
    rig.probe.diagnosis(EXECUTION, ERROR, "no heartbeat of the policy")
    timer.reset()
    rig.positions = rig.path()[-1]
    rig.probe.diagnosis(EXECUTION, OK, "tracking")
    assert rig.probe.set_parameter(NODE, "heartbeat_timeout_s", 60.0).successful
    rig.probe.destroy_timer(timer)


def test_without_limits_it_runs_dry(rig: Rig, tmp_path: Path) -> None:
    """Everything is published but commands."""
    argv = NodeCommand(NODE, parameters=(("joint_names", "[a, b, grip]"),)).argv()
    dry = subprocess.Popen([*argv, "-r", "__node:=dry"], start_new_session=True)
    try:
        states = rig.probe.listen(JointState, "dry/commanded_state")
        rig.repeat(still(20))
        values = rig.probe.diagnosis(
            "dry: safety", WARN, "dry run, no command is sent: limits.lower"
        )
        assert values["workspace"] == "off: no robot_description_file"
        rig.probe.wait(lambda: states, "the commanded state")
        topics = {name for name, _ in rig.probe.get_topic_names_and_types()}
        assert "/dry/commanded_state" in topics and "/dry/commands" not in topics
    finally:
        dry.terminate()
        dry.wait(20)
