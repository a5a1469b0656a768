"""Joint limits and forward kinematics from a URDF. NumPy and the standard library alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

MOVING = ("revolute", "continuous", "prismatic")


class UrdfError(ValueError):
    """A URDF that does not say what is wanted of it."""


@dataclass(frozen=True)
class UrdfJoint:
    """One joint. origin: f64[4,4] from the parent link; axis: f64[3], of length 1.

    lower, upper, velocity: inf where the URDF gives no bound. rad or m.
    """

    name: str
    kind: str
    parent: str
    child: str
    origin: F64
    axis: F64
    lower: float
    upper: float
    velocity: float
    mimics: str


@dataclass(frozen=True)
class Chain:
    """The way from the root to one link.

    columns: of the positions, -1 for a joint that does not move.
    """

    link: str
    root: str
    joints: tuple[UrdfJoint, ...]
    columns: tuple[int, ...]

    def positions(self, joints: F64) -> F64:
        """Where the link's origin is in the root link: f64[N,A] -> f64[N,3], m."""
        return self.poses(joints)[:, :3, 3]

    def poses(self, joints: F64) -> F64:
        """Of the link in the root link: f64[N,A] -> f64[N,4,4]."""
        at = np.broadcast_to(np.eye(4), (len(joints), 4, 4))
        for joint, column in zip(self.joints, self.columns, strict=True):
            at = at @ joint.origin
            if column >= 0:
                at = at @ _moved(joint, joints[:, column])
        poses: F64 = at
        return poses


class Urdf:
    """A parsed robot description. Raises UrdfError for text that is none."""

    def __init__(self, text: str) -> None:
        try:
            robot = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise UrdfError(f"the robot description is not XML: {error}") from error
        if robot.tag != "robot":
            raise UrdfError(f"the robot description wants <robot>, got <{robot.tag}>")
        self.joints = {j.name: j for j in map(_joint, robot.findall("joint"))}

    def limits(self, names: Sequence[str]) -> tuple[F64, F64, F64]:
        """lower, upper, velocity of the joints, f64[A] each; inf where there is no bound."""
        missing = [name for name in names if name not in self.joints]
        if missing:
            raise UrdfError(
                f"the robot description lacks the joints {missing}; it has {sorted(self.joints)}"
            )
        found = [self.joints[name] for name in names]
        lower, upper, velocity = zip(*((j.lower, j.upper, j.velocity) for j in found), strict=True)
        return np.array(lower), np.array(upper), np.array(velocity)

    def chain(self, link: str, names: Sequence[str]) -> Chain:
        """To `link`, moved by the joints `names`, the columns of the positions.

        Raises UrdfError for a link that is not there and for a joint on the way that is not
        among the names: where the link is would not be known.
        """
        above = {joint.child: joint for joint in self.joints.values()}
        if link not in above:
            raise UrdfError(f"the robot description lacks the link {link!r}: {sorted(above)}")
        way: list[UrdfJoint] = []
        at = link
        while at in above:
            if above[at] in way:
                raise UrdfError(f"the robot description runs in a circle at link {at!r}")
            way.insert(0, above[at])
            at = above[at].parent
        return Chain(link, at, tuple(way), tuple(_column(joint, names) for joint in way))


def _column(joint: UrdfJoint, names: Sequence[str]) -> int:
    if joint.kind == "fixed":
        return -1
    if joint.kind not in MOVING or joint.mimics or joint.name not in names:
        how = f"mimics {joint.mimics!r}" if joint.mimics else f"is {joint.kind}"
        raise UrdfError(
            f"joint {joint.name!r} on the way to the link {how} and is not one of the commanded "
            f"{list(names)}; choose a link before it"
        )
    return list(names).index(joint.name)


def _joint(element: ElementTree.Element) -> UrdfJoint:
    name, kind = element.get("name", ""), element.get("type", "")
    parent, child = element.find("parent"), element.find("child")
    if not name or parent is None or child is None:
        raise UrdfError(f"joint {name!r} wants a name, a parent and a child")
    axis = _numbers(_get(element, "axis", "xyz", "1 0 0"), 3, name)
    length = float(np.linalg.norm(axis))
    if kind in MOVING and not length > 0:
        raise UrdfError(f"joint {name!r} has the axis {axis.tolist()}, of length 0")
    lower, upper = _bounds(element, name, kind)
    (speed,) = _numbers(_get(element, "limit", "velocity", "inf"), 1, name, finite=False)
    mimic = element.find("mimic")
    return UrdfJoint(
        name=name,
        kind=kind,
        parent=parent.get("link", ""),
        child=child.get("link", ""),
        origin=_origin(element, name),
        axis=axis / length if length > 0 else axis,
        lower=lower,
        upper=upper,
        # 0 is what exporters write for 'not known'.
        velocity=float(speed) if speed > 0 else np.inf,
        mimics="" if mimic is None else mimic.get("joint", "?"),
    )


def _bounds(element: ElementTree.Element, name: str, kind: str) -> tuple[float, float]:
    if kind not in ("revolute", "prismatic") or element.find("limit") is None:
        return -np.inf, np.inf
    (lower,) = _numbers(_get(element, "limit", "lower", "0"), 1, name)
    (upper,) = _numbers(_get(element, "limit", "upper", "0"), 1, name)
    if lower > upper:
        raise UrdfError(f"joint {name!r} has the limits {lower} to {upper}")
    return float(lower), float(upper)


def _origin(element: ElementTree.Element, name: str) -> F64:
    xyz = _numbers(_get(element, "origin", "xyz", "0 0 0"), 3, name)
    return pose_of(xyz, _numbers(_get(element, "origin", "rpy", "0 0 0"), 3, name))


def pose_of(xyz: Sequence[float] | F64, rpy: Sequence[float] | F64) -> F64:
    """f64[4,4], as a URDF's <origin> means it: m, and rad about the fixed axes x, y, z in turn."""
    at = np.eye(4)
    for number in (2, 1, 0):
        at[:3, :3] = at[:3, :3] @ _turn(np.eye(3)[number], np.array([rpy[number]]))[0]
    at[:3, 3] = xyz
    return at


def _moved(joint: UrdfJoint, by: F64) -> F64:
    """f64[N] -> f64[N,4,4]."""
    moved = np.tile(np.eye(4), (len(by), 1, 1))
    if joint.kind == "prismatic":
        moved[:, :3, 3] = by[:, None] * joint.axis
    else:
        moved[:, :3, :3] = _turn(joint.axis, by)
    return moved


def _turn(axis: F64, angle: F64) -> F64:
    """Rodrigues' formula: f64[3], f64[N] -> f64[N,3,3]."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    turned: F64 = np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)
    return turned


def _get(element: ElementTree.Element, tag: str, attribute: str, default: str) -> str:
    found = element.find(tag)
    return default if found is None else found.get(attribute, default)


def _numbers(text: str, count: int, joint: str, finite: bool = True) -> F64:
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise UrdfError(f"joint {joint!r}: {text!r} are not numbers") from error
    if len(values) != count or np.isnan(values).any() or (finite and np.isinf(values).any()):
        raise UrdfError(f"joint {joint!r}: wanted {count} finite numbers, got {text!r}")
    return values
