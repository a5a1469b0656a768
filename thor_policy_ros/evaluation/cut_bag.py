"""A bag whose recording was cut short: every message that is whole, from the front.

Such a file has neither index nor end; mcap's streaming reader wants neither. Messages come in the
order in which they were written. The last megabyte, which waited to be written, is lost.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcap.exceptions import McapError
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

DAMAGE = (McapError, OSError, ValueError, struct.error, OverflowError)
"""What mcap raises where a file ends, or is no MCAP any more."""


@dataclass(frozen=True)
class CutConnection:
    """topic and msgtype as rosbags' own connections have them."""

    id: int
    topic: str
    msgtype: str


class CutReader:
    """What `Bag` asks of a reader. Raises FileNotFoundError where `folder` holds no MCAP file,
    ValueError where one holds no message definitions.

    start_time, duration: ns, of the messages that are whole. message_count: how many those are.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.mcap"))
        if not self._files:
            raise FileNotFoundError(f"{folder} holds no .mcap file: it is no recording")
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self.connections: list[CutConnection] = []
        self.message_count = self.duration = self.start_time = 0
        self._scan()

    def close(self) -> None:
        """Nothing is kept open."""

    def messages(
        self, connections: Collection[CutConnection]
    ) -> Iterator[tuple[CutConnection, int, bytes]]:
        wanted = {one.id: one for one in connections}
        for record in self._records():
            if isinstance(record, Message) and record.channel_id in wanted:
                yield wanted[record.channel_id], record.log_time, record.data

    def deserialize(self, raw: bytes, msgtype: str) -> object:
        return self._store.deserialize_cdr(raw, msgtype)

    def _records(self) -> Iterator[object]:
        for path in self._files:
            with path.open("rb") as file:
                try:
                    yield from StreamReader(file).records
                except DAMAGE:
                    continue

    def _scan(self) -> None:
        types: dict[int, Schema] = {}
        known: set[int] = set()
        times: list[int] = []
        for record in self._records():
            if isinstance(record, Schema):
                types[record.id] = record
            elif isinstance(record, Channel) and record.id not in known:
                known.add(record.id)
                name = types[record.schema_id].name if record.schema_id in types else ""
                self.connections.append(CutConnection(record.id, record.topic, name))
            elif isinstance(record, Message):
                times = [min([record.log_time, *times]), max([record.log_time, *times])]
                self.message_count += 1
        if times:
            self.start_time, self.duration = times[0], times[1] - times[0]
        for schema in types.values():
            self._register(schema)

    def _register(self, schema: Schema) -> None:
        if schema.name in self._store.fielddefs:
            return
        try:
            self._store.register(get_types_from_msg(schema.data.decode(), schema.name))
        except (TypesysError, UnicodeDecodeError) as error:
            raise ValueError(f"the bag's definition of {schema.name} cannot be read") from error
