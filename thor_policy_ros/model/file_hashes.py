"""SHA-256 of whole files, each read once by a process for as long as nobody writes to it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

Stamp = tuple[int, int, int, int, int]
# A file that was written while its hash was made, within one step of the file system's clock,
# would keep its stamp: what is as new as that is hashed again.
SETTLED_NS = 1_000_000_000
HASH_BLOCK = 1 << 22

_known: dict[Stamp, str] = {}


def sha256_of(path: Path) -> str:
    """64 hex digits, in the memory of one block. Raises OSError."""
    known = known_sha256(path)
    if known is not None:
        return known
    before, begun_ns = _stamp(path), time.time_ns()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if before == _stamp(path) and begun_ns - before[-1] > SETTLED_NS:
        _known[before] = found
    return found


def known_sha256(path: Path) -> str | None:
    """The hash that this process has made of the file as it is now; None where it has not."""
    return _known.get(_stamp(path))


def _stamp(path: Path) -> Stamp:
    """The inode's own time of change comes last: unlike the others, nobody can set it back."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
