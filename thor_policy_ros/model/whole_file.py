"""Files that a reader sees whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of writing, as of a full disk, names no file by itself: it gets this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_whole(path: Path, data: str | bytes) -> Path:
    """Write the file beside its place and move it there; on an error nothing is left of it, and
    what was there before stays. A device or a pipe is written to as it is. Raises OSError that
    names the file.
    """
    raw = data.encode() if isinstance(data, str) else data
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(raw)
        return path
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with named(path), unfinished.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[None]:
    """What is written into a new or empty folder inside the block; on an error it is emptied, and
    gone if it was not there before. ValueError for a folder with anything in it, which stays.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for entry in list(folder.iterdir()) if folder.is_dir() else []:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for one in made:
            with suppress(OSError):
                one.rmdir()
        raise


def require_room(folder: Path, num_bytes: int) -> None:
    """OSError before minutes of writing what cannot fit. folder: new or there."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise OSError(
            f"{folder}: {num_bytes / 1e9:.3g} GB are to be written and {free / 1e9:.3g} GB are "
            "free; make room, or give a folder on another disk"
        )
