"""A disk of a few megabytes that can be filled, for the faults run: a tmpfs, which wants root."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE = 64 << 20
BALLAST = "ballast"


class NoSmallDiskError(RuntimeError):
    """This machine mounts nothing for us; the text says why."""


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int = SIZE) -> Iterator[Path]:
    """Mounted over the folder, whose content is gone afterwards. num_bytes: whole pages.

    Raises NoSmallDiskError.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "thor_policy_faults", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoSmallDiskError(f"a disk that can be filled wants mount: {error}") from error
    if mounted.returncode:
        said = mounted.stderr.strip()
        raise NoSmallDiskError(f"a disk that can be filled may be mounted by root alone: {said}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """To the last byte; again, where something was removed or cut meanwhile."""
    with (folder / BALLAST).open("ab", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2


def make_room(folder: Path) -> None:
    (folder / BALLAST).unlink(missing_ok=True)


def refusal(folder: Path) -> str:
    """Why there can be no such disk here, or ''. folder: empty, of our own."""
    try:
        with small_disk(folder):
            return ""
    except NoSmallDiskError as error:
        return str(error)
