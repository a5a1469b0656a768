"""Stands in for the names of `launch` that our launch files use, where ROS has no launch.

It runs a launch file as `ros2 launch` would, up to starting processes: arguments get their
defaults, choices are checked, functions are called, included files are run.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ament_index_python.packages import get_package_prefix


class LaunchRefusedError(ValueError):
    """An argument that a launch file does not take."""


@dataclass
class DeclareLaunchArgument:
    name: str
    default_value: str | None = None
    description: str = ""
    choices: list[str] | None = None


@dataclass
class LaunchConfiguration:
    name: str

    def perform(self, context: dict[str, str]) -> str:
        return context[self.name]


@dataclass
class OpaqueFunction:
    function: Any


@dataclass
class IncludeLaunchDescription:
    source: Any


@dataclass
class PythonLaunchDescriptionSource:
    path: str


@dataclass
class LogInfo:
    msg: str


@dataclass
class Shutdown:
    reason: str = ""


@dataclass
class ParameterFile:
    path: str


@dataclass
class ParameterValue:
    value: Any
    value_type: type


@dataclass
class LaunchDescription:
    entities: list[Any]


@dataclass
class Node:
    """As launch_ros has it; only what our files use."""

    package: str
    executable: str
    name: str
    namespace: str = ""
    output: str = "log"
    emulate_tty: bool = False
    respawn: bool = False
    respawn_delay: float = 0.0
    parameters: list[Any] = field(default_factory=list)
    remappings: list[tuple[str, str]] = field(default_factory=list)
    ros_arguments: list[str] = field(default_factory=list)
    additional_env: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    on_exit: Shutdown | None = None

    def values(self) -> dict[str, Any]:
        """Parameters given besides the file, later ones winning."""
        given: dict[str, Any] = {}
        for parameters in self.parameters:
            if isinstance(parameters, Mapping):
                given.update(parameters)
        return {k: v.value if isinstance(v, ParameterValue) else v for k, v in given.items()}

    def argv(self, folder: Path) -> list[str]:
        """The installed executable with its arguments; single parameters as a file in `folder`."""
        program = Path(get_package_prefix(self.package)) / "lib" / self.package / self.executable
        argv = [str(program), "--ros-args", *self.ros_arguments, "-r", f"__node:={self.name}"]
        if self.namespace:
            argv += ["-r", f"__ns:=/{self.namespace.lstrip('/')}"]
        for old, new in self.remappings:
            argv += ["-r", f"{old}:={new}"]
        for parameters in self.parameters:
            if isinstance(parameters, ParameterFile):
                argv += ["--params-file", parameters.path]
        own = folder / f"{self.name}.yaml"
        own.write_text(yaml.safe_dump({f"/**/{self.name}": {"ros__parameters": self.values()}}))
        return [*argv, "--params-file", str(own)]


@dataclass
class Recording:
    """What a launch file declared and would start, for the arguments it was given."""

    arguments: dict[str, DeclareLaunchArgument] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


def record(path: Path, **given: str) -> Recording:
    """Runs a launch file with `name:=value` arguments. Raises LaunchRefusedError."""
    recording = Recording(context=dict(given))
    with _stand_ins():
        _run(path, recording)
    unknown = set(given) - set(recording.arguments)
    if unknown:
        raise LaunchRefusedError(f"arguments that no file declares: {sorted(unknown)}")
    return recording


def _run(path: Path, recording: Recording) -> None:
    for entity in runpy.run_path(str(path))["generate_launch_description"]().entities:
        _visit(entity, recording)


def _visit(entity: Any, recording: Recording) -> None:
    if isinstance(entity, DeclareLaunchArgument):
        _declare(entity, recording)
    elif isinstance(entity, IncludeLaunchDescription):
        _run(Path(entity.source.path), recording)
    elif isinstance(entity, OpaqueFunction):
        for made in entity.function(recording.context):
            _visit(made, recording)
    elif isinstance(entity, Node):
        recording.nodes.append(entity)
    elif isinstance(entity, LogInfo):
        recording.said.append(entity.msg)
    else:
        raise TypeError(f"the recorder does not know {entity!r}")


def _declare(argument: DeclareLaunchArgument, recording: Recording) -> None:
    recording.arguments.setdefault(argument.name, argument)
    if argument.name not in recording.context:
        if argument.default_value is None:
            raise LaunchRefusedError(f"argument {argument.name} is required")
        recording.context[argument.name] = argument.default_value
    value = recording.context[argument.name]
    if argument.choices is not None and value not in argument.choices:
        raise LaunchRefusedError(f"{argument.name}:={value}; choose one of {argument.choices}")


_NAMES = {
    "launch": {"LaunchDescription": LaunchDescription, "LaunchContext": dict},
    "launch.actions": {
        "DeclareLaunchArgument": DeclareLaunchArgument,
        "IncludeLaunchDescription": IncludeLaunchDescription,
        "LogInfo": LogInfo,
        "OpaqueFunction": OpaqueFunction,
        "Shutdown": Shutdown,
    },
    "launch.launch_description_sources": {
        "PythonLaunchDescriptionSource": PythonLaunchDescriptionSource
    },
    "launch.substitutions": {"LaunchConfiguration": LaunchConfiguration},
    "launch_ros": {},
    "launch_ros.actions": {"Node": Node},
    "launch_ros.parameter_descriptions": {
        "ParameterFile": ParameterFile,
        "ParameterValue": ParameterValue,
    },
}


@contextmanager
def _stand_ins() -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in _NAMES}
    for name, contents in _NAMES.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
