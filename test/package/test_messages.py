"""The messages: every field has its unit, and the built ones are those of the source."""

from __future__ import annotations

import array
import re
from pathlib import Path

import pytest
from rclpy.serialization import deserialize_message, serialize_message

import thor_policy_ros
from thor_policy_ros import msg
from thor_policy_ros.msg import ActionChunk, FrameLatency

MSG = Path(thor_policy_ros.__file__).resolve().parents[1] / "msg"
FILES = sorted(MSG.glob("*.msg"))
FIELD = re.compile(
    r"^(?P<type>[\w/]+(\[\])?) +(?P<name>\w+) +# \[(?P<unit>[^\]]+)\] (?P<text>\S.+)$"
)
STAGES = ("wait", "preprocess", "vision", "prefill", "denoise", "postprocess", "publish", "total")


def fields(file: Path) -> list[re.Match[str]]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    matches = [FIELD.match(line) for line in lines]
    bad = [line for line, match in zip(lines, matches, strict=True) if match is None]
    assert bad == [], f"{file.name}: want 'type name  # [unit] what it is'"
    return [match for match in matches if match]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_field_has_its_unit(file: Path) -> None:
    for field in fields(file):
        for suffix in ("ms", "s", "m", "rad", "hz"):
            if field["name"].endswith("_" + suffix):
                assert field["unit"] == suffix, f"{file.name}: {field['name']}"
        if field["type"] in ("bool", "string"):
            assert field["unit"] == "-", f"{file.name}: {field['name']}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_built_message_is_the_one_in_the_source(file: Path) -> None:
    """An old build would go unnoticed until a field is missed at run time."""
    built = getattr(msg, file.stem).get_fields_and_field_types()
    assert list(built) == [field["name"] for field in fields(file)], "run `make setup`"


def test_every_stage_is_a_plain_float_that_plots_by_name() -> None:
    types = FrameLatency.get_fields_and_field_types()
    for name in (*STAGES, "prefix_age", "deadline"):
        assert types[f"{name}_ms"] == "float"


def test_a_chunk_survives_the_wire() -> None:
    actions = array.array("f", [0.25, -1.5, 3.0, 0.0])
    sent = ActionChunk(backend="pytorch", horizon=2, action_dim=2, dt=0.1, joint_names=["a", "b"])
    sent.actions = actions
    received = deserialize_message(serialize_message(sent), ActionChunk)
    assert received == sent
    assert received.actions == actions


def test_a_wrong_field_is_refused() -> None:
    """Holds for all tests: without these checks rclpy may publish memory that is not ours."""
    with pytest.raises(AssertionError):
        ActionChunk().horizon = -1
    with pytest.raises(AssertionError):
        ActionChunk().actions = ["not a number"]
