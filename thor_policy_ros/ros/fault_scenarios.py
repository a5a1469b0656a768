"""The faults: one row each, and how it is brought about."""

from __future__ import annotations

import array
import copy
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sensor_msgs.msg import JointState
from std_msgs.msg import String

from thor_policy_ros.ros.conversions import seconds, time_msg
from thor_policy_ros.ros.fault_rig import EXECUTOR, POLICY, ROBOT, FaultRig
from thor_policy_ros.ros.small_disk import fill, make_room

Act = Callable[[FaultRig], None]
FREEZE_S = 5.0  # a camera counts as frozen after frozen_camera_after_s, 2 s
SLOW_RECOVERY_S = 90.0  # a process that loads the model anew, on a busy machine


def mend(rig: FaultRig) -> None:
    rig.mend()


@dataclass(frozen=True)
class Scenario:
    """begin: brings the fault about; during: called every 50 ms while it lasts.

    after: once the robot goes on again. sim_time: nodes live by /clock.
    two_hosts: the policy runs on another host, and the fault is of the network.
    small_disk: what the nodes write is on a disk that the fault fills.
    """

    name: str
    group: str
    begin: Act
    end: Act = mend
    during: Act = lambda rig: None
    after: Act = lambda rig: None
    lasts_s: float = 2.0
    recovers_s: float = 20.0
    sim_time: bool = False
    two_hosts: bool = False
    small_disk: bool = False
    short: bool = False


def _set(which: str, change: Callable[[Any], Iterable[Any]]) -> Act:
    return lambda rig: setattr(rig, which, change)


def _edited(**values: Any) -> Callable[[Any], Iterable[Any]]:
    def change(message: Any) -> Iterable[Any]:
        edited = copy.copy(message)
        for name, value in values.items():
            setattr(edited, name, value)
        return (edited,)

    return change


def _stamped(stamp_s: Callable[[float], float]) -> Callable[[Any], Iterable[Any]]:
    def change(message: Any) -> Iterable[Any]:
        message.header.stamp = time_msg(max(0.0, stamp_s(seconds(message.header.stamp))))
        return (message,)

    return change


def _frozen(rig: FaultRig) -> None:
    first: dict[str, Any] = {}

    def change(message: Any) -> Iterable[Any]:
        old = first.setdefault(message.header.frame_id, message.data)
        message.data = old
        return (message,)

    rig.image = change


def _every(n: int) -> Act:
    def begin(rig: FaultRig) -> None:
        count = [0]

        def change(message: Any) -> Iterable[Any]:
            count[0] += 1
            return (message,) if count[0] % n == 0 else ()

        rig.image = change

    return begin


def _backwards(rig: FaultRig) -> None:
    begun_s = time.time()
    rig.image = _stamped(lambda at_s: 2 * begun_s - at_s)


def _joints(edit: Callable[[list[str], list[float]], None]) -> Act:
    def change(message: JointState) -> Iterable[JointState]:
        names, values = list(message.name), list(message.position)
        edit(names, values)
        message.name, message.position = names, array.array("d", values)
        return (message,)

    return _set("joints", change)


def _drop_first(names: list[str], values: list[float]) -> None:
    del names[0], values[0]


def _nan(names: list[str], values: list[float]) -> None:
    values[1] = float("nan")


def _reordered(names: list[str], values: list[float]) -> None:
    names.reverse()
    values.reverse()


def _mislabelled(names: list[str], values: list[float]) -> None:
    names[0], names[1] = names[1], names[0]


def _teleported(names: list[str], values: list[float]) -> None:
    values[0] += 0.8


def _twice(names: list[str], values: list[float]) -> None:
    names[1] = names[0]


def _say(text: str) -> Act:
    return lambda rig: rig.words.publish(String(data=text))


def _say_again(rig: FaultRig) -> None:
    rig.mend()
    rig.words.publish(String(data="pick up the red cube"))


def _restore_engine(rig: FaultRig) -> None:
    rig.engine("")


def _engine(fault: str) -> Act:
    return lambda rig: rig.engine(fault)


def _changing_words(rig: FaultRig) -> None:
    rig.words.publish(String(data=f"pick up the red cube {time.time()}"))


def _parameter(name: str, value: Any, node: str = "policy_node") -> Act:
    return lambda rig: rig.set_parameter(node, name, value)


def _both(*acts: Act) -> Act:
    def begin(rig: FaultRig) -> None:
        for act in acts:
            act(rig)

    return begin


def _eight(rig: FaultRig) -> None:
    for again in range(2):  # the second time every client has found its service
        for client in range(8):
            rig.set_parameter("policy_node", "num_denoise_steps", 1 + client + again, client)
            rig.set_parameter(EXECUTOR, "crossfade_s", 0.05 * client, client)


def _after_eight(rig: FaultRig) -> None:
    rig.set_parameter("policy_node", "num_denoise_steps", 3)
    rig.set_parameter(EXECUTOR, "crossfade_s", 0.1)


def _switch(backend: str) -> Act:
    return _parameter("backend", backend)


def _kill(module: str, signum: signal.Signals = signal.SIGKILL) -> Act:
    return lambda rig: rig.kill(module, signum)


def _reset_executor(rig: FaultRig) -> None:
    """The sensors told of a place where the robot was not: an operator looks, then resets."""
    from std_srvs.srv import Trigger

    rig.mend()
    rig.spin(0.3)
    rig.log.breaks_s.append(time.monotonic())
    rig.call(Trigger, f"{EXECUTOR}/reset", Trigger.Request())


def _pause_clock(rig: FaultRig) -> None:
    rig.clock = lambda message: ()


def _jump_clock(by_s: float) -> Act:
    def change(message: Any) -> Iterable[Any]:
        message.clock = time_msg(max(0.001, seconds(message.clock) + by_s))
        return (message,)

    return _set("clock", change)


CAMERA = (
    Scenario("cameras_stop", "camera", _set("image", lambda m: ()), short=True),
    Scenario("cameras_freeze_with_new_stamps", "camera", _frozen, lasts_s=FREEZE_S),
    Scenario("cameras_freeze_where_that_stops", "camera",
             _both(_parameter("frozen_camera_action", "stop"), _frozen),
             _both(mend, _parameter("frozen_camera_action", "warn")),
             lasts_s=FREEZE_S, short=True),
    Scenario("cameras_slow_to_2_hz", "camera", _every(15)),
    Scenario("cameras_burst_at_200_hz", "camera", _set("image", lambda m: (m,) * 7)),
    Scenario("wrong_encoding", "camera", _set("image", _edited(encoding="16UC1")), short=True),
    Scenario("unknown_encoding", "camera", _set("image", _edited(encoding="\x00nonsense"))),
    Scenario("wrong_size_mid_stream", "camera", _set("image", _edited(height=7))),
    Scenario("width_of_4_billion", "camera", _set("image", _edited(width=2**32 - 1))),
    Scenario("truncated_data", "camera", _set("image", _edited(data=array.array("B", [1, 2])))),
    Scenario("empty_image", "camera", _set("image", _edited(width=0, height=0))),
    Scenario("zero_image_stamps", "camera", _set("image", _stamped(lambda s: 0.0))),
    Scenario("image_stamps_10_s_ahead", "camera", _set("image", _stamped(lambda s: s + 10.0))),
    Scenario("image_stamps_10_s_old", "camera", _set("image", _stamped(lambda s: s - 10.0))),
    Scenario("image_stamps_run_backwards", "camera", _backwards),
)  # fmt: skip
JOINT = (
    Scenario("joint_states_stop", "joints", _set("joints", lambda m: ())),
    Scenario("joint_missing", "joints", _joints(_drop_first), short=True),
    Scenario("joint_nan", "joints", _joints(_nan)),
    Scenario("joint_named_twice", "joints", _joints(_twice)),
    Scenario("joints_reordered", "joints", _joints(_reordered)),
    Scenario("joints_mislabelled", "joints", _joints(_mislabelled), _reset_executor),
    Scenario("joint_teleports", "joints", _joints(_teleported), _reset_executor),
    Scenario("joint_stamps_10_s_ahead", "joints", _set("joints", _stamped(lambda s: s + 10.0))),
    Scenario("zero_joint_stamps", "joints", _set("joints", _stamped(lambda s: 0.0))),
)
WORDS = (
    Scenario("instruction_empty", "words", _say(""), _say_again),
    Scenario("instruction_of_100_kb", "words", _say("red " * 25_000), _say_again),
    Scenario("instruction_of_control_characters", "words", _say("\x01\x1b[2J\x7f"), _say_again),
    Scenario("instruction_changes_all_the_time", "words", _changing_words, _say_again,
             during=_changing_words),
)  # fmt: skip
PARAMETERS = (
    Scenario("parameter_out_of_range", "parameters", _parameter("num_denoise_steps", 10_000)),
    Scenario("parameter_of_the_wrong_type", "parameters", _parameter("control_rate_hz", "fast")),
    Scenario("parameter_nan", "parameters", _parameter("max_input_age_s", float("nan"))),
    Scenario("unknown_backend", "parameters", _switch("no_such_engine")),
    Scenario("executor_parameter_out_of_range", "parameters",
             _parameter("crossfade_s", -1.0, EXECUTOR)),
    Scenario("set_by_8_at_once", "parameters", _eight, _after_eight),
)  # fmt: skip
ENGINE = (
    Scenario("engine_gives_nan", "engine", _engine("nan"), _restore_engine),
    Scenario("engine_gives_inf", "engine", _engine("inf"), _restore_engine),
    Scenario("engine_gives_a_constant", "engine", _engine("constant"), _restore_engine),
    Scenario("engine_gives_a_million", "engine", _engine("huge"), _restore_engine),
    Scenario("engine_shakes_by_3_sigma", "engine", _engine("shaking"), _restore_engine),
    Scenario("inference_10_times_slower", "engine", _engine("slow:0.5"), _restore_engine),
    Scenario("inference_of_2_s", "engine", _engine("slow:2"), _restore_engine, lasts_s=4.0),
    Scenario("inference_raises", "engine", _engine("raise:some defect"), _restore_engine,
             recovers_s=SLOW_RECOVERY_S),
    Scenario("out_of_memory_raised", "engine", _engine("raise:CUDA out of memory"),
             _restore_engine, recovers_s=SLOW_RECOVERY_S),
    Scenario("sticky_cuda_error_raised", "engine",
             _engine("raise:CUDA error: an illegal memory access was encountered"),
             _restore_engine, recovers_s=SLOW_RECOVERY_S),
    Scenario("inference_never_returns", "engine", _engine("hang"), _restore_engine, lasts_s=5.0,
             recovers_s=SLOW_RECOVERY_S),
)  # fmt: skip


def _switching(scenario: Scenario) -> Scenario:
    """The same fault while a backend loads, is verified and takes over."""
    return replace(
        scenario,
        name=f"switch_while_{scenario.name}",
        group="switch",
        begin=_both(scenario.begin, _switch("pytorch_pipelined")),
        end=_both(scenario.end, _switch("pytorch")),
        recovers_s=60.0,
        short=False,
    )


SWITCHES = tuple(_switching(s) for s in (*CAMERA, *JOINT, *WORDS, *PARAMETERS, ENGINE[0]))


def _fill(rig: FaultRig) -> None:
    fill(rig.folder)


def _make_room(rig: FaultRig) -> None:
    make_room(rig.folder)


def _leave(rig: FaultRig) -> None:
    """As it is, until the robot goes on."""


DISKS = tuple(
    replace(row, group="disk", small_disk=True)
    for row in (
        Scenario("disk_full_and_a_parameter_set", "", _both(_fill, _parameter("seed", 7)),
                 _both(_make_room, _parameter("seed", -1))),
        Scenario("disk_full_and_a_backend_set", "", _both(_fill, _switch("pytorch_pipelined")),
                 _both(_make_room, _switch("pytorch")), recovers_s=60.0),
        Scenario("disk_full_and_policy_killed", "", _both(_fill, _kill(POLICY)), _leave,
                 during=_fill, after=_make_room, lasts_s=4.0, recovers_s=SLOW_RECOVERY_S),
        Scenario("disk_full_and_executor_killed", "", _both(_fill, _kill(EXECUTOR)), _leave,
                 during=_fill, after=_make_room, lasts_s=4.0, recovers_s=60.0),
    )
)  # fmt: skip
PROCESSES = (
    Scenario("policy_killed", "process", _kill(POLICY), recovers_s=SLOW_RECOVERY_S),
    Scenario("policy_stands_still_2_s", "process", _kill(POLICY, signal.SIGSTOP),
             _kill(POLICY, signal.SIGCONT)),
    Scenario("executor_killed", "process", _kill(EXECUTOR), recovers_s=60.0),
    Scenario("executor_stands_still_2_s", "process", _kill(EXECUTOR, signal.SIGSTOP),
             _kill(EXECUTOR, signal.SIGCONT)),
    Scenario("robot_stands_still_2_s", "process", _kill(ROBOT, signal.SIGSTOP),
             _kill(ROBOT, signal.SIGCONT)),
    Scenario("emergency_stop", "operator", lambda rig: rig.estop(),
             lambda rig: rig.leave_estop(), short=True),
)  # fmt: skip
CLOCKS = tuple(
    replace(row, sim_time=True)
    for row in (
        Scenario("clock_paused", "clock", _pause_clock),
        Scenario("clock_jumps_5_s_ahead", "clock", _jump_clock(5.0)),
        Scenario("clock_jumps_back", "clock", _jump_clock(-5.0)),
    )
)
SCENARIOS = (
    *CAMERA, *JOINT, *WORDS, *PARAMETERS, *ENGINE, *SWITCHES, *PROCESSES, *DISKS, *CLOCKS,
)  # fmt: skip
