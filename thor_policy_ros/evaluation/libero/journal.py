"""Results on disk, an episode a line, so that an evaluation goes on where it was interrupted.

`episodes.jsonl`: the first line holds the settings, every other one record. A line is on the disk
(fsync) before the next episode counts as done. What a crash left of a last line is cut off: that
episode is played again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from thor_policy_ros.evaluation.libero.settings import (
    Episode,
    EpisodeRecord,
    record_from_json,
    record_to_json,
)

FILE = "episodes.jsonl"


class Journal:
    """The records of one folder. One process has it open: a second one gets a ValueError.

    settings: plain JSON data; ValueError where the folder was begun with other ones.
    retry_lost: episodes whose simulator was lost count as not played.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], retry_lost: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._file: IO[bytes] = self.path.open("a+b")
        try:
            self._lock()
            self._records = self._read(dict(settings))
        except BaseException:
            self._file.close()
            raise
        if retry_lost:
            self._records = {e: r for e, r in self._records.items() if r.played}

    @property
    def records(self) -> Sequence[EpisodeRecord]:
        """The latest of each episode, in order."""
        return [self._records[episode] for episode in sorted(self._records)]

    def holds(self, episode: Episode) -> bool:
        return episode in self._records

    def add(self, record: EpisodeRecord) -> None:
        """On the disk when this returns. ValueError for an episode that is there already."""
        if record.episode in self._records:
            raise ValueError(f"{record.episode.name} was recorded before")
        self._append(record_to_json(record))
        self._records[record.episode] = record

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another evaluation writes to {self.path}") from error

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, settings: dict[str, Any]) -> dict[Episode, EpisodeRecord]:
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        lines = [self._parsed(n, line) for n, line in enumerate(whole.splitlines(), 1)]
        if not lines:
            self._append({"settings": settings})
            return {}
        self._check_settings(lines[0], settings)
        records: dict[Episode, EpisodeRecord] = {}
        for number, line in enumerate(lines[1:], 2):
            record = self._record(number, line)
            before = records.get(record.episode)
            if before is not None and before.played:
                raise ValueError(f"{self.path}:{number}: {record.episode.name} is there twice")
            records[record.episode] = record
        return records

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path}:{number} is no line of JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.path}:{number}: wanted a JSON object")
        return found

    def _record(self, number: int, line: Mapping[str, Any]) -> EpisodeRecord:
        try:
            return record_from_json(line)
        except ValueError as error:
            raise ValueError(f"{self.path}:{number}: {error}") from error

    def _check_settings(self, first: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        begun = first.get("settings")
        if not isinstance(begun, dict):
            raise ValueError(f"{self.path}:1: wanted the settings of an evaluation")
        settings = json.loads(json.dumps(settings))
        other = [
            f"{name} {begun.get(name)!r}, now {settings.get(name)!r}"
            for name in sorted({*begun, *settings})
            if begun.get(name) != settings.get(name)
        ]
        if other:
            raise ValueError(
                f"{self.path} was begun with other settings: {'; '.join(other)}. Give them again,"
                " or another --out"
            )
