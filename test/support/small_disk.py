"""A file system that is nearly full, or that fills up."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A tmpfs of that size, whole pages, in the folder; the test is skipped without the right."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Not a byte is left."""
    with pytest.raises(OSError) as caught, (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    assert caught.value.errno == errno.ENOSPC
