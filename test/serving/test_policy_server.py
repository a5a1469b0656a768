"""The server on real sockets: what clients do to it, and that the next one is served after all."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.served import CountingPolicy, Served, serving, wait_until
from support.toy_checkpoint import TINY, toy_observation
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from thor_policy_ros.serving.inference_worker import InferenceWorker
from thor_policy_ros.serving.observation_keys import keys_of, message_of
from thor_policy_ros.serving.requests import NOISE, NUM_STEPS, RequestForm
from thor_policy_ros.serving.served_policy import Request
from thor_policy_ros.serving.wire import decode, encode
from thor_policy_ros.types import ActionChunk

SHAPE = (TINY.model.action_horizon, TINY.action_dim)


def question(first: float = 0.0, **more: Any) -> bytes:
    """An observation whose state begins with `first`."""
    seen = toy_observation()
    message = message_of(seen, keys_of(TINY), 28)
    state = np.concatenate([[first], seen.state[1:]]).astype(np.float32)
    return encode({**message, "observation/state": state, **more})


@contextmanager
def client(served: Served, **options: Any) -> Iterator[ClientConnection]:
    """Connected, with the metadata taken."""
    uri = f"ws://127.0.0.1:{served.port}"
    options = {"compression": None, "proxy": None, "close_timeout": 1, **options}
    with connect(uri, **options) as connection:
        connection.recv(timeout=5)
        yield connection


def ask(connection: ClientConnection, frame: bytes) -> Any:
    """The answer: a message, or the text of an error."""
    connection.send(frame)
    answer = connection.recv(timeout=10)
    return decode(answer) if isinstance(answer, bytes) else answer


def check_served(served: Served, first: float = 3.0) -> None:
    """Somebody new connects and gets what is due to them."""
    with client(served) as connection:
        assert np.array_equal(ask(connection, question(first))["actions"], np.full(SHAPE, first))


def bare_socket(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=5)


def healthz(served: Served) -> tuple[int, bytes]:
    request = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
    request.request("GET", "/healthz")
    answer = request.getresponse()
    return answer.status, answer.read()


def test_metadata_come_first_and_say_what_is_wanted() -> None:
    with serving() as served, connect(f"ws://127.0.0.1:{served.port}", proxy=None) as connection:
        metadata = decode(connection.recv(timeout=5))  # type: ignore[arg-type]
    assert metadata["config"] == "tiny"
    assert metadata["observation_keys"] == list(keys_of(TINY).names)


def test_answers_have_actions_and_timings_as_openpis() -> None:
    with serving() as served, client(served) as connection:
        first, second = ask(connection, question(1.5)), ask(connection, question(2.5))
    assert first["actions"].shape == SHAPE and first["actions"].dtype == np.float32
    assert (first["actions"] == 1.5).all() and (second["actions"] == 2.5).all()
    assert set(first) == {"actions", "policy_timing", "server_timing"}
    assert set(first["server_timing"]) == {"infer_ms", "queue_ms", "batch"}
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]


def test_healthz_answers_without_a_websocket_also_when_a_token_is_wanted() -> None:
    with serving(token="secret") as served:
        assert healthz(served) == (200, b"OK\n")


def test_a_client_may_fix_noise_and_steps() -> None:
    policy = CountingPolicy()
    noise = np.arange(6 * 32, dtype=np.float32).reshape(6, 32)
    with serving(policy) as served, client(served) as connection:
        ask(connection, question(**{NOISE: noise, NUM_STEPS: 3}))
        ask(connection, question())
        for name, value, said in (
            (NOISE, noise[:2], r"thor/noise: wanted floats [6, 32], got [2, 32]"),
            (NOISE, np.full_like(noise, np.nan), "thor/noise: wanted finite numbers"),
            (NUM_STEPS, 0, "thor/num_steps: wanted a whole number from 1 to 100"),
            (NUM_STEPS, 10**9, "thor/num_steps: wanted a whole number from 1 to 100"),
            (NUM_STEPS, "3", "thor/num_steps: wanted a whole number from 1 to 100"),
        ):
            assert said in ask(connection, question(**{name: value}))
    (fixed,), (free,) = policy.calls
    assert fixed.noise is not None and np.array_equal(fixed.noise, noise)
    assert (fixed.num_steps, free.num_steps, free.noise) == (3, 10, None)


def test_a_wrong_observation_is_told_and_the_client_may_go_on() -> None:
    with serving() as served, client(served) as connection:
        told = ask(connection, encode({"observation/state": np.zeros(4)}))
        assert told.startswith("ValueError: the observation does not fit: missing [")
        assert (ask(connection, question(4.0))["actions"] == 4).all()


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1\xc1", b"\xdf\xff\xff\xff\xff", encode({})[:0], "text"]
)
def test_a_frame_that_is_no_message_is_told_and_ends_the_connection(frame: Any) -> None:
    with serving() as served:
        with client(served) as connection:
            connection.send(frame)
            told = connection.recv(timeout=5)
            assert (
                isinstance(told, str) and told.startswith("WireError: wanted")
            ) or "msgpack" in told
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=5)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1007
        check_served(served)


def test_any_bytes_leave_the_server_serving() -> None:
    with serving() as served:

        @settings(max_examples=60)
        @given(st.lists(st.binary(max_size=64) | st.text(max_size=8), min_size=1, max_size=3))
        def attack(frames: list[bytes | str]) -> None:
            with client(served) as connection:
                try:
                    for frame in frames:
                        connection.send(frame)
                        assert isinstance(connection.recv(timeout=5), str)
                except ConnectionClosed:
                    return

        attack()
        check_served(served)


def test_any_bytes_on_the_bare_socket_leave_the_server_serving() -> None:
    with serving(handshake_timeout_s=1.0) as served:

        @settings(max_examples=40)
        @given(st.binary(max_size=300), st.booleans())
        def attack(noise: bytes, after_handshake: bool) -> None:
            with bare_socket(served) as bare:
                if after_handshake:
                    bare.sendall(HANDSHAKE)
                    bare.recv(4096)
                bare.sendall(noise)
                if len(noise) % 2:
                    reset(bare)

        attack()
        check_served(served)
        wait_until(lambda: len(served.told) > 0)


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def reset(bare: socket.socket) -> None:
    """Closing now sends RST: the other side is cut off in the middle of whatever it does."""
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    bare.close()


def test_an_oversized_message_ends_the_connection_that_sent_it() -> None:
    with serving(max_message_bytes=100_000) as served:
        with client(served) as connection:
            big = np.zeros((300, 300, 3), np.uint8)
            with pytest.raises(ConnectionClosed) as closed:
                connection.send(question(**{"observation/base_0_rgb": big}))
                connection.recv(timeout=5)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        check_served(served)


def test_a_client_that_says_nothing_during_the_handshake_is_dropped() -> None:
    with serving(handshake_timeout_s=0.3) as served, bare_socket(served) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost:")
        check_served(served)
        begun_s = time.perf_counter()
        while silent.recv(4096):
            pass
        assert time.perf_counter() - begun_s < 4


def test_a_client_that_takes_no_answer_is_dropped_and_others_are_served_meanwhile() -> None:
    """Its socket's buffers fill up with an answer that is larger than they are."""
    policy = CountingPolicy(answer=huge)
    with serving(policy, send_timeout_s=0.5) as served:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", served.port))
        slow.sendall(HANDSHAKE)
        slow.sendall(masked(question(1.0)))
        wait_until(lambda: len(policy.calls) == 1)
        with client(served, max_size=None) as connection:  # while the answer is stuck
            assert ask(connection, question(2.0))["actions"].shape == (2_000_000, 3)
        wait_until(lambda: any("took nothing for 0.5 s" in line for line in served.told))
        slow.close()


def huge(request: Request) -> ActionChunk:
    return ActionChunk(np.zeros((2_000_000, 3), np.float32), 0.1, 0.0)


def masked(frame: bytes) -> bytes:
    """A binary websocket frame, masked with zeros."""
    return b"\x82\xff" + struct.pack("!Q", len(frame)) + bytes(4) + frame


@pytest.mark.parametrize("way", ["close", "reset"])
def test_requests_of_clients_that_left_are_not_computed(way: str) -> None:
    policy = CountingPolicy()
    policy.hold.clear()
    with serving(policy) as served:
        with client(served) as staying:
            staying.send(question(1.0))
            wait_until(lambda: len(policy.calls) == 1)
            with client(served, close_timeout=0.2) as leaving:
                leaving.send(question(2.0))
                wait_until(lambda: len(served.worker._waiting) == 1)
                if way == "reset":
                    reset(leaving.socket)
            wait_until(lambda: any("left before its answer" in line for line in served.told))
            policy.hold.set()
            assert decode(staying.recv(timeout=5))["actions"][0, 0] == 1  # type: ignore[arg-type]
        check_served(served)
    asked = [request.observation.state[0] for call in policy.calls for request in call]
    assert asked == [1.0, 3.0]


def test_a_client_that_leaves_during_its_inference_disturbs_nobody() -> None:
    policy = CountingPolicy()
    policy.hold.clear()
    with serving(policy) as served:
        with client(served) as leaving:
            leaving.send(question(1.0))
            wait_until(lambda: len(policy.calls) == 1)
        with client(served) as connection:
            connection.send(question(2.0))
            policy.hold.set()
            assert decode(connection.recv(timeout=5))["actions"][0, 0] == 2  # type: ignore[arg-type]


def test_a_vanished_client_is_noticed_by_its_missing_signs_of_life() -> None:
    with serving(ping_s=0.2) as served, bare_socket(served) as gone:
        gone.sendall(HANDSHAKE)
        wait_until(lambda: any("left: " in line for line in served.told))


def test_further_clients_are_turned_away_and_may_come_when_one_has_left() -> None:
    with serving(max_clients=1) as served:
        with client(served):
            with pytest.raises(InvalidStatus) as refused, client(served):
                pass
            assert refused.value.response.status_code == 503
            assert healthz(served)[0] == 200
        wait_until(lambda: any("left" in line for line in served.told))
        check_served(served)


def test_a_full_queue_is_told_at_once() -> None:
    policy = CountingPolicy()
    policy.hold.clear()
    with (
        serving(policy, max_waiting=1) as served,
        ThreadPoolExecutor() as pool,
        client(served) as one,
        client(served) as two,
        client(served) as three,
    ):
        answers = [pool.submit(ask, one, question(1.0))]
        wait_until(lambda: len(policy.calls) == 1)
        answers.append(pool.submit(ask, two, question(2.0)))
        wait_until(lambda: len(served.worker._waiting) == 1)
        assert ask(three, question(3.0)) == "BusyError: 1 requests wait already; try again"
        policy.hold.set()
        assert [a.result(5)["actions"][0, 0] for a in answers] == [1, 2]
        assert ask(three, question(3.0))["actions"][0, 0] == 3


def test_a_client_that_sends_without_end_gets_its_turn_and_no_more() -> None:
    """It has twenty requests on the way when the other one's first arrives."""
    policy = CountingPolicy()
    policy.hold.clear()
    with serving(policy) as served, client(served) as greedy, client(served) as modest:
        feeder = threading.Thread(target=lambda: [greedy.send(question(1.0)) for _ in range(20)])
        feeder.start()
        wait_until(lambda: len(policy.calls) == 1)
        modest.send(question(2.0))
        wait_until(lambda: len(served.worker._waiting) == 1)
        policy.hold.set()
        for _ in range(20):
            greedy.recv(timeout=5)
        feeder.join()
    asked = [request.observation.state[0] for call in policy.calls for request in call]
    assert asked.index(2.0) == 1


def test_a_wrong_or_missing_token_does_not_get_in() -> None:
    with serving(token="secret") as served:
        for header in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"ws://127.0.0.1:{served.port}", additional_headers=header, proxy=None)
            assert refused.value.response.status_code == 401
        with bare_socket(served) as bare:
            bare.sendall(HANDSHAKE[:-2] + b"Authorization: Api-Key \xff\xfe\r\n\r\n")
            assert b"401" in bare.recv(4096)
        with client(served, additional_headers={"Authorization": "Api-Key secret"}) as connection:
            assert (ask(connection, question(1.0))["actions"] == 1).all()


def test_loopback_alone_unless_told_otherwise() -> None:
    """127.0.0.2 is this machine too, but not the address that is listened on."""
    with serving() as served, pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", served.port), timeout=2)
    with serving(host="0.0.0.0") as served:
        socket.create_connection(("127.0.0.2", served.port), timeout=2).close()


def failing(times: int) -> Callable[[Request], ActionChunk | Exception]:
    left = [times]

    def answer(request: Request) -> ActionChunk | Exception:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("the device is lost: /secret/path")
        return ActionChunk(np.full(SHAPE, request.observation.state[0], np.float32), 0.1, 0.0)

    return answer


def test_a_failing_policy_is_told_healthz_says_so_and_the_next_request_is_tried() -> None:
    with serving(CountingPolicy(answer=failing(1))) as served, client(served) as connection:
        told = ask(connection, question(1.0))
        assert told == "InferenceRefusedError: the policy failed; see the server's output"
        assert healthz(served)[0] == 503
        assert "the policy failed: RuntimeError: the device is lost: /secret/path" in served.told
        assert (ask(connection, question(2.0))["actions"] == 2).all()
        assert healthz(served)[0] == 200


def test_a_refusal_of_the_policy_is_the_clients_alone() -> None:
    policy = CountingPolicy(answer=lambda request: ValueError("the prompt takes 99 tokens"))
    with serving(policy) as served, client(served) as connection:
        assert ask(connection, question()) == "ValueError: the prompt takes 99 tokens"
        assert healthz(served)[0] == 200


def test_clients_that_wait_together_share_a_call() -> None:
    policy = CountingPolicy(max_batch=3)
    policy.hold.clear()
    with serving(policy) as served, ThreadPoolExecutor() as pool:
        connections = [client(served) for _ in range(5)]
        opened = [c.__enter__() for c in connections]
        first = pool.submit(ask, opened[0], question(0.0))
        wait_until(lambda: len(policy.calls) == 1)
        rest = []
        for i in range(1, 5):
            rest.append(pool.submit(ask, opened[i], question(float(i))))
            wait_until(lambda i=i: len(served.worker._waiting) == i)  # type: ignore[misc]
        policy.hold.set()
        answers = [future.result(5) for future in (first, *rest)]
        for c in connections:
            c.__exit__(None, None, None)
    assert [answer["actions"][0, 0] for answer in answers] == [0, 1, 2, 3, 4]
    assert [answer["server_timing"]["batch"] for answer in answers] == [1, 3, 3, 3, 1]


def test_stopping_sends_the_answer_under_way_and_says_goodbye() -> None:
    policy = CountingPolicy()
    policy.hold.clear()
    with serving(policy) as served, client(served) as idle, client(served) as busy:
        busy.send(question(5.0))
        wait_until(lambda: len(policy.calls) == 1)
        stopper = threading.Thread(target=served.stop)
        stopper.start()
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(timeout=5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        policy.hold.set()
        assert (decode(busy.recv(timeout=5))["actions"] == 5).all()  # type: ignore[arg-type]
        with pytest.raises(ConnectionClosed):
            busy.recv(timeout=5)
        stopper.join(10)
    assert policy.closed_in == "inference"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", served.port), timeout=1)


def test_stopping_waits_no_longer_than_it_was_allowed() -> None:
    policy = CountingPolicy()
    policy.hold.clear()
    with serving(policy, drain_s=0.3) as served, client(served) as busy:
        busy.send(question(5.0))
        wait_until(lambda: len(policy.calls) == 1)
        begun_s = time.perf_counter()
        served._stop()
        with pytest.raises(ConnectionClosed):
            busy.recv(timeout=10)
        assert time.perf_counter() - begun_s < 5
        policy.hold.set()


def test_a_policy_that_cannot_be_opened_is_said_where_it_is_awaited() -> None:
    def broken() -> CountingPolicy:
        raise OSError("no weights")

    worker = InferenceWorker(broken, 1, time.perf_counter)
    with pytest.raises(OSError, match="no weights"):
        worker.opened.result(5)
    assert worker.end(5)


def test_a_default_prompt_is_the_forms() -> None:
    policy = CountingPolicy()
    form = RequestForm(TINY, keys_of(TINY), prompt="wave")
    message = {k: v for k, v in decode(question()).items() if k != "prompt"}
    with serving(policy, form) as served, client(served) as connection:
        ask(connection, encode(message))
    assert policy.calls[0][0].observation.prompt == "wave"
