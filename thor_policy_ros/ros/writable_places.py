"""Where a node writes by itself, and what it does where it may not: it says so and goes on.

ROS's log and Triton's kernels lie below HOME by default. On a read-only file system, or for a user
without a home, they move to a folder of the process's own below $TMPDIR or /tmp; a log that has
no place at all is left to /rosout and the terminal.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path

NO_LOG_FILES = ("--ros-args", "--disable-external-lib-logs")
Environment = MutableMapping[str, str]


def place_log(environment: Environment) -> tuple[tuple[str, ...], str]:
    """Arguments for `rclpy.init`, which fails without a folder for logs, and what to tell or ''.

    Sets ROS_LOG_DIR where the log moves to.
    """
    wanted = _log_folder(environment)
    if wanted is not None and _made(wanted):
        return (), ""
    refused = f"ROS logs cannot be written to {wanted or '~/.ros/log (HOME is not set)'}"
    folder = _own_folder("thor_policy_ros_log_")
    if folder is None:
        return NO_LOG_FILES, f"{refused} nor to a temporary folder: none is kept in files"
    environment["ROS_LOG_DIR"] = folder
    return (), f"{refused}: they are in {folder}; set ROS_LOG_DIR to choose"


def place_kernel_cache(environment: Environment) -> str:
    """What to tell, or ''. Sets TRITON_CACHE_DIR where Triton's kernels cannot be kept.

    Nobody else may write to the folder: what is in it is run.
    """
    wanted = _kernel_folder(environment)
    if find_spec("triton") is None or (wanted is not None and _may_be_made(wanted)):
        return ""
    refused = f"Triton's kernels cannot be kept in {wanted or '~/.triton (HOME is not set)'}"
    folder = _own_folder("thor_policy_ros_kernels_")
    if folder is None:
        return f"{refused} nor in a temporary folder: backend fused needs TRITON_CACHE_DIR"
    environment["TRITON_CACHE_DIR"] = folder
    return f"{refused}: every start compiles them into {folder}; set TRITON_CACHE_DIR"


def name_torch_cache(environment: Environment) -> str:
    """What to tell, or ''. Sets TORCHINDUCTOR_CACHE_DIR, which is not written to by any backend of
    ours, where torch's own choice of a name would raise: without a temporary folder, or for a user
    whom the system has no name for.
    """
    named = environment.get("TORCHINDUCTOR_CACHE_DIR")
    if named and (Path(named).is_dir() or _may_be_made(Path(named))):
        return ""
    try:
        temporary = tempfile.gettempdir()
    except OSError as error:
        environment["TORCHINDUCTOR_CACHE_DIR"] = "/"  # torch wants a folder that is there
        return f"{error.strerror}: nothing is kept in files; set TMPDIR to choose a place"
    if named or not _has_name():
        environment["TORCHINDUCTOR_CACHE_DIR"] = f"{temporary}/torchinductor_{os.getuid()}"
    return f"torch's cache cannot be made in {named}: it is in {temporary}" if named else ""


def _has_name() -> bool:
    try:
        return bool(getpass.getuser())
    except (KeyError, OSError):  # the latter from Python 3.13 on
        return False


def _log_folder(environment: Environment) -> Path | None:
    """As rcl finds it; None for one below a HOME that is not set."""
    if environment.get("ROS_LOG_DIR"):
        return _expanded(environment["ROS_LOG_DIR"], environment)
    home = _expanded(environment.get("ROS_HOME") or "~/.ros", environment)
    return None if home is None else home / "log"


def _kernel_folder(environment: Environment) -> Path | None:
    if environment.get("TRITON_CACHE_DIR"):
        return Path(environment["TRITON_CACHE_DIR"])
    home = environment.get("TRITON_HOME") or environment.get("HOME")
    return Path(home) / ".triton" / "cache" if home else None


def _expanded(path: str, environment: Environment) -> Path | None:
    if not path.startswith("~"):
        return Path(path)
    return Path(environment["HOME"] + path[1:]) if environment.get("HOME") else None


def _made(folder: Path) -> bool:
    """A folder to write to, made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _may_be_made(folder: Path) -> bool:
    """As far as permissions tell; nothing is made that may never be used."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _own_folder(prefix: str) -> str | None:
    try:
        return tempfile.mkdtemp(prefix=prefix)
    except OSError:
        return None
