"""make setup: `.venv` with all that the demo and the tests need, and the package built in it.

Without ROS 2 on the machine its pinned wheels are installed; where ROS 2 is sourced that one is
used, and only what is missing is installed. Does nothing when nothing changed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools import machine, setup_stamp
from tools.machine import Interpreter, SetupError
from tools.packages import REQUIREMENTS, WITHOUT_DEPENDENCIES, install_packages
from tools.ros_prefixes import missing_ros_packages, sourced_ros
from tools.steps import Plan, step

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    plan = parse(arguments)
    os.umask(0o022)  # a venv that only its maker can read helps nobody
    try:
        with alone():
            set_up(plan)
    except SetupError as error:
        print(f"\nsetup stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup stopped; `make setup` goes on where it was", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="python3 -m tools.bootstrap", description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    parser.add_argument("--python", default="", help="Python of the venv; default: a suitable one")
    parser.add_argument("--messages-only", action="store_true", help="no torch, demo, test tools")
    options = parser.parse_args(arguments)
    venv = options.venv.absolute()
    ros = tuple(sourced_ros(os.environ, venv))
    return Plan(ROOT, venv, options.python, ros, options.messages_only)


def set_up(plan: Plan) -> None:
    """Take the steps whose inputs changed since they last succeeded."""
    existing = machine.probe(plan.venv_python, plan.environ)
    stamp = known_state(plan, existing)
    names = (*REQUIREMENTS, WITHOUT_DEPENDENCIES)
    packages = setup_stamp.packages_key(plan.root, names, plan.messages_only)
    build = setup_stamp.build_key(plan.root)
    if stamp.packages == packages and stamp.build == build:
        print(f"setup: nothing to do, {plan.venv} is up to date")
        return
    make_venv(plan, existing)
    if stamp.packages != packages:
        install_packages(plan)
        stamp = stamp.with_packages(packages)
        setup_stamp.write(plan.venv, stamp)
    build_package(plan)
    check_messages(plan)
    setup_stamp.write(plan.venv, stamp.with_build(build))
    print(f"setup: done. In a shell of your own: source {plan.venv}/setup.bash")


def known_state(plan: Plan, existing: Interpreter | None) -> setup_stamp.Stamp:
    """What earlier runs did. SetupError when the venv is for another checkout, ROS or Python."""
    origin = setup_stamp.Origin(str(plan.root), os.pathsep.join(map(str, plan.ros)))
    if existing is None:
        return setup_stamp.Stamp(origin)
    wanted = machine.probe(plan.python, os.environ) if plan.python else None
    if wanted and wanted.version != existing.version:
        raise SetupError(
            f"{plan.venv} has Python {existing.version}, and PYTHON={plan.python} is "
            f"{wanted.version}\n  make clean && make setup PYTHON={plan.python}"
        )
    stamp = setup_stamp.read(plan.venv) or setup_stamp.Stamp(origin)
    if stamp.origin != origin:
        raise SetupError(f"{stamp.origin.difference(origin)}\n  make clean && make setup")
    return stamp


def make_venv(plan: Plan, existing: Interpreter | None) -> None:
    """Create the venv, or mend one whose creation was interrupted."""
    if plan.ros:
        check_ros(plan)
    else:
        machine.check_platform()
    python = existing or machine.choose_python(plan.python, supported_pythons(plan), os.environ)
    machine.check_tools(python, plan.environ)
    if existing and has_pip(plan):
        return
    plan.venv.mkdir(parents=True, exist_ok=True)
    machine.check_disk(plan.venv)
    options = ["--system-site-packages"] if plan.ros else []
    command = [python.path, "-m", "venv", *options, plan.venv]
    step(plan, f"venv of Python {python.version} ({python.path})", command)


def supported_pythons(plan: Plan) -> Sequence[str]:
    """Versions to choose from: those of the wheels, or the one the sourced ROS was built for."""
    if not plan.ros:
        return machine.WHEEL_PYTHONS
    folders = [f for p in plan.ros for f in p.glob("lib/python3.*/site-packages/rclpy")]
    if not folders:
        raise SetupError("the sourced ROS 2 has no rclpy\n  sudo apt install ros-jazzy-rclpy")
    return [folders[0].parents[1].name[len("python") :]]


def check_ros(plan: Plan) -> None:
    """SetupError when the sourced ROS lacks packages that package.xml names."""
    missing = missing_ros_packages(plan.root / "package.xml", plan.ros)
    if missing:
        distribution = os.environ.get("ROS_DISTRO", "jazzy")
        names = " ".join(f"ros-{distribution}-{name.replace('_', '-')}" for name in missing)
        raise SetupError(
            f"the sourced ROS 2 lacks {', '.join(missing)}\n  sudo apt install {names}"
        )


def has_pip(plan: Plan) -> bool:
    command = [plan.venv_python, "-m", "pip", "--version"]
    return subprocess.run(command, env=plan.environ, capture_output=True).returncode == 0


def build_package(plan: Plan) -> None:
    """colcon build, with the venv as the install prefix.

    Modules, launch and configuration files become links to the source tree: edits are live.
    """
    command = ["colcon", "--log-base", plan.venv / "log", "build", "--base-paths", plan.root]
    command += ["--build-base", plan.venv / "build", "--install-base", plan.venv]
    command += ["--merge-install", "--symlink-install", "--cmake-args", "-DBUILD_TESTING=OFF"]
    command += [f"-D{v}={plan.venv_python}" for v in ("THOR_POLICY_PYTHON", "Python3_EXECUTABLE")]
    # A person's own colcon defaults may ask for another layout.
    step(plan, "colcon build", command, {"COLCON_HOME": str(plan.venv / "colcon")})


def check_messages(plan: Plan) -> None:
    """SetupError when the generated messages do not work in the venv's Python."""
    code = (
        "from rclpy.serialization import serialize_message\n"
        "from thor_policy_ros.msg import ActionChunk\n"
        "serialize_message(ActionChunk(actions=[1.0]))"
    )
    step(plan, "messages import", [plan.venv_python, "-c", code])


@contextmanager
def alone() -> Iterator[None]:
    """Hold a lock, so that two setups of one checkout run one after the other."""
    with open(__file__, "rb") as this:
        try:
            fcntl.flock(this, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: another one is running; waiting", flush=True)
            fcntl.flock(this, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
