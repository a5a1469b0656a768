"""Writes messages to an MCAP bag in a thread of its own, from a queue that is bounded in bytes.

A message that does not fit is dropped and counted: a slow disk must not take the memory. When the
disk runs short the bag is ended while it still can be, so that what was recorded stays readable.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

PACKAGE = "thor_policy_ros"
MB = 1 << 20
FREE_CHECKED_EVERY = 8 * MB
FACTS_FILE = "recording.json"
"""Beside the bag: the metadata of a recording that is cut short is never written."""


@dataclass(frozen=True)
class Bounds:
    """queue_bytes: of messages that wait. free_bytes: left on the disk, at least."""

    queue_bytes: int = 256 * MB
    free_bytes: int = 500 * MB


def typestore(definitions: Path) -> Typestore:
    """ROS 2 Jazzy's messages, and ours: every file of the folder `definitions`."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted(definitions.glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(), f"{PACKAGE}/msg/{path.stem}"))
    return store


class BagWriter:
    """`put` may be called from any thread; `close` ends the bag and says why it ended early.

    facts: what a reader of the bag must know, kept in its metadata; called when the bag ends.
    early_facts: the same as far as it is known now, for a recording that is cut short.
    Raises OSError where no bag can be made.
    """

    def __init__(
        self,
        path: Path,
        store: Typestore,
        facts: Callable[[], Mapping[str, Any]],
        bounds: Bounds,
        early_facts: Mapping[str, Any] | None = None,
    ) -> None:
        if path.exists():
            raise FileExistsError(f"{path} exists already; a bag wants a new folder")
        free = shutil.disk_usage(_existing(path)).free
        if free < bounds.free_bytes:
            raise OSError(_short(path, free, bounds))
        self._path, self._store, self._facts, self._bounds = path, store, facts, bounds
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        (path / FACTS_FILE).write_text(json.dumps(dict(early_facts or {})))
        self._connections: dict[str, Connection] = {}
        self._waiting: deque[tuple[str, int, bytes]] = deque()
        self._waiting_bytes = self._unchecked_bytes = 0
        self._ready = threading.Condition()
        self._ended = False
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.failure = ""
        self._thread = threading.Thread(target=self._run, name="bag writer", daemon=True)

    def add_topic(self, topic: str, kind: str) -> None:
        """Before `start`. kind: as in 'sensor_msgs/msg/Image'."""
        self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self._store)

    def start(self) -> None:
        self._thread.start()

    def put(self, topic: str, at_ns: int, data: bytes) -> None:
        """A serialised message that came at `at_ns`."""
        with self._ready:
            if self._ended or self._waiting_bytes + len(data) > self._bounds.queue_bytes:
                self.dropped[topic] += 1
                return
            self._waiting.append((topic, at_ns, data))
            self._waiting_bytes += len(data)
            self._ready.notify()

    def close(self) -> str:
        """Writes what waits and ends the bag. '' or why the recording failed."""
        with self._ready:
            self._ended = True
            self._ready.notify()
        self._thread.join()
        return self.failure

    def _run(self) -> None:
        try:
            while (message := self._next()) is not None and not self.failure:
                self._write(*message)
            self._writer.set_custom_data(PACKAGE, json.dumps(dict(self._facts())))
            self._writer.close()
        except OSError as error:
            self.failure = f"{self._path}: {error}; the bag has no index and cannot be replayed"
            self._abandon()

    def _next(self) -> tuple[str, int, bytes] | None:
        with self._ready:
            self._ready.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return None
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message[2])
            return message

    def _write(self, topic: str, at_ns: int, data: bytes) -> None:
        self._unchecked_bytes += len(data)
        if self._unchecked_bytes > FREE_CHECKED_EVERY:
            self._unchecked_bytes = 0
            free = shutil.disk_usage(self._path).free
            if free < self._bounds.free_bytes:
                self.failure = _short(self._path, free, self._bounds) + "; what came before is kept"
        self._writer.write(self._connections[topic], at_ns, data)
        self.counts[topic] += 1

    def _abandon(self) -> None:
        """Nothing more is taken, and the file is closed as it is."""
        with self._ready:
            self._ended = True
            for topic, _, _ in self._waiting:
                self.dropped[topic] += 1
            self._waiting.clear()
        try:
            self._writer.abort()
        except OSError as error:  # the same disk, again
            self.failure += f"; closing it: {error}"


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _short(path: Path, free: int, bounds: Bounds) -> str:
    return (
        f"{path}: {free // MB} MB are free on its disk, a recording wants to leave "
        f"{bounds.free_bytes // MB}; free some, or set --keep-free-mb"
    )
