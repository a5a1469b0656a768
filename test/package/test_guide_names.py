"""What the guide and README tell a reader to type exists: commands, options, arguments, names."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from thor_policy_ros.backends.registry import BACKENDS, REMOTE
from thor_policy_ros.evaluation.cli import COMMANDS, command_parser
from thor_policy_ros.ros.parameter_tables import CAMERA, EXECUTOR, POLICY, SIM_ROBOT
from thor_policy_ros.ros.viewer_parameters import VIEWER
from tools import guide, guide_commands, guide_launch

FILES = [*sorted(guide.DOCS.glob("*.md")), *(guide.ROOT / name for name in guide.ELSEWHERE)]
FILES.append(guide.ROOT / "README.md")
PARSERS = {command.name: command_parser(command) for command in COMMANDS}
ROWS = {
    "policy_node": POLICY,
    "chunk_executor_node": EXECUTOR,
    "sim_robot_node": SIM_ROBOT,
    "chunk_viewer_node": VIEWER,
}
NAMES = {node: {row.name for row in rows} for node, rows in ROWS.items()}
LAUNCH = {
    argument.name
    for file in ("policy.launch.py", "executor.launch.py", "demo.launch.py", "viewers.launch.py")
    for argument in guide_launch.arguments(file)
}
each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")


def code_lines(text: str) -> Iterator[str]:
    """Lines of code blocks and inline code, continued lines joined."""
    joined = text.replace("\\\n", " ")
    fenced = re.findall(r"^ *```.*?^ *```", joined, re.MULTILINE | re.DOTALL)
    yield from (line for block in fenced for line in block.splitlines()[1:-1])
    rest = re.sub(r"^ *```.*?^ *```", "", joined, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^ {4,}(.+)$", rest, re.MULTILINE)
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", rest))


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe of prose
        return line.split()


def calls(text: str) -> Iterator[list[str]]:
    """Each `thor-policy COMMAND ...` with its words, as far as the shell would take them."""
    for line in code_lines(text):
        words = words_of(line)
        starts = [i for i, word in enumerate(words) if word.rsplit("/", 1)[-1] == "thor-policy"]
        for start in starts:
            call = words[start + 1 :]
            end = next((i for i, word in enumerate(call) if re.match(r"[|;&>]", word)), len(call))
            if call[:end]:
                yield call[:end]


def fault(call: list[str]) -> str:
    """Why a call cannot be typed, or ''."""
    name, *rest = (re.sub(r"[\[\],.;:]+$", "", word.lstrip("[")) for word in call)
    if name in ("COMMAND", "X") or name.startswith("--"):
        return ""
    if name not in PARSERS:
        return f"no command {name!r}"
    parser = PARSERS[name]
    inner = {p.prog.rsplit(" ", 1)[-1]: p for p in guide_commands.inner_parsers(parser)}
    known = (
        [inner[word] for word in re.split(r"\|", rest[0])]
        if rest and inner and set(rest[0].split("|")) <= set(inner)
        else [parser, *inner.values()]
    )
    options = {option for p in known for option in p._option_string_actions}
    given = [word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    return "; ".join(f"no option {word!r}" for word in given if word not in options)


@each_file
def test_commands_and_their_options_exist(file: Path) -> None:
    found = [(call, fault(call)) for call in calls(file.read_text())]
    assert [(" ".join(call), why) for call, why in found if why] == []


def test_the_check_knows_what_does_not_exist() -> None:
    wrong = "Try `thor-policy dance` or\n\n    thor-policy bench latency \\\n        --no-such 3\n"
    assert [fault(call) for call in calls(wrong)] == ["no option '--no-such'", "no command 'dance'"]
    assert len([call for file in FILES for call in calls(file.read_text())]) > 60


@each_file
def test_launch_arguments_exist(file: Path) -> None:
    code = "\n".join(code_lines(file.read_text()))
    code = re.sub(r"(?:-r|-p) \S+:=", "", code)  # of `ros2 run`, not of a launch file
    assert set(re.findall(r"(?<![\w/~])([a-z_]+):=", code)) - LAUNCH == set()


@each_file
def test_parameters_that_are_set_exist(file: Path) -> None:
    pattern = r"ros2 param (?:set|get|describe) /(\w+) ([\w.]+)"
    for node, name in re.findall(pattern, "\n".join(code_lines(file.read_text()))):
        assert name == "NAME" or name in NAMES[node], f"{node} has no parameter {name}"


@each_file
def test_parameters_of_a_table_exist(file: Path) -> None:
    every = set().union(*NAMES.values()) | {row.name for row in CAMERA}
    tables = re.findall(
        r"^\| parameter \|.*\n\|[-|]+\n((?:\|.*\n)+)", file.read_text(), re.MULTILINE
    )
    named = [re.match(r"\| `([\w.{}]+)`", row) for table in tables for row in table.splitlines()]
    assert [one[1] for one in named if one and one[1] not in every] == []


@each_file
def test_parameter_files_in_the_text_hold_known_names(file: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", file.read_text(), re.DOTALL):
        for node, below in yaml.safe_load(block).items():
            values = below["ros__parameters"]
            cameras = values.get("cameras", ())
            rows = {row.for_item(camera).name for row in CAMERA for camera in cameras}
            unknown = set(values) - NAMES[node.rsplit("/", 1)[-1]] - rows
            assert unknown == set(), f"{node} in {file.name}"


@each_file
def test_backends_that_are_named_exist(file: Path) -> None:
    code = "\n".join(code_lines(file.read_text()))
    named = re.findall(r"(?:--backend |backend:=|/policy_node backend )([\w,]+)", code)
    names = {name for group in named for name in group.split(",")} - {"NAME", "", "X"}
    refused = {"no_such_engine", "trt"}  # shown with the node's refusal
    assert names - {*BACKENDS, REMOTE.name} - refused == set()


def test_yaml_for_a_robot_has_the_types_that_ros_wants() -> None:
    text = (guide.DOCS / "your_robot.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    kinds = {"double": float, "int": int, "bool": bool, "string": str}
    for node, below in yaml.safe_load(block).items():
        rows = {row.name: row for row in ROWS[node.rsplit("/", 1)[-1]]}
        for name, value in below["ros__parameters"].items():
            if name in rows and not name.startswith("camera."):
                kind = rows[name].type
                values = value if kind.endswith("[]") else [value]
                assert all(type(one) is kinds[kind.removesuffix("[]")] for one in values), name


def test_a_subparser_is_found() -> None:
    """`bench latency` has options that `bench` has not."""
    inner = list(guide_commands.inner_parsers(PARSERS["bench"]))
    assert all(isinstance(one, argparse.ArgumentParser) for one in inner) and len(inner) > 3
