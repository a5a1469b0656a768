"""What one episode holds, and how its outcome is judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
from thor_policy_ros.sim.kinematics import joints_for_tip
from thor_policy_ros.sim.scene import NUM_OBJECTS, OBJECT_RADIUS_M, TABLE_X_M, TABLE_Y_M

LIFTED_M = 0.05
LIFTED_TICKS = 3
FOLLOW_RADIUS_M = 0.025
FOLLOW_CLEARANCE_M = (0.004, 0.10)
"""Height of the tip over the object's top that counts as following: close, not touching."""
FOLLOW_TICKS = 20
_SPACING_M = 0.11
_HOME_TIP_M = (0.40, 0.0, 0.21)
_HOME_SPREAD_M = (0.06, 0.10, 0.03)

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """A scene and a task. Arrays have one row an object.

    colours, shapes: indices into COLOURS and SHAPES, all colours different.
    positions: f64[3,2], m; headings_rad: f64[3]; start_joints: f64[4].
    target: index of the named object, -1 for a blank instruction.
    """

    colours: tuple[int, ...]
    shapes: tuple[int, ...]
    positions: F64
    headings_rad: F64
    start_joints: F64
    verb: int
    target: int
    instruction: str

    def other_instruction(self, rng: np.random.Generator) -> str:
        """The same verb for one of the objects that are not the target."""
        others = [i for i in range(NUM_OBJECTS) if i != self.target]
        other = int(rng.choice(others))
        return instruction_text(self.verb, self.colours[other], SHAPES[self.shapes[other]])


def plan_episode(rng: np.random.Generator, instruction: str | None) -> Episode:
    """Draw a scene; a given instruction decides the task and is made possible."""
    colours = rng.permutation(len(COLOURS))[:NUM_OBJECTS].tolist()
    shapes = rng.integers(0, len(SHAPES), NUM_OBJECTS).tolist()
    target, verb, generic = int(rng.integers(NUM_OBJECTS)), int(rng.integers(2)), rng.random() < 0.5
    positions = _apart(rng)
    headings = rng.uniform(-np.pi, np.pi, NUM_OBJECTS)
    start = joints_for_tip(np.asarray(_HOME_TIP_M) + rng.uniform(-1, 1, 3) * _HOME_SPREAD_M)
    if instruction is None:
        noun = "object" if generic else SHAPES[shapes[target]]
        instruction = instruction_text(verb, colours[target], noun)
    elif not instruction.strip():
        verb, target = HOLD_STILL, -1
    else:
        task = parse_instruction(instruction)
        verb, target = task.verb, _include(task, colours, shapes, target)
    return Episode(
        tuple(colours),
        tuple(shapes),
        positions,
        headings,
        start,
        verb,
        target,
        instruction,
    )


def _include(task: Task, colours: list[int], shapes: list[int], fallback: int) -> int:
    """Index of the named object, painting and shaping one if the scene lacks it."""
    target = colours.index(task.colour) if task.colour in colours else fallback
    colours[target] = task.colour
    if task.noun in SHAPES:
        shapes[target] = SHAPES.index(task.noun)
    return target


def _apart(rng: np.random.Generator) -> F64:
    """f64[3,2]: random places on the table, no two closer than a hand's breadth."""
    low, high = np.array([TABLE_X_M, TABLE_Y_M]).T
    while True:
        places = rng.uniform(low, high, (NUM_OBJECTS, 2))
        gaps = np.linalg.norm(places - np.roll(places, 1, axis=0), axis=1)
        if gaps.min() > _SPACING_M:
            return places


class Judge:
    """Counts ticks towards a verdict, by the rules of the two verbs."""

    def __init__(self, episode: Episode, max_ticks: int) -> None:
        self._episode = episode
        self._max_ticks = max_ticks
        self._ticks = 0
        self._lifted = np.zeros(NUM_OBJECTS, int)
        self._followed = 0
        self.outcome = "running"

    def tick(self, tip: F64, objects: F64, held: int) -> None:
        """Look at the scene once every 0.1 s. tip: f64[3]; objects: f64[3,3] centres, m."""
        self._ticks += 1
        raised = objects[:, 2] - OBJECT_RADIUS_M > LIFTED_M
        self._lifted = np.where(raised, self._lifted + 1, 0)
        following = self._episode.verb == FOLLOW and self._is_following(tip, objects, held)
        self._followed = self._followed + 1 if following else 0
        if self.outcome == "running":
            self.outcome = self._verdict()

    def _verdict(self) -> str:
        lifted = np.flatnonzero(self._lifted >= LIFTED_TICKS).tolist()
        target, verb = self._episode.target, self._episode.verb
        if verb == PICK_UP and target in lifted:
            return "success"
        if lifted:
            return "wrong_object"
        if self._followed >= FOLLOW_TICKS:
            return "success"
        return "timeout" if self._ticks >= self._max_ticks else "running"

    def _is_following(self, tip: F64, objects: F64, held: int) -> bool:
        x, y, z = (tip - objects[self._episode.target]).tolist()
        low, high = FOLLOW_CLEARANCE_M
        near = x * x + y * y < FOLLOW_RADIUS_M**2
        return held < 0 and near and low < z - OBJECT_RADIUS_M < high
