"""What setup has already done: keys of the inputs of each step, kept inside the venv."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

STAMP = "thor_policy_setup.json"
INSTALLED_FOLDERS = ("thor_policy_ros", "launch", "config", "checkpoints")


@dataclass(frozen=True)
class Origin:
    """What a venv is tied to: absolute paths are written all over it.

    root: the checkout. ros: the prefixes of the sourced ROS, joined by ':'; '' is the wheels.
    """

    root: str
    ros: str

    def difference(self, now: Origin) -> str:
        """In words, why a venv of this origin is no use now."""
        if self.root != now.root:
            return f".venv was made for a checkout in {self.root}, and this one is in {now.root}"
        if not now.ros:
            return f".venv was made for the ROS 2 in {self.ros}: source it again, or start anew:"
        return f".venv was made for {self.ros or 'the ROS 2 wheels'}; sourced is {now.ros}"


@dataclass(frozen=True)
class Stamp:
    """Keys of the steps that succeeded; '' for one that never did."""

    origin: Origin
    packages: str = ""
    build: str = ""

    def with_packages(self, key: str) -> Stamp:
        """New packages: the build has to be done again, too."""
        return replace(self, packages=key, build="")

    def with_build(self, key: str) -> Stamp:
        return replace(self, build=key)


def read(venv: Path) -> Stamp | None:
    """The stamp of a venv; None when there is none or it cannot be read."""
    try:
        fields = json.loads((venv / STAMP).read_text())
        return Stamp(Origin(**fields.pop("origin")), **fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # setup then does every step again


def write(venv: Path, stamp: Stamp) -> None:
    partial = venv / (STAMP + ".partial")
    partial.write_text(json.dumps(asdict(stamp), indent=1) + "\n")
    partial.replace(venv / STAMP)


def packages_key(root: Path, names: Sequence[str], messages_only: bool) -> str:
    """Key of what is installed: the requirement files and the choice among them."""
    files = [root / "requirements" / n for n in (*names, "torch.txt", "constraints.txt")]
    return _digest([str(messages_only).encode(), *(f.read_bytes() for f in files)])


def build_key(root: Path) -> str:
    """Key of what is built: contents where they are compiled, names where links are laid."""
    compiled = [
        root / "CMakeLists.txt",
        root / "package.xml",
        *sorted((root / "msg").glob("*.msg")),
    ]
    contents = [part for f in compiled for part in (f.name.encode(), f.read_bytes())]
    linked = sorted(str(f.relative_to(root)) for f in _linked_files(root))
    return _digest([*contents, "\n".join(linked).encode()])


def _linked_files(root: Path) -> Iterable[Path]:
    for folder in INSTALLED_FOLDERS:
        for file in (root / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
