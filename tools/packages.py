"""What pip installs into the venv: everything pinned, or only what a sourced ROS machine lacks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.machine import SetupError
from tools.steps import Plan, step

REQUIREMENTS = ("ros_wheels.txt", "runtime.txt", "demo.txt", "dev.txt")
WITHOUT_DEPENDENCIES = "without_dependencies.txt"
# A robot has the TensorRT and Triton that its GPU or torch came with, or none: tests skip then.
# atheris has wheels for x86-64 alone.
NEVER_ON_A_ROBOT = ("tensorrt-", "triton=", "atheris=")


def install_packages(plan: Plan) -> None:
    """Everything pinned in requirements/, and a CPU torch where there is no torch."""
    if plan.ros:
        install_missing(plan)
    else:
        install_pinned(plan)
    if not plan.messages_only:
        install_alone(plan)
        install_torch(plan)


def install_pinned(plan: Plan) -> None:
    names = REQUIREMENTS[:1] if plan.messages_only else REQUIREMENTS
    folder = plan.root / "requirements"
    files = [word for name in names for word in ("-r", str(folder / name))]
    title = "ROS 2 wheels and Python packages (0.6 GB once)"
    pip(plan, title, [*files, "-c", str(folder / "constraints.txt")])


def install_alone(plan: Plan) -> None:
    """What would drag in other versions of what is there than those that it runs with."""
    present = installed(plan)
    wanted = pins(plan.root / "requirements" / WITHOUT_DEPENDENCIES)
    missing = [pin for pin in wanted if normal_name(pin.split("==")[0]) not in present]
    if missing:
        pip(plan, "packages without their dependencies", [*missing, "--no-deps"])


def install_missing(plan: Plan) -> None:
    """Install pinned packages of which this machine has no version; leave the others alone.

    NumPy stays as it is: the extension modules of the sourced ROS were compiled for it.
    """
    present = installed(plan)
    missing = missing_pins(plan, present)
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text(f"numpy=={present['numpy']}\n" if "numpy" in present else "")
        pip(plan, f"{len(missing)} missing Python packages", [*missing, "-c", str(kept)])


def missing_pins(plan: Plan, present: dict[str, str]) -> list[str]:
    """Pins of packages that are not `present`, and of colcon where it is not on the PATH."""
    folder = plan.root / "requirements"
    names = () if plan.messages_only else REQUIREMENTS[1:]
    wanted = [
        pin for name in names for pin in pins(folder / name) if not pin.startswith(NEVER_ON_A_ROBOT)
    ]
    if not shutil.which("colcon", path=plan.environ["PATH"]):
        wanted += [pin for pin in pins(folder / "ros_wheels.txt") if pin.startswith("colcon-")]
    return sorted({pin for pin in wanted if normal_name(pin.split("==")[0]) not in present})


def install_torch(plan: Plan) -> None:
    """The pinned torch, its CPU build where the index has one, unless a torch is there already.

    On a machine with a ROS of its own (a robot) nothing but the CPU build is ever chosen for the
    user: there the right build depends on the GPU.
    """
    pinned = pins(plan.root / "requirements" / "torch.txt")[0]
    wanted = pinned + "+cpu"
    present = installed(plan).get("torch", "")
    ours = not present or (present.endswith("+cpu") and not plan.ros)
    if not ours or wanted == f"torch=={present}":
        print(f"setup: torch {present} is there and stays")
        return
    try:
        pip(plan, f"{wanted} (0.2 GB once)", [wanted])
    except SetupError as error:
        if plan.ros:
            raise SetupError(_torch_advice(plan, error)) from None
        print(
            f"setup: the package index has no {wanted}; taking {pinned}, which on x86-64 brings "
            "CUDA, several GB.\n       To take the CPU build instead, stop here and name PyTorch's "
            "CPU index in PIP_EXTRA_INDEX_URL."
        )
        pip(plan, f"{pinned} (several GB once)", [pinned])


def _torch_advice(plan: Plan, error: SetupError) -> str:
    pip_of_venv = shlex.quote(f"{plan.venv}/bin/pip")
    return (
        f"{error}\nNo CPU build of torch could be installed for this Python. Install the torch "
        f"that fits this machine's GPU, and go on:\n  {pip_of_venv} install torch\n  make setup"
    )


def pip(plan: Plan, title: str, arguments: Sequence[str]) -> None:
    """pip install, whatever a person's own pip settings say about where to."""
    settings = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [plan.venv_python, "-m", "pip", "install", *arguments]
    step(plan, title, command, settings)


def installed(plan: Plan) -> dict[str, str]:
    """Version of every distribution that the venv sees, by normalised name."""
    code = (
        "import importlib.metadata as m\n"
        "for d in m.distributions():\n    print(d.metadata['Name'], d.version)"
    )
    command = [plan.venv_python, "-c", code]
    listed = subprocess.run(command, env=plan.environ, stdout=subprocess.PIPE, check=True)
    rows = [line.split() for line in os.fsdecode(listed.stdout).splitlines()]
    # The first on the path is the one that is imported, so it is entered last.
    return {normal_name(row[0]): row[1] for row in reversed(rows) if len(row) == 2}


def pins(file: Path) -> list[str]:
    """The requirements of a file, without its comments."""
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line]


def normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
