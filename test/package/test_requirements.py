"""Every dependency is pinned, says what it is for, and is pinned to one version only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import thor_policy_ros
from tools.packages import REQUIREMENTS, WITHOUT_DEPENDENCIES, normal_name, pins

FOLDER = Path(thor_policy_ros.__file__).resolve().parents[1] / "requirements"
LOCKED = (*REQUIREMENTS, WITHOUT_DEPENDENCIES)
CHOSEN = (*LOCKED, "torch.txt")
EXTRAS = ("libero.txt", "ray.txt")  # not in `make setup`; the first is another environment's
CONSTRAINTS = dict(pin.split("==") for pin in pins(FOLDER / "constraints.txt"))


@pytest.mark.parametrize("name", (*CHOSEN, *EXTRAS))
def test_each_line_is_pinned_and_says_why(name: str) -> None:
    lines = [line for line in (FOLDER / name).read_text().splitlines() if line[:1] != "#"]
    assert lines
    assert [line for line in lines if not re.match(r"^[\w.-]+==[\w.]+ +# \S", line)] == []


@pytest.mark.parametrize("name", LOCKED)
def test_pins_and_constraints_agree(name: str) -> None:
    locked = {normal_name(package): version for package, version in CONSTRAINTS.items()}
    chosen = dict(pin.split("==") for pin in pins(FOLDER / name))
    assert {p: v for p, v in chosen.items() if locked.get(normal_name(p)) != v} == {}


def test_no_file_is_forgotten() -> None:
    assert {f.name for f in FOLDER.iterdir()} == {*CHOSEN, *EXTRAS, "constraints.txt"}


def test_torch_is_pinned_in_its_own_file_alone() -> None:
    """Elsewhere pip would take PyPI's build, with gigabytes of CUDA."""
    assert "torch" not in CONSTRAINTS
    assert [n for n in REQUIREMENTS for pin in pins(FOLDER / n) if pin.startswith("torch=")] == []
