"""A policy for openpi's clients: websockets, a msgpack frame for a question and one for its answer.

On connecting a client gets a frame of metadata; then each frame with an observation is answered by
one with `actions`, or by text that says what was wrong with it. GET /healthz answers without a
websocket. A client is read again only when it was answered, every queue has an end, and nothing
that a client does or leaves undone holds up the others for longer than an inference.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response
from websockets.protocol import State

from thor_policy_ros.runtime.unified_policy import InferenceRefusedError
from thor_policy_ros.serving.inference_worker import Answer, BusyError, InferenceWorker
from thor_policy_ros.serving.requests import RequestForm, reply_to
from thor_policy_ros.serving.wire import WireError, decode, encode

HEALTH = "/healthz"
CLOSE_TIMEOUT_S = 2.0  # for a client that does not answer a goodbye
_READ_FRAMES = 1  # that wait in memory beyond the one being answered

_library_log = logging.getLogger("thor_policy_ros.serving.websockets")
_library_log.addHandler(logging.NullHandler())
_library_log.propagate = False  # a port scan is no news; `tell` says what matters


@dataclass(frozen=True)
class ServerSettings:
    """token: that clients must name, '' for none. max_clients: further ones get HTTP 503.
    send_timeout_s: a client that takes no answer for so long is dropped. drain_s: how long
    answers under way may take when the server ends. ping_s: between signs of life, and how long
    one may take.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    max_clients: int = 16
    max_message_bytes: int = 32 << 20
    send_timeout_s: float = 10.0
    handshake_timeout_s: float = 10.0
    drain_s: float = 5.0
    ping_s: float = 20.0


class ClientLeftError(Exception):
    """Nobody is there to answer any more."""


class PolicyServer:
    """Serves what `worker` computes. Everything happens in the loop that awaits `run`.

    metadata: sent to each client. tell: called with one line about clients and failures.
    """

    def __init__(
        self,
        worker: InferenceWorker,
        form: RequestForm,
        metadata: Mapping[str, Any],
        settings: ServerSettings,
        tell: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._worker = worker
        self._form = form
        self._hello = encode(metadata)
        self._settings = settings
        self._tell = tell
        self._clock = clock
        self._draining = False
        self._answering: dict[ServerConnection, bool] = {}  # true while a client waits for us

    async def run(self, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
        """Until `stop` is set. ready: called with the port once clients may come. OSError where
        the port cannot be had."""
        settings = self._settings
        server = await serve(
            self._serve_client,
            settings.host,
            settings.port,
            process_request=self._on_request,
            compression=None,
            max_size=settings.max_message_bytes,
            max_queue=_READ_FRAMES,
            open_timeout=settings.handshake_timeout_s,
            ping_interval=settings.ping_s,
            ping_timeout=settings.ping_s,
            close_timeout=CLOSE_TIMEOUT_S,
            logger=_library_log,
        )
        ready(next(iter(server.sockets)).getsockname()[1])
        await stop.wait()
        await self._drain(server)

    def _on_request(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """None lets the websocket be opened."""
        if request.path == HEALTH:
            return self._health(connection)
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        wanted = f"Api-Key {self._settings.token}".encode()
        if self._settings.token and not hmac.compare_digest(given, wanted):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "wanted the server's token\n")
        if self._draining or len(self._answering) >= self._settings.max_clients:
            text = f"{len(self._answering)} clients are connected, more are not taken\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    def _health(self, connection: ServerConnection) -> Response:
        if self._worker.fault:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, "the policy failed when it was last called\n"
            )
        return connection.respond(http.HTTPStatus.OK, "OK\n")

    async def _serve_client(self, connection: ServerConnection) -> None:
        self._answering[connection] = False
        name = _name(connection)
        self._tell(f"{name} connected ({len(self._answering)} of {self._settings.max_clients})")
        try:
            await self._send(connection, self._hello)
            await self._answer_all(connection)
        except ConnectionClosed as error:
            self._tell(f"{name} left{_how(error)}")
        except ClientLeftError:
            self._tell(f"{name} left before its answer")
        except asyncio.TimeoutError:
            _cut_off(connection)
            seconds = self._settings.send_timeout_s
            self._tell(f"{name} dropped: took nothing for {seconds:g} s")
        except Exception as error:
            self._tell(f"{name} dropped: {type(error).__name__}: {error}")
            raise
        finally:
            del self._answering[connection]

    async def _answer_all(self, connection: ServerConnection) -> None:
        before_ms: float | None = None
        while not self._draining:
            frame = await connection.recv()
            begun_s = self._clock()
            async with self._busy(connection):
                try:
                    answer = await self._infer(connection, frame)
                except (ValueError, BusyError, InferenceRefusedError) as error:
                    await self._send(connection, f"{type(error).__name__}: {error}")
                    if isinstance(error, WireError):
                        await connection.close(CloseCode.INVALID_DATA, "not the protocol")
                        return
                    continue
                await self._send(connection, encode(reply_to(answer, before_ms)))
                before_ms = (self._clock() - begun_s) * 1e3
        await connection.close(CloseCode.GOING_AWAY, "the server is shutting down")

    async def _infer(self, connection: ServerConnection, frame: str | bytes) -> Answer:
        """Raises ValueError for a wrong frame, BusyError, ClientLeftError, and
        InferenceRefusedError also where the policy itself failed: what it said is told here."""
        if isinstance(frame, str):
            raise WireError("wanted a binary frame of msgpack, got text")
        message = await asyncio.to_thread(decode, frame)
        request = await asyncio.to_thread(self._form.request, message, self._clock())
        future = asyncio.wrap_future(self._worker.submit(request))
        left = asyncio.ensure_future(connection.wait_closed())
        try:
            await asyncio.wait((future, left), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                future.cancel()  # nobody waits for it: a request still in the queue goes
                raise ClientLeftError
            return await future
        except (ValueError, InferenceRefusedError, ClientLeftError):
            raise
        except Exception as error:
            self._tell(f"the policy failed: {type(error).__name__}: {error}")
            raise InferenceRefusedError("the policy failed; see the server's output") from error
        finally:
            left.cancel()

    async def _send(self, connection: ServerConnection, frame: str | bytes) -> None:
        """asyncio.TimeoutError where the client does not take it."""
        await asyncio.wait_for(connection.send(frame), self._settings.send_timeout_s)

    @contextlib.asynccontextmanager
    async def _busy(self, connection: ServerConnection) -> AsyncIterator[None]:
        self._answering[connection] = True
        try:
            yield
        finally:
            self._answering[connection] = False

    async def _drain(self, server: Server) -> None:
        """No new client; answers under way are sent, as far as `drain_s` allows."""
        self._draining = True
        server.close(close_connections=False)
        idle = [one for one, answering in self._answering.items() if not answering]
        goodbyes = [
            asyncio.ensure_future(one.close(CloseCode.GOING_AWAY, "the server is shutting down"))
            for one in idle
        ]
        done = asyncio.gather(server.wait_closed(), *goodbyes)
        try:
            await asyncio.wait_for(done, self._settings.drain_s)
        except asyncio.TimeoutError:
            self._tell(f"{len(self._answering)} clients did not end in time and were dropped")
            for connection in list(self._answering):
                _cut_off(connection)


def _cut_off(connection: ServerConnection) -> None:
    if connection.state is not State.CLOSED:
        connection.transport.abort()


def _name(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client"


def _how(error: ConnectionClosed) -> str:
    """Why, unless a goodbye in good order says it all."""
    if error.rcvd is not None and error.rcvd.code in (CloseCode.NORMAL_CLOSURE, 1001):
        return ""
    return f": {error}"
