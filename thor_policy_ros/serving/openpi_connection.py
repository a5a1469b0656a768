"""A connection to a server of openpi's policy protocol, in which nothing takes longer than allowed.

The protocol numbers neither questions nor answers: after a question that was not answered in time
its answer may still come, and be taken for that of the next. Such a connection is given up.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Mapping
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.protocol import State

from thor_policy_ros.serving.wire import WireError, decode, encode

MAX_ANSWER_BYTES = 16 << 20
RETRY_S = 0.5
"""After an attempt to connect that failed; questions until then are refused at once."""
_GRACE_S = 1.0  # for the loop's thread to say that the time is over


class RemoteError(RuntimeError):
    """No answer that can be used; the message says why, and names the server."""


class OpenpiConnection:
    """Connects when it is first asked, and again after a loss. One thread asks at a time.

    host, port: of the server. timeout_s: for a question, connecting included. token: the
    server's, '' for none. clock: seconds, for the time between two attempts.
    """

    def __init__(
        self, host: str, port: int, timeout_s: float, token: str, clock: Callable[[], float]
    ) -> None:
        self.name = f"openpi server {host}:{port}"
        self.timeout_s = timeout_s
        self.metadata: dict[str, Any] | None = None  # of the first connection
        self._uri = f"ws://{f'[{host}]' if ':' in host else host}:{port}"
        self._headers = {"Authorization": f"Api-Key {token}"} if token else {}
        self._clock = clock
        self._connection: ClientConnection | None = None
        self._lost = ""  # why
        self._not_before_s = -float("inf")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="openpi connection", daemon=True
        )
        self._thread.start()

    def connect(self) -> Mapping[str, Any]:
        """The server's metadata. RemoteError where it cannot be had in time."""
        self._run(self._connected())
        assert self.metadata is not None
        return self.metadata

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer, within `timeout_s`; RemoteError says why there is none."""
        frame = encode(message)
        answer: dict[str, Any] = self._run(self._exchange(frame))
        return answer

    def close(self) -> None:
        """Without a goodbye that would have to be waited for; a later question is refused."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(_GRACE_S)
        if not self._thread.is_alive():
            self._loop.close()

    def _run(self, steps: Any) -> Any:
        if self._loop.is_closed() or not self._thread.is_alive():
            steps.close()
            raise RemoteError(f"{self.name}: the connection is closed")
        future = asyncio.run_coroutine_threadsafe(self._in_time(steps), self._loop)
        try:
            return future.result(self.timeout_s + _GRACE_S)
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise RemoteError(f"{self.name}: no answer within {self.timeout_s:g} s") from error

    async def _in_time(self, steps: Any) -> Any:
        try:
            return await asyncio.wait_for(steps, self.timeout_s)
        except RemoteError:
            raise
        except asyncio.TimeoutError:
            raise self._give_up(f"no answer within {self.timeout_s:g} s") from None
        except (OSError, WebSocketException, WireError) as error:
            raise self._give_up(str(error) or type(error).__name__) from error

    async def _exchange(self, frame: bytes) -> dict[str, Any]:
        connection = await self._connected()
        await connection.send(frame)
        answer = await connection.recv()
        if isinstance(answer, str):
            raise RemoteError(f"{self.name} refuses: {_last_line(answer)}")
        return decode(answer)

    async def _connected(self) -> ClientConnection:
        """The connection, made anew where it is lost."""
        if self._connection is not None and self._connection.state is State.OPEN:
            return self._connection
        left_s = self._not_before_s - self._clock()
        if left_s > 0:
            raise RemoteError(f"{self.name}: {self._lost}; trying again in {left_s:.1f} s")
        connection = await connect(
            self._uri,
            compression=None,
            max_size=MAX_ANSWER_BYTES,
            max_queue=1,
            additional_headers=self._headers,
            open_timeout=None,  # ours counts
            close_timeout=_GRACE_S,
            proxy=None,
        )
        try:
            await self._take_metadata(connection)
        except BaseException:
            _cut_off(connection)
            raise
        self._connection = connection
        return connection

    async def _take_metadata(self, connection: ClientConnection) -> None:
        """A server that says other things of itself than before is not the one that was checked."""
        hello = await connection.recv()
        if isinstance(hello, str):
            raise WireError(f"instead of metadata it sent text: {_last_line(hello)}")
        found = decode(hello)
        if self.metadata is None:
            self.metadata = found
        elif encode(found) != encode(self.metadata):
            raise WireError(
                "another policy is served there now (its metadata changed); configure again"
            )

    def _give_up(self, reason: str) -> RemoteError:
        """A connection that is lost may be made anew at once; an attempt that failed, later."""
        self._lost = reason
        connection, self._connection = self._connection, None
        if connection is None:
            self._not_before_s = self._clock() + RETRY_S
        else:
            _cut_off(connection)
        return RemoteError(f"{self.name}: {reason}")

    def _end(self) -> None:
        self._give_up("closed")
        self._loop.call_soon(self._loop.stop)


def _cut_off(connection: ClientConnection) -> None:
    if connection.state is not State.CLOSED:
        connection.transport.abort()


def _last_line(text: str) -> str:
    """openpi sends a traceback, whose last line says what it was."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing said"
