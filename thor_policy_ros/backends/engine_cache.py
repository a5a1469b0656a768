"""Built engines on disk: found again by everything they depend on, never trusted unread.

A file is `MAGIC`, the length of its header, the header (JSON: the key, the size and SHA-256 of
the engine), the header's own SHA-256, and the engine. It is written beside its place and renamed,
so a reader sees a whole file or none. Building holds a lock of its key: a second process waits
and then reads what the first one built.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"thor-engine\x00\x01\n\r\n"
SUFFIX, LOCK, PARTIAL = ".engine", ".lock", ".partial"
_LENGTH = struct.Struct("<I")
HASH_BYTES = 32


class EngineFileError(ValueError):
    """A file that is not the engine that was looked for; the message names file and fault."""


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on; any difference makes another file.

    checkpoint: hash of the weights. engine, engine_version: the builder, such as tensorrt 10.13.
    gpu, capability: name and 'sm_110' of the GPU it is for. precision: 'bfloat16'.
    part: which network. shapes: its sizes and buckets. settings: the builder's, in words.
    sources: digest of the files that define the networks.
    """

    checkpoint: str
    engine: str
    engine_version: str
    gpu: str
    capability: str
    precision: str
    part: str
    shapes: str
    settings: str
    sources: str

    @property
    def digest(self) -> str:
        """Name of the file: SHA-256 of the fields, as 32 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Fetched(NamedTuple):
    """An engine, where it lies, whether it was built just now, and why the old file was not used.

    engine: read-only; it stays valid after the file has been evicted or replaced.
    """

    engine: memoryview
    path: Path
    built: bool
    replaced: str


class EngineCache:
    """A folder of engines of at most `max_bytes`, the least recently used leaving first.

    Any number of threads and processes may use one folder. A single engine larger than
    `max_bytes` is kept, alone.
    """

    def __init__(self, folder: Path | str, max_bytes: int = 64 << 30) -> None:
        if max_bytes < 0:
            raise ValueError(f"an engine cache wants max_bytes of 0 or more, got {max_bytes}")
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def path(self, key: EngineKey) -> Path:
        """Where the engine of `key` lies, if there is one."""
        return self.folder / f"{key.part}-{key.digest}{SUFFIX}"

    def fetch(self, key: EngineKey, build: Callable[[], bytes | memoryview]) -> Fetched:
        """The engine of `key`: read, or built and stored. A bad file is named and replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(key)
        with _locked(path.with_suffix(LOCK)):
            engine, fault = _read_if_good(path, key)
            if engine is not None:
                os.utime(path)
                return Fetched(engine, path, False, "")
            _write(path, key, build())
            stored = read_engine(path, key)
        self._evict(keep=path)
        return Fetched(stored, path, True, fault)

    def find(self, key: EngineKey) -> memoryview | None:
        """The engine of `key`, or None where there is no file; EngineFileError for a bad one."""
        try:
            return read_engine(self.path(key), key)
        except FileNotFoundError:
            return None

    def discard(self, key: EngineKey) -> None:
        """Remove the engine of `key`, if there is one, which turned out to be of no use."""
        path = self.path(key)
        with _locked(path.with_suffix(LOCK)):
            path.unlink(missing_ok=True)

    def touch(self, key: EngineKey) -> None:
        """Count the engine as used just now, if it is still there and may be written to."""
        with suppress(OSError):
            os.utime(self.path(key))

    def require_writable(self) -> None:
        """Before minutes of building: OSError that says what to do where nothing can be kept."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: an engine has to be built and cannot be kept in {self.folder};"
                " let `thor-policy build` fill it where it can be written, or set engine_cache_dir",
            ) from error

    def size_bytes(self) -> int:
        """Bytes of all engines in the folder."""
        return sum(size for _, size, _ in self._entries())

    def _evict(self, keep: Path) -> None:
        """Remove the least recently used until the rest fits, and what killed builds left."""
        with _locked(self.folder / "evict.lock"):
            self._sweep_partials()
            entries = sorted(self._entries())
            total = sum(size for _, size, _ in entries)
            for _, size, path in entries:
                if total <= self.max_bytes:
                    return
                if path != keep and _removed(path):
                    total -= size

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use in ns, bytes, path) of each engine; files may vanish meanwhile."""
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                yield stat.st_mtime_ns, stat.st_size, path

    def _sweep_partials(self) -> None:
        """Remove half-written files whose writer is gone: its lock would be held otherwise."""
        for path in self.folder.glob(f"*{PARTIAL}"):
            _removed(path)


def _removed(path: Path) -> bool:
    """Remove a file, unless another thread or process holds its key's lock."""
    with _try_lock(path.with_suffix(LOCK)) as held:
        if held:
            path.unlink(missing_ok=True)
    return held


def read_engine(path: Path, key: EngineKey) -> memoryview:
    """The engine in a file, checked in full; EngineFileError says what is wrong with it."""
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            raise EngineFileError(f"{path}: empty, not an engine file") from None
    view = memoryview(mapped)
    header, begin = _read_header(path, view)
    if header["key"] != asdict(key):
        wrong = [f for f, value in asdict(key).items() if header["key"].get(f) != value]
        raise EngineFileError(f"{path}: belongs to another engine: {', '.join(wrong)} differ")
    engine = view[begin:]
    if len(engine) != header["size"]:
        raise EngineFileError(f"{path}: holds {len(engine)} bytes of {header['size']}: truncated")
    if hashlib.sha256(engine).hexdigest() != header["sha256"]:
        raise EngineFileError(f"{path}: its SHA-256 is not the one in its header: damaged")
    return engine


def read_key(path: Path) -> EngineKey:
    """What an engine file says it is for; its header is checked, the engine itself is not read.

    Raises EngineFileError naming the fault.
    """
    with path.open("rb") as file:
        begun = file.read(len(MAGIC) + _LENGTH.size)
        wanted = _LENGTH.unpack(begun[-_LENGTH.size :])[0] if len(begun) > len(MAGIC) + 3 else 0
        head = begun + file.read(min(wanted + HASH_BYTES, 1 << 20))
    header, _ = _read_header(path, memoryview(head))
    return EngineKey(**header["key"])


def _read_if_good(path: Path, key: EngineKey) -> tuple[memoryview | None, str]:
    """The engine, or None with the fault of the file ('' where there is none)."""
    try:
        return read_engine(path, key), ""
    except FileNotFoundError:
        return None, ""
    except EngineFileError as error:
        return None, str(error)


def _read_header(path: Path, view: memoryview) -> tuple[dict[str, Any], int]:
    """The header, and where the engine begins; it is hashed before anything is parsed."""
    start = len(MAGIC) + _LENGTH.size
    if view[: len(MAGIC)] != MAGIC:
        raise EngineFileError(f"{path}: does not begin as an engine file: foreign")
    if len(view) < start + HASH_BYTES:
        raise EngineFileError(f"{path}: ends within its header: truncated")
    (length,) = _LENGTH.unpack(view[len(MAGIC) : start])
    end = start + length + HASH_BYTES
    if len(view) < end:
        raise EngineFileError(f"{path}: ends within its header, or its length is wrong: truncated")
    text = bytes(view[start : start + length])
    if hashlib.sha256(text).digest() != view[start + length : end]:
        raise EngineFileError(f"{path}: the SHA-256 of its header is wrong: damaged")
    header: dict[str, Any] = json.loads(text)
    return header, end


def _write(path: Path, key: EngineKey, engine: bytes | memoryview) -> None:
    """Write beside `path`, to the disk, then rename: a reader sees all of it or nothing."""
    digest = hashlib.sha256(engine).hexdigest()
    fields = {"key": asdict(key), "size": len(engine), "sha256": digest}
    header = json.dumps(fields, sort_keys=True).encode()
    partial = path.with_suffix(PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(MAGIC + _LENGTH.pack(len(header)) + header)
            file.write(hashlib.sha256(header).digest())
            file.write(engine)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for the lock of this file; the kernel frees it when its holder dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Whether the lock is ours for the moment, without waiting."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
