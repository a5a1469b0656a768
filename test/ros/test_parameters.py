"""Every row of the tables: complete, declared as written, and refused when out of range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from thor_policy_ros.ros.parameter_tables import CAMERA, EXECUTOR, POLICY, SIM_ROBOT
from thor_policy_ros.ros.parameters import NodeParameters, ParameterRow, markdown_table
from thor_policy_ros.ros.viewer_parameters import VIEWER

CONFIG = Path(__file__).parents[2] / "config"
TABLES = {
    "policy_node": (*POLICY, *(row.for_item("front") for row in CAMERA)),
    "chunk_executor_node": EXECUTOR,
    "sim_robot_node": SIM_ROBOT,
    "chunk_viewer_node": VIEWER,
}
ROWS = [
    pytest.param(row, id=f"{node}-{row.name}") for node, table in TABLES.items() for row in table
]
UNITS = {"_s": "s", "_ms": "ms", "_hz": "Hz"}


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node("parameter_test")
    yield node
    node.destroy_node()


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_complete(row: ParameterRow) -> None:
    assert row.description[0].isupper() and not row.description.endswith(".")
    if row.type in ("int", "double"):
        assert row.bounds is not None, "a number has a range"
    for suffix, unit in UNITS.items():
        if row.name.endswith(suffix):
            assert row.unit == unit
    if row.default not in (None, ""):
        assert row.refusal(row.default) == ""


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_declared_as_written(row: ParameterRow, node: Node) -> None:
    parameters = NodeParameters(node, [row])
    parameters.start()
    expected = () if row.default is None else row.default
    assert parameters[row.name] == expected
    descriptor: ParameterDescriptor = node.describe_parameter(row.name)
    assert descriptor.read_only is not row.live
    assert descriptor.description.startswith(row.description)
    if row.unit:
        assert f"[{row.unit}]" in descriptor.description
        assert f"unit: {row.unit}" in descriptor.additional_constraints
    if row.bounds and row.type == "double":
        shown = descriptor.floating_point_range[0]
        assert (shown.from_value, shown.to_value) == row.bounds
    if row.bounds and row.type == "int":
        shown = descriptor.integer_range[0]
        assert (shown.from_value, shown.to_value) == row.bounds


def outside(row: ParameterRow) -> list[Any]:
    """Values that a row must not take."""
    if row.choices:
        return ["no such choice"]
    if row.bounds is None:
        return []
    low, high = row.bounds
    if row.type == "int":
        return [int(low) - 1, int(high) + 1]
    values = [low - 1.0, high + 1.0, float("nan")]
    if row.type == "double":
        return [*values, float("inf"), float("-inf")]
    return [[value] for value in values if not low <= value <= high]


@pytest.mark.parametrize("row", ROWS)
def test_a_live_row_takes_its_bounds_and_refuses_what_is_outside(
    row: ParameterRow, node: Node
) -> None:
    parameters = NodeParameters(node, [row])
    parameters.start()
    if not row.live:
        value = row.default if row.default is not None else ["x"]
        result = node.set_parameters([Parameter(row.name, value=value)])[0]
        assert not result.successful and "read-only" in result.reason
        return
    for value in outside(row):
        result = node.set_parameters([Parameter(row.name, value=value)])[0]
        assert not result.successful and row.name in result.reason
        assert parameters[row.name] == row.default
    for bound in row.bounds or ():
        value = int(bound) if row.type == "int" else bound
        assert node.set_parameters([Parameter(row.name, value=value)])[0].successful
        assert parameters[row.name] == value


@pytest.mark.parametrize("row", [row for row in ROWS if outside(row.values[0])])
def test_a_start_value_outside_is_refused(row: ParameterRow) -> None:
    for value in outside(row):
        override = Parameter(row.name, value=value)
        node = Node("parameter_test", parameter_overrides=[override])
        try:
            with pytest.raises(InvalidParameterValueException, match=row.name):
                NodeParameters(node, [row])
        finally:
            node.destroy_node()


def test_values_are_checked_together_and_changes_announced(node: Node) -> None:
    rows = [
        ParameterRow("low", "double", 1.0, "Low", bounds=(0.0, 9.0), live=True),
        ParameterRow("high", "double", 2.0, "High", bounds=(0.0, 9.0), live=True),
    ]
    changes: list[dict[str, Any]] = []
    parameters = NodeParameters(
        node,
        rows,
        check=lambda v: "" if v["low"] < v["high"] else f"low {v['low']} is not below high",
        on_change=lambda changed: changes.append(dict(changed)),
    )
    parameters.start()
    result = node.set_parameters([Parameter("low", value=3.0)])[0]
    assert not result.successful and result.reason == "low 3.0 is not below high"
    both = [Parameter("low", value=3.0), Parameter("high", value=4.0)]
    assert node.set_parameters_atomically(both).successful
    assert changes == [{"low": 3.0, "high": 4.0}]
    assert (parameters["low"], parameters["high"]) == (3.0, 4.0)


def config_values() -> list[Any]:
    found = []
    for file in sorted(CONFIG.glob("*.yaml")):
        for name, section in yaml.safe_load(file.read_text()).items():
            for key, value in section["ros__parameters"].items():
                node_name = name.rpartition("/")[2]
                found.append(pytest.param(node_name, key, value, id=f"{file.stem}-{key}"))
    return found


@pytest.mark.parametrize(("node_name", "key", "value"), config_values())
def test_every_value_in_config_belongs_to_a_row_and_is_taken(
    node_name: str, key: str, value: Any
) -> None:
    row = row_of(node_name, key)
    node = Node("parameter_test", parameter_overrides=[Parameter(key, value=value)])
    try:
        taken = NodeParameters(node, [row])[key]
        assert taken == (tuple(value) if isinstance(value, list) else value)
    finally:
        node.destroy_node()


def row_of(node_name: str, key: str) -> ParameterRow:
    if key.startswith("camera."):
        name, suffix = key.split(".")[1:]
        return next(r for r in CAMERA if r.name.endswith(f".{suffix}")).for_item(name)
    return next(row for row in TABLES[node_name] if row.name == key)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_table_of_the_guide_has_a_line_for_each_row(table: tuple[ParameterRow, ...]) -> None:
    lines = markdown_table(table).splitlines()
    assert len(lines) == len(table) + 2
    for row, line in zip(table, lines[2:], strict=True):
        assert f"`{row.name}`" in line and row.description in line and line.count("|") == 6
