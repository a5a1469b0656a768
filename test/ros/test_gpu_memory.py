"""GPU memory runs out while a backend loads beside the live one, and in a frame.

The real engines on a CPU; torch's own OutOfMemoryError is raised by the operation that exceeds a
budget. On a GPU: section `exhausted` of benchmarks/gpu_checks.py.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rclpy.parameter import Parameter
from support.arm_checkpoint import write_arm_checkpoint
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import Probe

from benchmarks.memory_budget import MemoryBudget
from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros import policy_node
from thor_policy_ros.ros.diagnostics import ERROR, OK, WARN
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.verified_loading import LoadedPolicy, LoadRequest, load_policy
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

NODE, SECOND = "policy_node", "fused_freq1"
BACKEND, LIFECYCLE, INFERENCE = (
    f"{NODE}: {name}" for name in ("backend", "lifecycle", "inference")
)


class Gpu:
    """Stands in for the GPU's memory. budgets: of the loads of each backend. frames: bytes that
    the next prefix may take; None for no bound. enough: holds such a load until it is set.
    """

    def __init__(self) -> None:
        self.budgets: dict[str, int] = {}
        self.frames: int | None = None
        self.enough = threading.Event()
        self.enough.set()

    def load(self, request: LoadRequest, references: Any, say: Any) -> LoadedPolicy:
        if request.backend in self.budgets:
            self.enough.wait(30.0)
            with MemoryBudget(self.budgets[request.backend]):
                return load_policy(request, references, say)
        loaded = load_policy(request, references, say)
        backend: Any = loaded.policy.backend
        backend.prefill = self._bounded(backend.prefill)
        return loaded

    def _bounded(self, prefill: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(*args: Any) -> Any:
            if self.frames is None:
                return prefill(*args)
            with MemoryBudget(self.frames):
                return prefill(*args)

        return bounded


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    gpu = Gpu()
    monkeypatch.setattr(policy_node, "load_policy", gpu.load)
    yield gpu
    gpu.enough.set()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_arm_checkpoint(tmp_path_factory.mktemp("memory"))
    for name in ("pytorch", SECOND):  # torch imports much at the first load, and the node has 40 s
        with UnifiedPolicy(folder, name, device="cpu") as policy:
            policy.warmup()
    return folder


@pytest.fixture
def chunks(probe: Probe, gpu: Gpu, checkpoint: Path) -> Iterator[list[ActionChunk]]:
    """Of the active node."""
    values = {
        "joint_names": list(JOINTS),
        "camera.base.slot": "base_0_rgb",
        "camera.wrist.slot": "left_wrist_0_rgb",
        "checkpoint": str(checkpoint),
        "device": "cpu",
        "cpu_threads": 1,
        "num_denoise_steps": 2,
        "verification_observations": 1,
        "control_rate_hz": 20.0,
    }
    node = PolicyNode(parameter_overrides=[Parameter(n, value=v) for n, v in values.items()])
    probe.host(node)
    FakeRobot(probe)
    heard = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    probe.wait(lambda: heard, "a chunk")
    yield heard
    gpu.enough.set()
    node.close()
    probe.release(node)


def tensor_bytes() -> int:
    """Of all tensors that anything still holds; without a collection of garbage."""
    held = {
        thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
        for thing in gc.get_objects()
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu"
    }
    return sum(held.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("budget", [150_000, 400_000])
def test_a_load_beside_the_live_backend_is_refused_and_gives_back_what_it_took(
    probe: Probe, gpu: Gpu, chunks: list[ActionChunk], budget: int
) -> None:
    gc.collect()
    gc.disable()
    try:
        before = tensor_bytes()
        gpu.budgets[SECOND] = budget
        assert probe.set_parameter(NODE, "backend", SECOND).successful
        said = f"pytorch runs; failed: {SECOND}: CUDA out of memory"
        values = probe.diagnosis(BACKEND, WARN, said)
        assert (values["requested"], values["active"]) == (SECOND, "pytorch")
        assert tensor_bytes() - before < 100_000, "more than a live frame takes"
    finally:
        gc.enable()
    count = len(chunks)
    probe.wait(lambda: len(chunks) > count + 2, "chunks go on")
    assert {chunk.backend for chunk in chunks} == {"pytorch"}
    gpu.budgets.clear()
    assert probe.set_parameter(NODE, "backend", "pytorch").successful
    assert probe.set_parameter(NODE, "backend", SECOND).successful
    probe.wait(lambda: chunks[-1].backend == SECOND, "the second backend, with memory back")


def test_a_frame_without_memory_while_a_backend_loads_is_refused_and_the_next_one_comes(
    probe: Probe, gpu: Gpu, chunks: list[ActionChunk]
) -> None:
    gpu.budgets[SECOND] = 0
    gpu.enough.clear()
    assert probe.set_parameter(NODE, "backend", SECOND).successful
    gpu.frames = 0
    said = "while another backend loads: CUDA out of memory"
    probe.diagnosis(INFERENCE, ERROR, f"last chunk refused: {said}")
    assert probe.state(NODE) == "active"
    gpu.frames = None
    gpu.enough.set()
    count = len(chunks)
    probe.wait(lambda: len(chunks) > count + 2, "chunks again")
    probe.diagnosis(BACKEND, WARN, f"pytorch runs; failed: {SECOND}: CUDA out of memory")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_frame_without_memory_ends_in_the_error_with_nothing_held_and_configure_mends_it(
    probe: Probe, gpu: Gpu, chunks: list[ActionChunk]
) -> None:
    gc.collect()
    gc.disable()
    try:
        before = tensor_bytes()
        gpu.frames = 0
        probe.diagnosis(LIFECYCLE, ERROR, "OutOfMemoryError: CUDA out of memory")
        probe.wait(lambda: probe.state(NODE) == "unconfigured", "the engine to be freed")
        assert tensor_bytes() < before - 300_000, "weights and all that the frame had taken"
    finally:
        gc.enable()
    gpu.frames = None
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    count = len(chunks)
    probe.wait(lambda: len(chunks) > count + 2, "chunks of the new engine")
    probe.diagnosis(LIFECYCLE, OK)
