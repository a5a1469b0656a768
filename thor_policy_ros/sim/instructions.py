"""What a user can ask of the simulated arm, and how it is worded."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("cube", "ball", "cylinder")
PICK_UP, FOLLOW, HOLD_STILL = 0, 1, 2
VERBS = ("pick up", "follow", "")
"""Index -> words; the last is the blank instruction, on which the arm holds still."""


@dataclass(frozen=True)
class Task:
    """A parsed instruction. colour: index into COLOURS; noun: a shape's name or 'object'."""

    verb: int
    colour: int
    noun: str


def instruction_text(verb: int, colour: int, noun: str) -> str:
    """For example 'pick up the red cube'; '' for HOLD_STILL."""
    if verb == HOLD_STILL:
        return ""
    return f"{VERBS[verb]} the {COLOURS[colour]} {noun}"


def parse_instruction(text: str) -> Task:
    """The task that a text names; ValueError says which form is understood."""
    for verb in (PICK_UP, FOLLOW):
        words = text.removeprefix(f"{VERBS[verb]} the ").split()
        if text.startswith(VERBS[verb]) and len(words) == 2 and words[0] in COLOURS:
            return Task(verb, COLOURS.index(words[0]), _noun(words[1], text))
    raise _not_understood(text)


def _noun(word: str, text: str) -> str:
    if word not in (*SHAPES, "object"):
        raise _not_understood(text)
    return word


def _not_understood(text: str) -> ValueError:
    return ValueError(
        f"instruction {text!r} is not understood; wanted 'pick up|follow the "
        f"{'|'.join(COLOURS)} {'|'.join(SHAPES)}|object'"
    )
