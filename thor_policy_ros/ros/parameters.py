"""How the nodes declare parameters: one table row each, checked the same way everywhere.

A row says name, type, default, range, unit, description and whether it may change while the
node runs. The same rows give the descriptors that `ros2 param describe` shows, the refusals
of wrong values and the tables of the guide.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

Value = Any
Check = Callable[[Mapping[str, Value]], str]

_TYPES = {
    "bool": Parameter.Type.BOOL,
    "int": Parameter.Type.INTEGER,
    "double": Parameter.Type.DOUBLE,
    "string": Parameter.Type.STRING,
    "string[]": Parameter.Type.STRING_ARRAY,
    "double[]": Parameter.Type.DOUBLE_ARRAY,
}


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of a node.

    type: a key of the ROS types above. default: None leaves an array unset, read as ().
    bounds: smallest and largest value, of each element for an array; numbers only.
    unit: '' for a plain number, text or flag.
    choices: the texts allowed; () for any.
    live: may be set while the node runs; otherwise read-only.
    """

    name: str
    type: str
    default: Value
    description: str
    unit: str = ""
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    live: bool = False

    def __post_init__(self) -> None:
        if self.type not in _TYPES:
            raise ValueError(f"{self.name}: type {self.type!r}; choose one of {sorted(_TYPES)}")
        if self.default is None and not self.type.endswith("[]"):
            raise ValueError(f"{self.name}: only an array may have no default")

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        descriptor = ParameterDescriptor(
            description=f"{self.description} [{self.unit}]" if self.unit else self.description,
            additional_constraints=self.constraints(),
            read_only=not self.live,
        )
        if self.bounds and self.type == "double":
            low, high = self.bounds
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        if self.bounds and self.type == "int":
            low, high = (int(bound) for bound in self.bounds)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
        return descriptor

    def constraints(self) -> str:
        """Unit, range of an array's elements and choices, in words."""
        parts = []
        if self.unit:
            parts.append(f"unit: {self.unit}")
        if self.bounds and self.type.endswith("[]"):
            parts.append(f"each from {self.bounds[0]:g} to {self.bounds[1]:g}")
        if self.choices:
            parts.append("one of: " + ", ".join(repr(choice) for choice in self.choices))
        return "; ".join(parts)

    def refusal(self, value: Value) -> str:
        """Why `value` cannot be taken, or ''."""
        if self.choices and value not in self.choices:
            choices = ", ".join(repr(choice) for choice in self.choices)
            return f"{self.name} is {value!r}; choose one of: {choices}"
        if self.type in ("double", "double[]"):
            return self._number_refusal(value)
        return ""

    def _number_refusal(self, value: Value) -> str:
        low, high = self.bounds or (-math.inf, math.inf)
        for number in value if self.type == "double[]" else (value,):
            if math.isnan(number) or not low <= number <= high:
                unit = f" {self.unit}" if self.unit else ""
                return f"{self.name} holds {number}; wanted {low:g} to {high:g}{unit}"
        return ""

    def for_item(self, item: str) -> ParameterRow:
        """The row of one camera: `{camera}` in the name, texts and default is replaced."""
        default = self.default
        return replace(
            self,
            name=self.name.format(camera=item),
            default=default.format(camera=item) if isinstance(default, str) else default,
            description=self.description.format(camera=item),
        )


class NodeParameters:
    """Declares rows on a node and answers with their values.

    Raises rclpy's InvalidParameterValueException or InvalidParameterTypeException, with the
    reason, for a start value that is refused.

    check: called with all values as they would become; returns why not, or ''.
    on_change: called with the new values of the live parameters that were set.
    """

    def __init__(
        self,
        node: Node,
        rows: Iterable[ParameterRow],
        check: Check = lambda values: "",
        on_change: Callable[[Mapping[str, Value]], None] = lambda values: None,
    ) -> None:
        self._node = node
        self._check = check
        self._on_change = on_change
        self._rows: dict[str, ParameterRow] = {}
        self._values: dict[str, Value] = {}
        self._started = False
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._post_set)
        self.declare(rows)

    def declare(self, rows: Iterable[ParameterRow]) -> None:
        """Adds rows; call `start` once all are there."""
        for row in rows:
            self._rows[row.name] = row
            self._values.setdefault(row.name, _plain(row.default))
            start = _TYPES[row.type] if row.default is None else row.default
            self._node.declare_parameter(row.name, start, row.descriptor())

    def start(self) -> None:
        """Checks the start values together. Raises ValueError with the reason."""
        reason = self._check(self._values)
        if reason:
            raise ValueError(reason)
        self._warn_of_unknown()
        self._started = True

    def _warn_of_unknown(self) -> None:
        """ROS drops a start value whose name is misspelt without a word."""
        for name in self._node._parameter_overrides:
            if not self._node.has_parameter(name) and not name.startswith("qos_overrides."):
                close = difflib.get_close_matches(name, self._rows, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self._node.get_logger().warning(f"unknown parameter {name!r} is ignored{hint}")

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        wanted = dict(self._values)
        for parameter in parameters:
            row = self._rows.get(parameter.name)
            if row is None or parameter.type_ == Parameter.Type.NOT_SET:
                continue
            reason = row.refusal(parameter.value)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
            wanted[row.name] = _plain(parameter.value)
        reason = self._check(wanted) if self._started else ""
        return SetParametersResult(successful=not reason, reason=reason)

    def _post_set(self, parameters: Sequence[Parameter]) -> None:
        ours = [parameter for parameter in parameters if parameter.name in self._rows]
        changed = {parameter.name: _plain(parameter.value) for parameter in ours}
        self._values.update(changed)
        if self._started and changed:
            self._on_change(changed)


def _plain(value: Value) -> Value:
    """Arrays as tuples, an unset array as ()."""
    if value is None:
        return ()
    return value if isinstance(value, (bool, int, float, str)) else tuple(value)


def markdown_table(rows: Iterable[ParameterRow]) -> str:
    """The rows as a table for the guide."""
    lines = ["| parameter | type | default | live | what |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (
            f"`{row.name}`",
            row.type,
            _default_cell(row),
            "yes" if row.live else "",
            f"{row.description}{_allowed(row)}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _default_cell(row: ParameterRow) -> str:
    if row.default is None:
        return "unset"
    if isinstance(row.default, bool):
        return str(row.default).lower()
    if isinstance(row.default, (list, tuple)):
        return "`[" + ", ".join(str(value) for value in row.default) + "]`"
    return f"`{row.default}`" if row.default != "" else "empty"


def _allowed(row: ParameterRow) -> str:
    """The range or the choices, behind the description; '' for any value without a unit."""
    if row.choices:
        named = ", ".join(f"`{choice}`" if choice else "empty" for choice in row.choices)
        return f". One of: {named}"
    if row.bounds is None:
        return f" [{row.unit}]" if row.unit else ""
    return f" ({row.bounds[0]:g} to {row.bounds[1]:g} {row.unit}".rstrip() + ")"
