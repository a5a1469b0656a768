"""A policy on a server: as one that runs here; whatever the server does costs a bounded time."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.served import CountingPolicy, serving, wait_until
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint
from websockets.sync.server import ServerConnection, serve

from thor_policy_ros.backends.registry import REMOTE, availability, create_backend, spec_of
from thor_policy_ros.model.named_configs import LIBERO
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.serving import openpi_connection
from thor_policy_ros.serving.openpi_connection import RemoteError
from thor_policy_ros.serving.remote_policy import RemotePolicy, RemoteRunner
from thor_policy_ros.serving.requests import NOISE, NUM_STEPS
from thor_policy_ros.serving.served_policy import LocalPolicy, Request
from thor_policy_ros.serving.wire import decode, encode
from thor_policy_ros.types import ActionChunk, JointLimits, StepResult

SHAPE = (TINY.model.action_horizon, TINY.action_dim)
TIMEOUT_S = 0.5
LEEWAY_S = 1.5  # beyond the timeout: a busy machine


@contextmanager
def remote(port: int, timeout_s: float = TIMEOUT_S, **options: Any) -> Iterator[RemotePolicy]:
    policy = RemotePolicy(TINY, "127.0.0.1", port, timeout_s, **options)
    try:
        yield policy
    finally:
        policy.close()


def step(runner: RemoteRunner, tick: int = 1, **options: Any) -> StepResult:
    """A step that ends in time, whatever happens."""
    begun_s = time.perf_counter()
    result = runner.step(toy_observation(stamp_s=5.0), 5.05, tick, 3, **options)
    assert time.perf_counter() - begun_s < TIMEOUT_S + LEEWAY_S
    return result


def runner_of(policy: RemotePolicy, limits: JointLimits | None = None) -> RemoteRunner:
    return RemoteRunner(policy, limits, time.perf_counter, joint_names=("a", "b", "c"))


Script = Callable[[ServerConnection], None]


@contextmanager
def scripted(script: Script) -> Iterator[int]:
    """A server that does what `script` says with each connection; yields its port."""
    with serve(script, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(5)


def answering(answer: Any, metadata: Any = None) -> Script:
    """`answer`: a frame, a message, or a function of the question's number (from 0)."""

    def script(connection: ServerConnection) -> None:
        connection.send(encode(metadata or {}))
        for number, _ in enumerate(connection):
            given = answer(number) if callable(answer) else answer
            connection.send(encode(given) if isinstance(given, dict) else given)

    return script


# As a policy that runs here


def test_a_remote_policy_is_the_policy(tmp_path: Path) -> None:
    """The same noise gives the same commands on the server as here."""
    noise = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    with UnifiedPolicy(write_toy_checkpoint(tmp_path), device="cpu") as local:
        served = LocalPolicy(local)
        served.close = lambda: None  # type: ignore[method-assign]
        with serving(served) as server, remote(server.port, 10.0) as policy:
            policy.warmup()
            assert policy.takes_noise and policy.metadata["precision"] == "float32"
            there = policy.infer(toy_observation(), 4, noise=noise)
            seeded = [policy.infer(toy_observation(), 4, seed=3).actions for _ in range(2)]
        here = local.infer(toy_observation(), 4, noise=noise)
        assert np.abs(there.actions - here.actions).max() < 1e-5
        assert np.array_equal(*seeded)
        expected = local.infer(toy_observation(), 4, seed=3)
        assert np.abs(seeded[0] - expected.actions).max() < 1e-5


def test_a_chunk_is_timed_by_its_observation_and_says_what_it_took() -> None:
    policy = CountingPolicy()
    with serving(policy) as server, remote(server.port) as there:
        there.warmup()
        runner = runner_of(there)
        result = step(runner, 4)
        again = step(runner, 7)
    assert result.chunk is not None
    assert (result.chunk.observed_at_s, result.chunk.dt_s) == (5.0, TINY.action_dt_s)
    assert not result.chunk.prefix_reused and result.decision == "refill: remote"
    assert result.timing.prefix_age_ms == pytest.approx(50.0)
    assert result.timing.total_ms >= result.timing.denoise_ms > 0
    assert again.timing.missed_ticks == 2 and again.notes == ("missed 2 control ticks",)
    assert policy.calls[0][0].num_steps == 3 and policy.calls[0][0].noise is None


def test_noise_and_steps_go_only_to_a_server_that_takes_them() -> None:
    asked: list[dict[str, Any]] = []

    def script(connection: ServerConnection) -> None:
        connection.send(encode({}))
        for frame in connection:
            assert isinstance(frame, bytes)
            asked.append(decode(frame))
            connection.send(encode({"actions": np.zeros(SHAPE)}))

    with scripted(script) as port, remote(port) as policy:
        policy.warmup()
        assert not policy.takes_noise
        assert step(runner_of(policy), seed=3).chunk is not None
    assert NOISE not in asked[0] and NUM_STEPS not in asked[0]
    assert asked[0]["observation/base_0_rgb"].shape == (28, 28, 3)  # resized before it is sent


def test_it_is_a_choice_of_the_node_and_no_engine() -> None:
    assert spec_of("openpi_remote") is REMOTE
    assert availability("openpi_remote") == ()
    with pytest.raises(ValueError, match="'openpi_remote' is no engine"):
        create_backend("openpi_remote", "x", TINY.model)


# What comes back is checked


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({}, r"wanted actions \[6, 3\], got NoneType"),
        ({"actions": [[0.0] * 3] * 6}, r"wanted actions \[6, 3\], got list"),
        ({"actions": np.zeros((5, 3))}, r"wanted actions \[6, 3\], got \[5, 3\]"),
        ({"actions": np.zeros((6, 32))}, r"wanted actions \[6, 3\], got \[6, 32\]"),
        ({"actions": np.zeros((6, 3), bool)}, "got an array of bool"),
        ({"actions": np.full(SHAPE, np.nan)}, "joint a row 0: nan is not finite"),
        ({"actions": np.full(SHAPE, 1e300)}, "joint a row 0: inf is not finite"),
        ({"actions": np.full(SHAPE, 9.0)}, r"joint a row 0: 9 is outside \[-1, 1\]"),
        ("Traceback:\n  File x\nKeyError: 'image'\n", "refuses: KeyError: 'image'"),
        (b"\xc1garbage", "is not msgpack"),
        (encode({"actions": np.zeros(SHAPE)})[:-3], "is not msgpack"),
        (b"", "0 bytes is not msgpack"),
    ],
)
def test_a_wrong_answer_is_refused_by_what_is_wrong(answer: Any, said: str) -> None:
    bound = np.ones(3, np.float32)
    limits = JointLimits(-bound, bound, bound * np.inf, bound * np.inf)
    with scripted(answering(answer)) as port, remote(port) as policy:
        policy.warmup()
        result = step(runner_of(policy, limits))
        assert result.chunk is None and re.search(said, result.refused)


def test_any_answer_is_a_chunk_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openpi_connection, "RETRY_S", 0.0)
    answers: list[bytes | str] = [b""]
    with scripted(answering(lambda _: answers[0])) as port, remote(port, 5.0) as policy:
        policy.warmup()
        runner = runner_of(policy)

        @settings(max_examples=60)
        @given(st.binary(max_size=80) | st.text(max_size=20))
        def attack(answer: bytes | str) -> None:
            answers[0] = answer
            result = runner.step(toy_observation(), 0.0, 1)
            assert result.chunk is None and result.refused.startswith("openpi server 127.0.0.1")

        attack()


def test_good_answers_after_a_wrong_one_are_taken() -> None:
    """A wrong observation or a failed policy ends nothing; a broken frame ends the connection."""
    good = {"actions": np.zeros(SHAPE)}
    script = answering(lambda n: ["ValueError: no", good, b"\xc1", good][n % 4])
    with scripted(script) as port, remote(port) as policy:
        policy.warmup()
        runner = runner_of(policy)
        found = [step(runner, tick).chunk is not None for tick in range(1, 4)]
        assert found == [False, True, False]
        wait_until(lambda: step(runner, 5).chunk is not None, 5)


# Loss


def test_a_server_that_does_not_answer_costs_the_timeout_and_its_late_answer_is_not_taken() -> None:
    """The first answer comes after the second question was asked."""

    def script(connection: ServerConnection) -> None:
        connection.send(encode({}))
        for number, _ in enumerate(connection):
            value = 1.0 + len(served)
            served.append(number)
            if len(served) == 1:
                time.sleep(TIMEOUT_S + 0.3)
            try:
                connection.send(encode({"actions": np.full(SHAPE, value)}))
            except Exception:  # noqa: BLE001 - the client has left, which is what is tested
                return

    served: list[int] = []
    with scripted(script) as port, remote(port) as policy:
        policy.warmup()
        runner = runner_of(policy)
        begun_s = time.perf_counter()
        result = step(runner)
        assert time.perf_counter() - begun_s >= TIMEOUT_S
        assert result.refused == f"openpi server 127.0.0.1:{port}: no answer within 0.5 s"
        assert result.timing.total_ms >= TIMEOUT_S * 1e3
        second = step(runner, 2)
        assert second.chunk is not None and (second.chunk.actions == 2.0).all()


def test_a_server_that_is_killed_is_refusals_until_it_is_back() -> None:
    with serving() as server, remote(server.port) as policy:
        policy.warmup()
        runner, port = runner_of(policy), server.port
        assert step(runner).chunk is not None
        server.stop()
        for tick in range(2, 12):
            result = step(runner, tick)
            assert result.chunk is None and result.refused.startswith("openpi server 127.0.0.1")
        with serving(port=port) as again:
            assert again.port == port
            wait_until(lambda: step(runner, 20).chunk is not None, 5)


def test_attempts_to_connect_are_spaced() -> None:
    """Ten ticks a second must not be ten attempts a second, each of which may take the timeout."""
    attempts: list[float] = []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def refuse() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            attempts.append(time.perf_counter())
            connection.close()

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    with remote(port) as policy:
        runner = runner_of(policy)
        begun_s = time.perf_counter()
        results = []
        while time.perf_counter() - begun_s < 1.2:
            results.append(step(runner, len(results) + 1))
            time.sleep(0.01)
    listener.close()
    assert 2 <= len(attempts) <= 3 and len(results) > 10
    assert any("trying again in 0." in result.refused for result in results)


def test_a_server_that_accepts_and_says_nothing_costs_the_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        remote(silent.getsockname()[1]) as policy,
    ):
        begun_s = time.perf_counter()
        with pytest.raises(RemoteError, match=r"no answer within 0\.5 s"):
            policy.warmup()
        assert TIMEOUT_S <= time.perf_counter() - begun_s < TIMEOUT_S + LEEWAY_S
        assert "no answer within 0.5 s; trying again" in step(runner_of(policy)).refused


def test_a_server_that_takes_nothing_costs_the_timeout() -> None:
    """It sends its metadata and reads no more: the question fills the socket's buffers."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        accepted, _ = listener.accept()
        held.append(accepted)
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", accepted.recv(4096))
        assert key is not None
        digest = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accepted.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        hello = encode({})
        accepted.sendall(bytes([0x82, len(hello)]) + hello)

    threading.Thread(target=accept, daemon=True).start()
    wide = dataclasses.replace(TINY.model.vision, image_size=2800)
    with listener, remote(listener.getsockname()[1]) as policy:
        policy.warmup()
        policy.config = dataclasses.replace(
            TINY, model=dataclasses.replace(TINY.model, vision=wide)
        )
        assert "no answer within 0.5 s" in step(runner_of(policy)).refused
    held[0].close()


def test_another_policy_at_the_same_port_is_not_taken_for_the_one_that_was_checked() -> None:
    class Other(CountingPolicy):
        def facts(self) -> dict[str, Any]:
            return {"config": "tiny", "backend": "another"}

    with serving() as server, remote(server.port) as policy:
        policy.warmup()
        runner, port = runner_of(policy), server.port
        server.stop()
        step(runner)
        with serving(Other(), port=port):
            wait_until(lambda: "another policy is served there now" in step(runner).refused, 5)
            assert step(runner).chunk is None


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"config": "pi05_libero"}, "another policy: config is 'pi05_libero', wanted 'tiny'"),
        ({"action_horizon": 50, "action_dim": 7}, "horizon is 50, wanted 6; action_dim is 7"),
    ],
)
def test_metadata_that_contradict_the_config_are_refused(metadata: Any, said: str) -> None:
    with (
        scripted(answering({}, metadata)) as port,
        remote(port) as policy,
        pytest.raises(ValueError, match=said),
    ):
        policy.warmup()


def test_a_wrong_token_and_a_closed_port_are_said() -> None:
    with serving(token="secret") as server:
        with remote(server.port, token="wrong") as wrong, pytest.raises(RemoteError, match="401"):
            wrong.warmup()
        with remote(server.port, token="secret") as policy:
            policy.warmup()
    with remote(server.port) as policy, pytest.raises(RemoteError, match="openpi server 127"):
        policy.warmup()


def test_what_the_server_could_not_take_is_not_asked() -> None:
    with serving() as server, remote(server.port) as policy:
        policy.warmup()
        short = dataclasses.replace(toy_observation(), state=np.zeros(2, np.float32))
        with pytest.raises(ValueError, match=r"state of 4 values, got \[2\]"):
            runner_of(policy).step(short, 0.0, 1)


def test_a_closed_policy_refuses_and_its_thread_has_ended() -> None:
    before = threading.active_count()
    with serving() as server:
        with remote(server.port) as policy:
            policy.warmup()
            runner = runner_of(policy)
        assert "is closed" in step(runner).refused
        policy.close()
    wait_until(lambda: threading.active_count() <= before, 5)


def test_names_that_do_not_fit_the_config_are_refused_before_anything_is_opened() -> None:
    with pytest.raises(ValueError, match="observation keys 'pi05_aloha' feed"):
        RemotePolicy(LIBERO, "127.0.0.1", 1, keys="pi05_aloha")


def test_a_busy_server_is_a_refusal() -> None:
    policy = CountingPolicy(answer=busy)
    with serving(policy) as server, remote(server.port) as there:
        there.warmup()
        assert "refuses: ValueError: later" in step(runner_of(there)).refused


def busy(request: Request) -> ActionChunk | Exception:
    return ValueError("later")
