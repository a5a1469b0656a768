"""The backend changes while the node runs: what the set call, the chunks and diagnostics show."""

from __future__ import annotations

import gc
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import Probe
from support.scripted_policy import ScriptedPolicy

from thor_policy_ros.backends.registry import BACKENDS, spec_of
from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros import live_switch, policy_node
from thor_policy_ros.ros.diagnostics import ERROR, OK, WARN
from thor_policy_ros.ros.inference_thread import InferenceThread
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.verified_loading import LoadedPolicy, LoadRequest
from thor_policy_ros.types import BackendSpec, Verification, VerificationFailedError

NODE = "policy_node"
BACKEND, INPUTS = f"{NODE}: backend", f"{NODE}: inputs"
FINE = Verification(ok=True, cosine=0.9999, max_abs_error=0.001, precision="fp8", observations=3)
PIPELINED, FP8, FP8_FREQ3 = "pytorch_pipelined", "fake", "fake_freq3"
FAKES = (
    BackendSpec(FP8, "fake", reuse_every=2),
    BackendSpec(FP8_FREQ3, "fake", reuse_every=3),
)


class Loads:
    """Stands in for `load_policy`: what was loaded, and how each name behaves."""

    def __init__(self) -> None:
        self.policies: list[ScriptedPolicy] = []
        self.threads: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.fails: dict[str, Exception] = {}
        self.before: dict[str, Callable[[LoadRequest], None]] = {}
        self.under_way = ""

    def __call__(self, request: LoadRequest, references: Any, say: Any) -> LoadedPolicy:
        self.threads.append(threading.current_thread().name)
        self.under_way = request.backend
        say("warming up")
        if request.backend in self.gates:
            assert self.gates[request.backend].wait(30.0)
        if request.backend in self.fails:
            raise self.fails[request.backend]
        self.before.get(request.backend, lambda request: None)(request)
        policy = ScriptedPolicy()
        policy.spec = policy.backend.spec = spec_of(request.backend)
        self.policies.append(policy)
        return LoadedPolicy(policy, FINE)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    loads = Loads()
    for spec in FAKES:
        monkeypatch.setitem(BACKENDS, spec.name, spec)
    rows = [r for r in policy_node.POLICY if r.name != "backend"]
    row = next(r for r in policy_node.POLICY if r.name == "backend")
    monkeypatch.setattr(policy_node, "POLICY", (replace(row, choices=tuple(BACKENDS)), *rows))
    monkeypatch.setattr(policy_node, "load_policy", loads)
    monkeypatch.setattr(policy_node, "availability", lambda name: ())
    yield loads
    for gate in loads.gates.values():
        gate.set()


@pytest.fixture
def node(probe: Probe, loads: Loads) -> Iterator[PolicyNode]:
    values = {
        "joint_names": list(JOINTS),
        "camera.base.slot": "base_0_rgb",
        "camera.wrist.slot": "left_wrist_0_rgb",
        "control_rate_hz": 20.0,
    }
    node = PolicyNode(parameter_overrides=[Parameter(n, value=v) for n, v in values.items()])
    probe.host(node)
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    yield node
    for gate in loads.gates.values():
        gate.set()
    node.close()
    node.destroy_node()


@pytest.fixture
def chunks(node: PolicyNode, probe: Probe) -> list[ActionChunk]:
    FakeRobot(probe)
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    probe.wait(lambda: chunks, "a chunk")
    return chunks


def comes_from(backend: str, chunks: list[ActionChunk], probe: Probe) -> None:
    probe.wait(lambda: chunks[-1].backend == backend, f"a chunk of {backend}")


def test_the_end_waits_for_both_threads_together_no_longer_than_for_one(
    node: PolicyNode,
    probe: Probe,
    loads: Loads,
    chunks: list[ActionChunk],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads.gates[PIPELINED] = threading.Event()
    assert probe.set_parameter(NODE, "backend", PIPELINED).successful
    probe.wait(lambda: loads.under_way == PIPELINED, "the load")
    waited: list[float] = []
    monkeypatch.setattr(policy_node, "CLOSE_TIMEOUT_S", 3.0)

    def join(self: InferenceThread, timeout_s: float) -> bool:
        waited.append(timeout_s)
        time.sleep(0.2)
        return len(waited) == 1

    monkeypatch.setattr(InferenceThread, "join", join)
    assert node.close() is False, "the loader is still at work"
    first, second = waited
    assert first == 3.0 and second <= 2.8


def test_a_backend_is_loaded_beside_and_takes_over_between_two_frames(
    probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    loads.gates[PIPELINED] = gate = threading.Event()
    begun = time.monotonic()
    assert probe.set_parameter(NODE, "backend", PIPELINED).successful
    assert time.monotonic() - begun < 1.0, "it does not wait for the load"
    values = probe.diagnosis(BACKEND, OK, f"pytorch runs while {PIPELINED} loads: warming up")
    assert (values["requested"], values["active"]) == (PIPELINED, "pytorch")
    before = len(chunks)
    probe.wait(lambda: len(chunks) > before + 2, "chunks while it loads")
    assert {chunk.backend for chunk in chunks} == {"pytorch"}
    gate.set()
    comes_from(PIPELINED, chunks, probe)
    names = [chunk.backend for chunk in chunks]
    assert names == sorted(names), "the old one until the new one, and never back"
    assert [c.sequence for c in chunks] == list(
        range(chunks[0].sequence, chunks[0].sequence + len(chunks))
    )
    probe.wait(lambda: loads.policies[0].backend.closed == 1, "the old backend to be closed")
    values = probe.diagnosis(BACKEND, OK, "verified")
    assert (values["active"], values["switches"], values["loading"]) == (PIPELINED, "1", "")
    assert (values["verified_cosine"], values["verified_as"]) == ("0.9999", "fp8")
    assert loads.threads == ["inference", "backend loader"]
    assert loads.policies[1].backend.threads == {"inference"}, "frames of the new one"


def test_the_set_call_itself_takes_less_than_50_ms(
    node: PolicyNode, loads: Loads, chunks: list[ActionChunk]
) -> None:
    loads.gates[PIPELINED] = threading.Event()
    begun = time.perf_counter()
    result = node.set_parameters([Parameter("backend", value=PIPELINED)])[0]
    assert result.successful and time.perf_counter() - begun < 0.05


@pytest.mark.parametrize(
    "error",
    [VerificationFailedError("keys of layer 3: cosine 0.97"), RuntimeError("CUDA out of memory")],
)
def test_a_failure_leaves_the_old_backend_running_with_the_reason(
    probe: Probe, loads: Loads, chunks: list[ActionChunk], error: Exception
) -> None:
    loads.fails[PIPELINED] = error
    assert probe.set_parameter(NODE, "backend", PIPELINED).successful
    values = probe.diagnosis(BACKEND, WARN, f"pytorch runs; failed: {PIPELINED}: {error}")
    assert (values["requested"], values["active"]) == (PIPELINED, "pytorch")
    before = len(chunks)
    probe.wait(lambda: len(chunks) > before + 2, "chunks go on")
    assert {chunk.backend for chunk in chunks} == {"pytorch"}
    assert loads.policies[0].backend.closed == 0
    assert probe.set_parameter(NODE, "backend", "pytorch").successful
    probe.diagnosis(BACKEND, OK, "verified")


def test_a_second_request_replaces_the_one_that_loads(
    probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    loads.gates[PIPELINED] = gate = threading.Event()
    probe.set_parameter(NODE, "backend", PIPELINED)
    probe.wait(lambda: loads.under_way == PIPELINED, "the first load")
    probe.set_parameter(NODE, "backend", FP8)
    probe.diagnosis(BACKEND, OK, f"pytorch runs while {PIPELINED} loads")
    gate.set()
    comes_from(FP8, chunks, probe)
    assert {chunk.backend for chunk in chunks} == {"pytorch", FP8}
    assert loads.policies[1].backend.closed == 1 and not loads.policies[1].backend.steps


def test_variants_of_one_engine_switch_without_a_load(
    probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    probe.set_parameter(NODE, "backend", FP8)
    comes_from(FP8, chunks, probe)
    loaded = len(loads.threads)
    probe.set_parameter(NODE, "backend", FP8_FREQ3)
    comes_from(FP8_FREQ3, chunks, probe)
    assert len(loads.threads) == loaded
    assert probe.diagnosis(BACKEND, OK)["reuse_every"] == "3"


def test_reuse_may_be_set_apart_from_the_name(
    node: PolicyNode, probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    assert probe.set_parameter(NODE, "reuse_mode", "fixed").successful
    assert probe.set_parameter(NODE, "kv_reuse_freq", 4).successful
    probe.wait(lambda: any(chunk.prefix_reused for chunk in chunks), "a reused prefix")
    result = probe.set_parameter(NODE, "backend", PIPELINED)
    assert not result.successful and "kv_reuse_freq" in result.reason
    probe.set_parameter(NODE, "backend", FP8)
    comes_from(FP8, chunks, probe)
    assert loads.policies[-1].spec.reuse_every == 4
    probe.set_parameter(NODE, "kv_reuse_freq", 0)
    probe.wait(lambda: loads.policies[-1].spec.reuse_every == 2, "the name's own")


def test_a_name_that_cannot_run_here_is_refused_at_once(
    probe: Probe, loads: Loads, chunks: list[ActionChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_node, "availability", lambda name: ("torch_tensorrt >= 2.8",))
    result = probe.set_parameter(NODE, "backend", FP8)
    assert not result.successful and "missing: torch_tensorrt >= 2.8" in result.reason
    assert not probe.set_parameter(NODE, "backend", "trt").successful
    assert probe.diagnosis(BACKEND, OK)["requested"] == "pytorch"


def test_without_room_for_two_the_running_one_is_closed_first(
    probe: Probe, loads: Loads, chunks: list[ActionChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_switch, "device_memory", lambda device: (int(8e9), int(7e9)))
    loads.gates[FP8] = gate = threading.Event()
    probe.set_parameter(NODE, "backend", FP8)
    probe.diagnosis(BACKEND, WARN, f"paused while {FP8} loads: 8.0 GB are free")
    probe.diagnosis(INPUTS, ERROR, f"backend: paused while {FP8} loads")
    assert loads.policies[0].backend.closed == 1
    before = len(chunks)
    probe.spin_for(0.3)
    assert len(chunks) == before, "no chunk without a verified backend"
    gate.set()
    comes_from(FP8, chunks, probe)
    probe.diagnosis(BACKEND, OK, "verified")


def test_what_an_engine_holds_outside_of_torch_counts_as_taken(
    probe: Probe, loads: Loads, chunks: list[ActionChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_switch, "device_memory", lambda device: (int(8e9), int(1e9)))
    monkeypatch.setattr(loads.policies[0].backend, "bytes_outside_torch", int(6e9), raising=False)
    loads.gates[FP8] = gate = threading.Event()
    probe.set_parameter(NODE, "backend", FP8)
    probe.diagnosis(BACKEND, WARN, f"paused while {FP8} loads: 8.0 GB are free")
    gate.set()
    comes_from(FP8, chunks, probe)


def test_a_failure_after_a_pause_loads_the_backend_before(
    probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    probe.set_parameter(NODE, "switch_mode", "pause")
    loads.fails[FP8] = RuntimeError("engine file is truncated")
    probe.set_parameter(NODE, "backend", FP8)
    values = probe.diagnosis(BACKEND, WARN, f"pytorch runs; failed: {FP8}: engine file")
    assert (values["requested"], values["active"]) == (FP8, "pytorch")
    before = len(chunks)
    probe.wait(lambda: len(chunks) > before, "chunks again")
    loads.fails["pytorch"] = RuntimeError("checkpoint is gone")
    probe.set_parameter(NODE, "backend", FP8)
    probe.diagnosis(BACKEND, ERROR, "no backend runs")
    assert probe.state(NODE) == "active"
    loads.fails.clear()
    probe.set_parameter(NODE, "backend", FP8)
    comes_from(FP8, chunks, probe)


def test_cleanup_while_one_loads_frees_both(
    node: PolicyNode, probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    loads.gates[FP8] = gate = threading.Event()
    probe.set_parameter(NODE, "backend", FP8)
    probe.wait(lambda: loads.under_way == FP8, "the load")
    assert probe.transition(NODE, "deactivate") and probe.transition(NODE, "cleanup")
    assert loads.policies[0].backend.closed == 1
    gate.set()
    probe.wait(lambda: len(loads.policies) == 2 and loads.policies[1].backend.closed, "the other")
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    comes_from(FP8, chunks, probe)


def test_a_node_that_ends_right_after_a_request_leaves_nothing_begun(
    node: PolicyNode, probe: Probe, loads: Loads
) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert node.set_parameters([Parameter("backend", value=FP8)])[0].successful
        assert node.close()
        probe.spin_for(0.2)
        gc.collect()  # a coroutine that was never awaited would say so
    assert loads.under_way == "pytorch", "the load of the start, and none after it"
    assert [str(warning.message) for warning in said] == []


def test_an_inactive_node_switches_too_and_a_request_while_configuring_is_kept(
    node: PolicyNode, probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    assert probe.transition(NODE, "deactivate")
    probe.set_parameter(NODE, "backend", FP8)
    probe.wait(lambda: probe.diagnosis(BACKEND, OK)["active"] == FP8, "the switch")
    assert probe.transition(NODE, "cleanup")
    loads.gates[FP8] = gate = threading.Event()
    task = node.executor.create_task(node.start)
    probe.wait(lambda: loads.under_way == FP8, "configuring")
    assert probe.set_parameter(NODE, "backend", "pytorch").successful
    gate.set()
    probe.wait(task.done, "the start")
    comes_from("pytorch", chunks, probe)


def test_an_inference_failure_of_the_new_backend_is_an_error_of_the_node(
    probe: Probe, loads: Loads, chunks: list[ActionChunk]
) -> None:
    probe.set_parameter(NODE, "backend", FP8)
    comes_from(FP8, chunks, probe)
    loads.policies[-1].backend.fails = RuntimeError("device lost")
    probe.diagnosis(f"{NODE}: lifecycle", ERROR, "device lost")
    assert loads.policies[-1].backend.closed == 1
    assert np.isfinite(chunks[-1].actions).all()


class Weights:
    """Stands in for what a load takes on the GPU."""


@pytest.mark.parametrize("mode", ["beside", "pause"])
def test_what_a_failed_load_took_is_given_back_at_once(
    probe: Probe, loads: Loads, chunks: list[ActionChunk], mode: str
) -> None:
    taken: list[weakref.ref[Weights]] = []

    def fails(request: LoadRequest) -> None:
        weights = Weights()
        taken.append(weakref.ref(weights))
        raise RuntimeError("CUDA out of memory")

    loads.before[FP8] = fails
    probe.set_parameter(NODE, "switch_mode", mode)
    gc.disable()
    try:
        probe.set_parameter(NODE, "backend", FP8)
        probe.diagnosis(BACKEND, WARN, "pytorch runs; failed: fake: CUDA out of memory")
        assert taken[0]() is None, "not only when the garbage collector comes by"
    finally:
        gc.enable()
