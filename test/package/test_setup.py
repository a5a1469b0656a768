"""make setup: which steps run when, and in which environment. No step really installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import thor_policy_ros
from tools import bootstrap, packages, setup_stamp
from tools.machine import Interpreter, SetupError
from tools.ros_prefixes import environment, missing_ros_packages, sourced_ros
from tools.steps import Plan, step

ROOT = Path(thor_policy_ros.__file__).resolve().parents[1]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A checkout small enough to change, and a venv folder beside it."""
    root = tmp_path / "checkout"
    for folder in ("msg", "requirements"):
        shutil.copytree(ROOT / folder, root / folder)
    for file in ("CMakeLists.txt", "package.xml"):
        shutil.copy(ROOT / file, root)
    (root / "thor_policy_ros").mkdir()
    (root / "thor_policy_ros" / "types.py").write_text("A = 1\n")
    (tmp_path / "venv").mkdir()
    return Plan(root, tmp_path / "venv")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that setup takes, in order; they do nothing."""
    steps: list[str] = []
    for name in ("make_venv", "install_packages", "build_package", "check_messages"):
        monkeypatch.setattr(bootstrap, name, lambda *_, name=name: steps.append(name))
    monkeypatch.setattr(
        bootstrap.machine, "probe", lambda *_: Interpreter("python", "3.11", True, True)
    )
    return steps


ALL = ["make_venv", "install_packages", "build_package", "check_messages"]
BUILD = ["make_venv", "build_package", "check_messages"]


def test_everything_once_then_nothing(plan: Plan, taken: list[str]) -> None:
    bootstrap.set_up(plan)
    assert taken == ALL
    taken.clear()
    bootstrap.set_up(plan)
    assert taken == []


@pytest.mark.parametrize("file", ["msg/ActionChunk.msg", "CMakeLists.txt", "package.xml"])
def test_a_change_of_what_is_compiled_builds_again(plan: Plan, taken: list[str], file: str) -> None:
    bootstrap.set_up(plan)
    taken.clear()
    with (plan.root / file).open("a") as changed:
        changed.write("\n")
    bootstrap.set_up(plan)
    assert taken == BUILD


def test_a_new_module_is_linked_and_an_edited_one_is_live(plan: Plan, taken: list[str]) -> None:
    bootstrap.set_up(plan)
    taken.clear()
    (plan.root / "thor_policy_ros" / "types.py").write_text("A = 2\n")
    bootstrap.set_up(plan)
    assert taken == []
    (plan.root / "thor_policy_ros" / "new.py").write_text("")
    bootstrap.set_up(plan)
    assert taken == BUILD


@pytest.mark.parametrize("file", ["dev.txt", "torch.txt", "constraints.txt"])
def test_a_changed_pin_installs_and_builds_again(plan: Plan, taken: list[str], file: str) -> None:
    bootstrap.set_up(plan)
    taken.clear()
    with (plan.root / "requirements" / file).open("a") as changed:
        changed.write("more==1.0\n")
    bootstrap.set_up(plan)
    assert taken == ALL


def test_a_failed_build_is_taken_up_where_it_stopped(
    plan: Plan, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Plan) -> None:
        raise SetupError("no compiler")

    with monkeypatch.context() as broken:
        broken.setattr(bootstrap, "build_package", fail)
        with pytest.raises(SetupError):
            bootstrap.set_up(plan)
    assert taken == ["make_venv", "install_packages"]
    taken.clear()
    bootstrap.set_up(plan)
    assert taken == BUILD


def test_a_venv_that_does_not_run_is_made_anew(
    plan: Plan, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.set_up(plan)
    taken.clear()
    monkeypatch.setattr(bootstrap.machine, "probe", lambda *_: None)
    bootstrap.set_up(plan)
    assert taken == ALL


def test_an_unreadable_stamp_means_every_step(plan: Plan, taken: list[str]) -> None:
    bootstrap.set_up(plan)
    taken.clear()
    (plan.venv / setup_stamp.STAMP).write_text('{"origin": 1}')
    bootstrap.set_up(plan)
    assert taken == ALL


@pytest.mark.parametrize(
    ("ros_then", "ros_now", "words"),
    [
        ((Path("/opt/ros/jazzy"),), (), "source it again"),
        ((), (Path("/opt/ros/jazzy"),), "the ROS 2 wheels; sourced is /opt/ros/jazzy"),
    ],
)
def test_another_ros_than_the_venvs_is_refused(
    plan: Plan, taken: list[str], ros_then: tuple[Path, ...], ros_now: tuple[Path, ...], words: str
) -> None:
    bootstrap.set_up(Plan(plan.root, plan.venv, ros=ros_then))
    with pytest.raises(SetupError, match=words) as error:
        bootstrap.set_up(Plan(plan.root, plan.venv, ros=ros_now))
    assert "make clean" in str(error.value)


def test_a_moved_checkout_is_refused(plan: Plan, taken: list[str]) -> None:
    bootstrap.set_up(plan)
    moved = plan.root.rename(plan.root.with_name("moved"))
    with pytest.raises(SetupError, match=r"checkout in .*checkout, and this one is in .*moved"):
        bootstrap.set_up(Plan(moved, plan.venv))


def test_another_python_than_the_venvs_is_refused(
    plan: Plan, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {plan.venv_python: "3.11", "python3.12": "3.12"}
    monkeypatch.setattr(
        bootstrap.machine, "probe", lambda c, _: Interpreter(c, versions[c], True, True)
    )
    with pytest.raises(SetupError, match=r"has Python 3\.11, and PYTHON=python3\.12 is 3\.12"):
        bootstrap.set_up(Plan(plan.root, plan.venv, python="python3.12"))


def test_a_failed_step_shows_the_end_of_its_output(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SetupError) as error:
        step(plan, "greeting", ["sh", "-c", "echo hello $NAME; exit 3"], {"NAME": "you"})
    assert "greeting failed" in str(error.value)
    assert "| hello you" in str(error.value)
    assert capsys.readouterr().out.startswith("setup: greeting ...")


def test_only_a_foreign_ros_that_builds_counts_as_sourced(tmp_path: Path) -> None:
    own, ros, overlay = tmp_path / "venv", tmp_path / "jazzy", tmp_path / "overlay"
    for prefix in (own, ros):
        (prefix / "share" / "ament_cmake").mkdir(parents=True)
    overlay.mkdir()

    def found(*prefixes: Path) -> list[Path]:
        return sourced_ros({"AMENT_PREFIX_PATH": os.pathsep.join(map(str, prefixes))}, own)

    assert found() == []
    assert found(own) == []
    assert found(overlay) == []
    assert found(own, overlay, ros) == [overlay, ros]


def test_environment_of_the_wheels_drops_another_ros(tmp_path: Path) -> None:
    before = {"PATH": "/usr/bin", "PYTHONPATH": "/opt/ros/humble", "LD_LIBRARY_PATH": "/opt/lib"}
    env = environment({**before, "RMW_IMPLEMENTATION": "rmw_other"}, tmp_path, [])
    assert "PYTHONPATH" not in env and "LD_LIBRARY_PATH" not in env
    assert env["RMW_IMPLEMENTATION"] == "rmw_fastrtps_cpp"
    assert env["PATH"] == f"{tmp_path}/bin:/usr/bin"
    assert env["AMENT_PREFIX_PATH"] == str(tmp_path)


def test_environment_of_a_sourced_ros_keeps_it(tmp_path: Path) -> None:
    ros = Path("/opt/ros/jazzy")
    before = {"PATH": "/usr/bin", "PYTHONPATH": "/ros/py", "LD_LIBRARY_PATH": "/ros/lib"}
    env = environment({**before, "RMW_IMPLEMENTATION": "rmw_other"}, tmp_path, [ros])
    assert env["PYTHONPATH"] == "/ros/py"
    assert env["RMW_IMPLEMENTATION"] == "rmw_other"
    assert env["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:/ros/lib"
    assert env["AMENT_PREFIX_PATH"] == f"{tmp_path}:{ros}"
    assert environment(env, tmp_path, [ros]) == env, "a second time changes nothing"


def test_commands_run_in_the_environment_of_the_venv() -> None:
    """Even where HOME is not writable: there rclpy cannot make its log folder."""
    code = "import os, rclpy; rclpy.init(); print(os.environ['AMENT_PREFIX_PATH'])"
    env = {k: v for k, v in os.environ.items() if k != "ROS_LOG_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "tools.in_env", "python", "-c", code],
        cwd=ROOT,
        env={**env, "HOME": "/proc"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split(os.pathsep)[0].strip() == str(ROOT / ".venv")


def test_a_command_that_is_not_there_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.in_env", "no-such-command"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no-such-command: neither in .venv/bin nor on the PATH")


def test_missing_ros_packages_are_named(tmp_path: Path) -> None:
    for name in ("ament_cmake", "rclpy", "std_msgs"):
        (tmp_path / "share" / name).mkdir(parents=True)
    missing = missing_ros_packages(ROOT / "package.xml", [tmp_path])
    assert "sensor_msgs" in missing and "rosidl_default_generators" in missing
    assert not {"rclpy", "std_msgs", "python3-numpy", "ament_cmake_pytest"} & set(missing)


def test_a_sourced_ros_gets_only_what_it_lacks(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda *_, **__: "/usr/bin/colcon")
    present = {"numpy": "1.26.4", "pillow": "10.2.0", "pyyaml": "6.0.1"}
    missing = {pin.split("==")[0] for pin in packages.missing_pins(plan, present)}
    assert {"safetensors", "sentencepiece", "mujoco", "ruff"} <= missing
    assert not {"numpy", "pillow", "PyYAML", "colcon-ros", "ros-jazzy-rclpy"} & missing
    assert not [name for name in missing if name.startswith("tensorrt")]


@pytest.mark.parametrize("present", [{}, {"openpi-client": "0.1.1"}])
def test_what_declares_too_much_comes_without_its_dependencies(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, present: dict[str, str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(packages, "installed", lambda _: present)
    monkeypatch.setattr(packages, "pip", lambda _plan, _title, arguments: asked.append(arguments))
    packages.install_alone(plan)
    pins = packages.pins(ROOT / "requirements" / packages.WITHOUT_DEPENDENCIES)
    assert asked == ([] if present else [[*pins, "--no-deps"]])


@pytest.mark.parametrize(
    ("version", "ros"),
    [
        ("2.9.0+cu130", ()),
        ("2.9.0", ()),
        ("2.9.0+cpu", (Path("/opt/ros/jazzy"),)),
        (packages.pins(ROOT / "requirements" / "torch.txt")[0].split("==")[1] + "+cpu", ()),
    ],
)
def test_a_torch_that_somebody_chose_stays(
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str,
    ros: tuple[Path, ...],
) -> None:
    monkeypatch.setattr(packages, "installed", lambda _: {"torch": version})
    monkeypatch.setattr(packages, "pip", lambda *_: pytest.fail("installs over it"))
    packages.install_torch(Plan(plan.root, plan.venv, ros=ros))
    assert f"torch {version} is there and stays" in capsys.readouterr().out


@pytest.mark.parametrize("present", [{}, {"torch": "2.0.0+cpu"}])
def test_the_cpu_torch_follows_its_pin(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, present: dict[str, str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(packages, "installed", lambda _: present)
    monkeypatch.setattr(packages, "pip", lambda _plan, _title, arguments: asked.append(arguments))
    packages.install_torch(plan)
    assert asked == [[packages.pins(ROOT / "requirements" / "torch.txt")[0] + "+cpu"]]


@pytest.fixture
def no_cpu_torch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An index without the CPU build; the list fills with what was asked of it."""
    asked: list[str] = []

    def install(_: Plan, title: str, arguments: list[str]) -> None:
        asked.append(arguments[0])
        if arguments[0].endswith("+cpu"):
            raise SetupError("no matching distribution")

    monkeypatch.setattr(packages, "installed", lambda _: {})
    monkeypatch.setattr(packages, "pip", install)
    return asked


def test_without_a_cpu_torch_a_robot_is_left_to_choose(plan: Plan, no_cpu_torch: list[str]) -> None:
    with pytest.raises(SetupError, match=r"pip install torch"):
        packages.install_torch(Plan(plan.root, plan.venv, ros=(Path("/opt/ros/jazzy"),)))
    assert [requirement for requirement in no_cpu_torch if not requirement.endswith("+cpu")] == []


def test_without_a_cpu_torch_the_pinned_one_is_taken_and_said_to_be_big(
    plan: Plan, no_cpu_torch: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    packages.install_torch(plan)
    assert no_cpu_torch == [no_cpu_torch[1] + "+cpu", no_cpu_torch[1]]
    assert "several GB" in capsys.readouterr().out
