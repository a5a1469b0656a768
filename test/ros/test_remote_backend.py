"""Backend `openpi_remote` in the node: checked as far as possible, lost and found as it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from support.arm_checkpoint import arm_policy_config
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import Probe
from support.served import CountingPolicy, Served, serving

from thor_policy_ros.model.config import to_json
from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros.diagnostics import ERROR, OK, WARN
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.remote_parameters import RemoteServer
from thor_policy_ros.ros.verified_loading import LoadRequest, References, load_policy
from thor_policy_ros.runtime.executor import ChunkExecutor
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.serving.observation_keys import keys_of
from thor_policy_ros.serving.remote_policy import RemotePolicy
from thor_policy_ros.serving.requests import NOISE, RequestForm
from thor_policy_ros.serving.served_policy import LocalPolicy, Request
from thor_policy_ros.types import (
    ActionChunk as Chunk,
)
from thor_policy_ros.types import (
    BackendUnavailableError,
    JointLimits,
    VerificationFailedError,
)

REMOTE = "openpi_remote"
TIMEOUT_S = 1.0
CONFIG = arm_policy_config()


class Wrong(LocalPolicy):
    """Serves the policy with a change in what it answers."""

    change: Callable[[np.ndarray], np.ndarray] = staticmethod(lambda actions: actions)

    def infer(self, requests: Any) -> list[Chunk | Exception]:
        return [
            replace(found, actions=type(self).change(found.actions))
            if isinstance(found, Chunk)
            else found
            for found in super().infer(requests)
        ]


class NoNoiseForm(RequestForm):
    """As openpi's own server: it says nothing of itself and draws the noise."""

    def facts(self) -> dict[str, Any]:
        return {}

    def request(self, message: Any, stamp_s: float) -> Request:
        assert NOISE not in message
        return super().request(message, stamp_s)


@pytest.fixture(scope="module")
def local(arm_checkpoint: Path) -> Iterator[UnifiedPolicy]:
    with UnifiedPolicy(arm_checkpoint, device="cpu") as policy:
        yield policy


@contextmanager
def served(policy: UnifiedPolicy, kind: type[LocalPolicy] = LocalPolicy, **options: Any) -> Any:
    """The toy policy of the arm behind a socket; the test keeps it open."""
    made = kind(policy)
    made.close = lambda: None  # type: ignore[method-assign]
    with serving(made, **options) as server:
        yield server


def request_of(server: Served, checkpoint: Path | str = "", **changes: Any) -> LoadRequest:
    values = {"policy_config": "", "tokenizer": "", "device": "cpu", "dtype": "", "cpu_threads": 1}
    remote = RemoteServer(port=server.port, timeout_s=20.0)
    return LoadRequest(
        backend=REMOTE,
        checkpoint=str(checkpoint),
        num_steps=2,
        **{"remote": remote, **values, **changes},
    )


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "arm.json"
    path.write_text(json.dumps(to_json(CONFIG)))
    return str(path)


def load(request: LoadRequest) -> Any:
    loaded = load_policy(request, References(), str)
    assert isinstance(loaded.policy, RemotePolicy)
    return loaded


def test_a_server_of_ours_is_compared_with_the_checkpoint_that_is_here(
    local: UnifiedPolicy, arm_checkpoint: Path, tmp_path: Path
) -> None:
    with served(local) as server:
        loaded = load(request_of(server, arm_checkpoint, report_dir=str(tmp_path)))
        loaded.policy.close()
    found = loaded.verification
    assert found.ok and found.precision == "float32" and found.observations == 3
    assert found.actions_cosine > 0.99999 and found.max_abs_error < 1e-5 and found.seconds > 0
    assert loaded.policy.backend.warnings == ()
    report = json.loads((tmp_path / "verification_openpi_remote.json").read_text())
    assert report["ok"] and report["backend"] == REMOTE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda actions: actions[::-1], "actions: "),
        (lambda actions: actions * 1.5, "actions: "),
        (lambda actions: actions + 0.5, "actions: "),
    ],
)
def test_a_server_that_is_not_the_policy_is_refused(
    local: UnifiedPolicy, arm_checkpoint: Path, change: Any, said: str
) -> None:
    class Changed(Wrong):
        pass

    Changed.change = staticmethod(change)
    with (
        served(local, Changed) as server,
        pytest.raises(VerificationFailedError, match=f"failed its verification: {said}"),
    ):
        load(request_of(server, arm_checkpoint))


def test_without_a_checkpoint_its_answers_have_the_right_form_and_it_is_said(
    local: UnifiedPolicy, config_file: str
) -> None:
    with served(local) as server:
        loaded = load(request_of(server, policy_config=config_file))
        loaded.policy.close()
    found = loaded.verification
    assert found.ok and found.precision == "not compared" and found.observations == 0
    (warning,) = loaded.policy.backend.warnings
    assert "not compared with float32 (no checkpoint is here)" in warning


def test_a_server_as_openpis_own_cannot_be_compared_even_with_the_checkpoint(
    local: UnifiedPolicy, arm_checkpoint: Path
) -> None:
    form = NoNoiseForm(CONFIG, keys_of(CONFIG))
    with served(local, form=form) as server:
        loaded = load(request_of(server, arm_checkpoint))
        loaded.policy.close()
    (warning,) = loaded.policy.backend.warnings
    assert "not compared with float32 (it takes no noise of ours)" in warning


def test_a_form_that_is_wrong_is_refused_at_load(config_file: str) -> None:
    def nan(request: Request) -> Chunk:
        return Chunk(np.full((10, 5), np.nan, np.float32), 0.1, 0.0)

    def short(request: Request) -> Chunk:
        return Chunk(np.zeros((3, 5), np.float32), 0.1, 0.0)

    for answer, error, said in (
        (nan, VerificationFailedError, "nan is not finite"),
        (short, BackendUnavailableError, r"wanted actions \[10, 5\], got \[3, 5\]"),
    ):
        with (
            serving(CountingPolicy(CONFIG, answer=answer)) as server,
            pytest.raises(error, match=said),
        ):
            load(request_of(server, policy_config=config_file))


def test_what_is_not_known_or_not_there_is_said(
    local: UnifiedPolicy, config_file: str, tmp_path: Path
) -> None:
    with served(local) as server:
        with pytest.raises(ValueError, match="wants parameter policy_config"):
            load(request_of(server))
        with pytest.raises(ValueError, match="serves another policy: config is 'demo', wanted"):
            load(request_of(server, policy_config="pi05_libero"))
        empty = tmp_path / "token"
        empty.write_text("\n")
        remote = RemoteServer(port=server.port, token_file=str(empty))
        with pytest.raises(ValueError, match="holds no token"):
            load(request_of(server, policy_config=config_file, remote=remote))
    with pytest.raises(BackendUnavailableError, match=f"openpi server 127.0.0.1:{server.port}: "):
        load(request_of(server, policy_config=config_file))


def test_a_token_file_is_the_servers_token(
    local: UnifiedPolicy, config_file: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    with served(local, token="secret") as server:
        remote = RemoteServer(port=server.port, timeout_s=20.0, token_file=str(token))
        load(request_of(server, policy_config=config_file, remote=remote)).policy.close()


# In the node


def node_of(probe: Probe, port: int, **changes: Any) -> PolicyNode:
    values = {
        "joint_names": list(JOINTS),
        "camera.base.slot": "base_0_rgb",
        "camera.wrist.slot": "left_wrist_0_rgb",
        "device": "cpu",
        "cpu_threads": 1,
        "num_denoise_steps": 2,
        "backend": REMOTE,
        "openpi_remote_port": port,
        "openpi_remote_timeout": TIMEOUT_S,
        **changes,
    }
    FakeRobot(probe)
    node = PolicyNode(parameter_overrides=[Parameter(n, value=v) for n, v in values.items()])
    probe.host(node)
    return node


def ended(probe: Probe, node: PolicyNode) -> None:
    assert node.close()
    probe.release(node)


def test_chunks_come_stop_and_come_again_with_the_server(
    probe: Probe, local: UnifiedPolicy, arm_checkpoint: Path
) -> None:
    """Killed and restarted mid-run; meanwhile the chunk executor holds and stops by itself."""
    chunks = probe.listen(ActionChunk, "policy_node/action_chunk")
    latencies = probe.listen(FrameLatency, "policy_node/frame_latency")
    with served(local) as server:
        port = server.port
        node = node_of(probe, port, checkpoint=str(arm_checkpoint))
        assert probe.transition("policy_node", "configure")
        assert probe.transition("policy_node", "activate")
        probe.wait(lambda: len(chunks) > 3, "chunks of the server")
        values = probe.diagnosis("policy_node: backend", OK, "verified")
        assert (values["active"], values["verified"], values["verified_as"]) == (
            REMOTE,
            "1",
            "float32",
        )
        assert "no real-time chunking" in values["notes"]
    executor = executing(chunks[-1])
    probe.wait(lambda: "refused: openpi server" in latencies[-1].decision, "a refusal")
    probe.diagnosis("policy_node: inference", ERROR, "last chunk refused: openpi server 127.0.0.1:")
    count = len(chunks)
    probe.spin_for(0.5)
    assert len(chunks) == count, "chunks without a server"
    assert [executor(s) for s in (0.2, 1.1, 2.0)] == ["tracking", "holding", "stopped"]
    with served(local, port=port):
        probe.wait(lambda: len(chunks) > count + 2, "chunks after the restart")
        assert chunks[-1].backend == REMOTE and not chunks[-1].prefix_reused
        assert list(chunks[-1].joint_names) == list(JOINTS)
    assert probe.state("policy_node") == "active"
    ended(probe, node)


def executing(message: ActionChunk) -> Callable[[float], str]:
    """The state of an executor so many seconds after the observation of its last chunk."""
    wide = np.full(5, np.inf, np.float32)
    limits = JointLimits(-wide, wide, np.full(5, 5.0, np.float32), np.full(5, 50.0, np.float32))
    executor = ChunkExecutor(JOINTS, limits, 0.01, 0.1, 0.5, 1.9)
    observed_s = message.observed_at.sec + message.observed_at.nanosec * 1e-9
    actions = np.array(message.actions, np.float32).reshape(message.horizon, message.action_dim)
    executor.set_measured(actions[0], observed_s)
    assert executor.accept(Chunk(actions, message.dt, observed_s), JOINTS, observed_s) == ""
    now_s = [observed_s]

    def state_at(after_s: float) -> str:
        state = ""
        while now_s[0] < observed_s + after_s:
            now_s[0] += 0.01
            executor.set_measured(actions[0], now_s[0])
            state = executor.command(now_s[0]).state
        return state

    return state_at


def test_a_slow_server_costs_its_timeout_and_the_node_stays_awake(
    probe: Probe, config_file: str
) -> None:
    policy = CountingPolicy(CONFIG)
    latencies = probe.listen(FrameLatency, "policy_node/frame_latency")
    with serving(policy) as server:
        node = node_of(probe, server.port, policy_config=config_file)
        assert probe.transition("policy_node", "configure")
        assert probe.transition("policy_node", "activate")
        warned = probe.diagnosis("policy_node: backend", WARN, "not compared with float32")
        assert warned["verified"] == "0"
        probe.wait(lambda: latencies, "frames")
        policy.hold.clear()
        probe.wait(lambda: "no answer within 1 s" in latencies[-1].decision, "a refusal")
        assert latencies[-1].deadline_missed and latencies[-1].total_ms < 1e3 * (TIMEOUT_S + 2)
        begun_s = time.monotonic()
        assert probe.state("policy_node") == "active"
        assert time.monotonic() - begun_s < TIMEOUT_S, "services wait for the server"
        policy.hold.set()
        probe.wait(lambda: not latencies[-1].decision.startswith("refused"), "chunks again")
        ended(probe, node)


def test_from_an_engine_here_to_the_server_and_back(
    probe: Probe, local: UnifiedPolicy, arm_checkpoint: Path
) -> None:
    chunks = probe.listen(ActionChunk, "policy_node/action_chunk")
    with served(local) as server:
        node = node_of(probe, server.port, checkpoint=str(arm_checkpoint), backend="pytorch")
        assert probe.transition("policy_node", "configure")
        assert probe.transition("policy_node", "activate")
        for backend in (REMOTE, "pytorch"):
            assert probe.set_parameter("policy_node", "backend", backend).successful
            probe.wait(lambda b=backend: chunks and chunks[-1].backend == b, backend)
    assert probe.set_parameter("policy_node", "backend", REMOTE).successful
    probe.diagnosis("policy_node: backend", WARN, "pytorch runs; failed: openpi_remote: ")
    count = len(chunks)
    probe.wait(lambda: len(chunks) > count + 2, "chunks of the engine that went on")
    assert {chunk.backend for chunk in chunks[count:]} == {"pytorch"}
    ended(probe, node)


def test_reuse_of_a_prefix_that_is_not_here_is_refused(probe: Probe, config_file: str) -> None:
    with serving(CountingPolicy(CONFIG)) as server:
        node = node_of(probe, server.port, policy_config=config_file)
        answer = probe.set_parameter("policy_node", "kv_reuse_freq", 3)
        assert not answer.successful and "kv_reuse_freq to 0 or 1" in answer.reason
        ended(probe, node)
