"""The words for a task."""

import pytest

from thor_policy_ros.sim.instructions import (
    COLOURS,
    FOLLOW,
    HOLD_STILL,
    PICK_UP,
    SHAPES,
    Task,
    instruction_text,
    parse_instruction,
)


@pytest.mark.parametrize("verb", [PICK_UP, FOLLOW])
@pytest.mark.parametrize("colour", range(len(COLOURS)))
@pytest.mark.parametrize("noun", [*SHAPES, "object"])
def test_what_is_worded_is_understood(verb, colour, noun):
    assert parse_instruction(instruction_text(verb, colour, noun)) == Task(verb, colour, noun)


def test_wording():
    assert instruction_text(PICK_UP, 0, "cube") == "pick up the red cube"
    assert instruction_text(FOLLOW, 2, "object") == "follow the blue object"
    assert instruction_text(HOLD_STILL, 0, "cube") == ""


@pytest.mark.parametrize(
    "text",
    ["", "pick up the cube", "pick up the pink cube", "follow the red car", "push the red cube"],
)
def test_anything_else_is_refused_with_the_form_that_is_wanted(text):
    with pytest.raises(ValueError, match=r"wanted 'pick up\|follow the red"):
        parse_instruction(text)
