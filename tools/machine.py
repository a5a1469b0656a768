"""What this machine has: an interpreter, its headers, a compiler. Each lack names its cure."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Python versions that both the ROS 2 wheels and the pinned packages exist for, best tested first.
WHEEL_PYTHONS = ("3.11", "3.12", "3.13")
FREE_BYTES = 4_000_000_000  # .venv takes 2.6 GB, downloads and builds come on top

_PROBE = """
import importlib.util, json, os, sys, sysconfig
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
have = [bool(importlib.util.find_spec(m)) for m in ("venv", "ensurepip")]
version = "%d.%d" % sys.version_info[:2]
print(json.dumps([sys.executable, version, os.path.exists(header), all(have)]))
"""


class SetupError(Exception):
    """Setup cannot go on; the message says what is wanted, what was found, what to do."""


@dataclass(frozen=True)
class Interpreter:
    """A Python that runs. `version` is 'major.minor'."""

    path: str
    version: str
    has_headers: bool
    has_venv: bool

    def missing_packages(self) -> list[str]:
        """Debian's names of what it lacks for building a package with messages in a venv."""
        lacks = [] if self.has_headers else [f"python{self.version}-dev"]
        return lacks if self.has_venv else [*lacks, f"python{self.version}-venv"]


def probe(command: str, environ: Mapping[str, str]) -> Interpreter | None:
    """The interpreter behind a command, or None where it is absent or does not run."""
    try:
        done = subprocess.run(
            [command, "-c", _PROBE],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None  # a pyenv shim of a version that is not active, for one
    return Interpreter(*json.loads(done.stdout))


def choose_python(
    requested: str, versions: Sequence[str], environ: Mapping[str, str]
) -> Interpreter:
    """The interpreter for the venv: the requested one, or the first suitable of `versions`.

    A complete one wins over an earlier one that lacks headers or venv. SetupError when the
    requested one does not suit, or when there is none.
    """
    if requested:
        return _checked(requested, versions, environ)
    commands = [*(f"python{v}" for v in versions), "python3"]
    found = [p for p in (probe(c, environ) for c in commands) if p is not None]
    suitable = [p for p in found if p.version in versions]
    if not suitable:
        seen = ", ".join(sorted({p.version for p in found})) or "none"
        first = f"python{versions[0]}"
        raise SetupError(
            f"Python {_listed(versions)} is wanted; found {seen}.\n"
            f"  sudo apt install {first} {first}-venv {first}-dev\n"
            "or name one: make setup PYTHON=/path/to/python3"
        )
    return next((p for p in suitable if not p.missing_packages()), suitable[0])


def check_platform() -> None:
    """SetupError where the ROS 2 wheels do not exist."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        raise SetupError(
            "no ROS 2 is sourced, and its wheels exist for Linux on x86-64 only; "
            f"this is {system} on {machine}.\n"
            "Install ROS 2 Jazzy (ros-jazzy-ros-base), then:\n"
            "  source /opt/ros/jazzy/setup.bash && make setup"
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 28):
        raise SetupError(
            f"the ROS 2 wheels want glibc 2.28 or newer; this system has {libc or 'no glibc'} "
            f"{version}. Use Debian 12, Ubuntu 22.04 or newer."
        )


def check_tools(python: Interpreter, environ: Mapping[str, str]) -> None:
    """SetupError that names, in one go, every package the build lacks."""
    wanted = [
        (environ.get("CC"), ("cc", "gcc", "clang"), "gcc"),
        (environ.get("CXX"), ("c++", "g++", "clang++"), "g++"),
        (None, ("make", "ninja"), "make"),
    ]
    path = environ.get("PATH", os.defpath)
    packages = [apt for named, names, apt in wanted if not _any_command(named, names, path)]
    packages += python.missing_packages()
    if packages:
        raise SetupError(
            f"building the messages for Python {python.version} ({python.path}) lacks: "
            f"{', '.join(packages)}\n  sudo apt install {' '.join(packages)}"
        )


def check_disk(folder: Path) -> None:
    """SetupError when the disk of `folder` has no room for the venv."""
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise SetupError(
            f"setup wants {FREE_BYTES / 1e9:.0f} GB free in {folder}; {free / 1e9:.1f} GB are free."
        )


def _checked(command: str, versions: Sequence[str], environ: Mapping[str, str]) -> Interpreter:
    found = probe(command, environ)
    if found is None:
        raise SetupError(f"PYTHON={command} does not run; name a Python {_listed(versions)}.")
    if found.version not in versions:
        raise SetupError(f"Python {_listed(versions)} is wanted; {command} is {found.version}.")
    return found


def _any_command(named: str | None, names: Iterable[str], path: str) -> bool:
    candidates = [named.split()[0]] if named and named.strip() else names
    return any(shutil.which(c, path=path) for c in candidates)


def _listed(versions: Sequence[str]) -> str:
    if len(versions) == 1:
        return versions[0]
    return ", ".join(versions[:-1]) + " or " + versions[-1]
