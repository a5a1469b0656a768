"""The arguments of our launch files, read where ROS has no `launch`.

A launch file is run as Python with stand-ins for the modules of ROS that it imports, up to its
list `ARGUMENTS`; nothing is launched.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

FOLDER = Path(__file__).resolve().parents[1] / "launch"
SHARE = "SHARE"  # in defaults: where the package is installed
_MODULES = (
    "ament_index_python",
    "ament_index_python.packages",
    "launch",
    "launch.actions",
    "launch.launch_description_sources",
    "launch.substitutions",
    "launch_ros",
    "launch_ros.actions",
    "launch_ros.parameter_descriptions",
)


class Argument(NamedTuple):
    """One `NAME:=VALUE` of a launch file. choices: () for any value."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...]


class _Module(ModuleType):
    """Has every name: `DeclareLaunchArgument` makes an `Argument`, the rest is never called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = {"DeclareLaunchArgument": _declared, "get_package_share_directory": lambda _: SHARE}
        return known.get(name, type(name, (Exception,), {}))


def _declared(
    name: str, default_value: str = "", description: str = "", choices: Sequence[str] = ()
) -> Argument:
    return Argument(name, default_value, description, tuple(choices))


def arguments(file: str) -> tuple[Argument, ...]:
    """What launch/`file` itself declares, in its order."""
    stand_ins = {name: _Module(name) for name in _MODULES}
    with mock.patch.dict(sys.modules, stand_ins):
        return tuple(runpy.run_path(str(FOLDER / file))["ARGUMENTS"])


def table(*files: str) -> str:
    """The arguments of the files together, each name once: the first file's word counts."""
    found: dict[str, Argument] = {}
    for file in files:
        found = {**{one.name: one for one in arguments(file)}, **found}
    order = [one.name for file in files for one in arguments(file)]
    lines = ["| argument | default | choices | what |", "|---|---|---|---|"]
    for name in dict.fromkeys(order):
        one = found[name]
        default = f"`{one.default}`" if one.default else "empty"
        choices = ", ".join(f"`{choice}`" for choice in one.choices)
        lines.append(f"| `{name}` | {default} | {choices} | {one.description} |")
    return "\n".join(lines) + "\n"
