"""A file system that is nearly full, or that fills up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from thor_policy_ros.ros import small_disk as disks

fill = disks.fill


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A tmpfs of that size, whole pages, in the folder; the test is skipped without the right."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disks.small_disk(folder, num_bytes))
        except disks.NoSmallDiskError as error:
            pytest.skip(str(error))
        yield folder
