"""No engine leaves the loader that was not compared with the float32 reference."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rclpy.parameter import Parameter
from support.fake_robot import JOINTS, FakeRobot
from support.faulty_engine import resizing
from support.ros_probe import Probe

from thor_policy_ros.backends import pytorch
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, ENGINES, Engine
from thor_policy_ros.model.checksums import ChecksumError, write_checksums
from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros import policy_node
from thor_policy_ros.ros.diagnostics import ERROR, OK
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.verified_loading import LoadRequest, References, load_policy
from thor_policy_ros.types import (
    BackendSpec,
    BackendUnavailableError,
    VerificationFailedError,
)

FAKE = "fake"
Change = Callable[[PyTorchBackend], None]


class Spy(ModuleType):
    """An engine's module: backend pytorch with a change, and who was loaded and closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("support.fake_engine")
        self.change: Change = lambda backend: None
        self.events: list[str] = []
        plain = pytorch.load
        monkeypatch.setattr(pytorch, "load", lambda *args: self._watched("pytorch", plain(*args)))
        self.load = lambda *args: self._changed(self._watched(FAKE, plain(*args)))
        self.missing = tuple

    def _watched(self, name: str, backend: PyTorchBackend) -> PyTorchBackend:
        self.events.append(f"load {name} {str(backend.dtype).removeprefix('torch.')}")
        close = backend.close
        backend.close = lambda: (self.events.append(f"close {name}"), close())[1]
        return backend

    def _changed(self, backend: PyTorchBackend) -> PyTorchBackend:
        self.change(backend)
        return backend


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy(monkeypatch)
    monkeypatch.setitem(sys.modules, spy.__name__, spy)
    monkeypatch.setitem(ENGINES, FAKE, Engine(spy.__name__, "for tests"))
    monkeypatch.setitem(BACKENDS, FAKE, BackendSpec(FAKE, FAKE))
    return spy


def request(checkpoint: Path, backend: str, **changes: Any) -> LoadRequest:
    values = {"policy_config": "", "tokenizer": "", "device": "cpu", "dtype": "", "cpu_threads": 1}
    return LoadRequest(
        backend=backend, checkpoint=str(checkpoint), num_steps=2, **{**values, **changes}
    )


def shuffle_a_layer(backend: PyTorchBackend) -> None:
    assert backend._model is not None
    weight = backend._model.language.layers[0].mlp.gate_up_proj.weight
    weight.data = weight.data[torch.randperm(weight.shape[0])]


def test_the_reference_is_run_and_freed_before_the_engine_loads_and_only_once(
    arm_checkpoint: Path, engine: Spy
) -> None:
    references, said = References(), []  # type: ignore[var-annotated]
    for _ in range(2):
        loaded = load_policy(request(arm_checkpoint, FAKE), references, said.append)
        assert loaded.verification.ok and loaded.verification.observations == 3
        assert loaded.verification.seconds > 0
        loaded.policy.close()
    assert engine.events == [
        "load pytorch float32",
        "close pytorch",
        *["load fake float32", "close fake"] * 2,
    ]
    assert said.count("verifying against the float32 reference") == 2


def test_what_cannot_run_here_is_told_before_the_reference_is_loaded(
    arm_checkpoint: Path, engine: Spy
) -> None:
    engine.missing = lambda: ("package warp_drive 9",)
    with pytest.raises(BackendUnavailableError, match="missing: package warp_drive 9"):
        load_policy(request(arm_checkpoint, FAKE), References(), lambda _: None)
    assert engine.events == []


def test_float32_pytorch_is_its_own_reference_and_serves_later_loads(
    arm_checkpoint: Path, engine: Spy
) -> None:
    references = References()
    loaded = load_policy(request(arm_checkpoint, "pytorch"), references, str)
    assert loaded.verification.ok and loaded.verification.max_abs_error == 0.0
    load_policy(request(arm_checkpoint, FAKE), references, str).policy.close()
    assert engine.events == ["load pytorch float32", "load fake float32", "close fake"]
    loaded.policy.close()


def test_bfloat16_is_compared_with_float32(arm_checkpoint: Path, engine: Spy) -> None:
    asked = request(arm_checkpoint, "pytorch", dtype="bfloat16")
    loaded = load_policy(asked, References(), str)
    assert loaded.verification.precision == "bfloat16" and loaded.verification.max_abs_error > 0
    assert engine.events == ["load pytorch float32", "close pytorch", "load pytorch bfloat16"]
    loaded.policy.close()


def test_an_engine_that_is_not_the_policy_is_closed_and_reported(
    arm_checkpoint: Path, engine: Spy, tmp_path: Path
) -> None:
    engine.change = shuffle_a_layer
    asked = request(arm_checkpoint, FAKE, report_dir=str(tmp_path / "reports"))
    with pytest.raises(VerificationFailedError, match=r"'fake' failed .* of layer 1: cosine"):
        load_policy(asked, References(), str)
    assert engine.events[-1] == "close fake"
    (path,) = (tmp_path / "reports").iterdir()
    report = json.loads(path.read_text())
    assert path.name == "verification_fake.json"
    assert not report["ok"] and "of layer 1" in report["reason"]
    assert report["checkpoint"] == str(arm_checkpoint) and len(report["keys_cosine"]) == 2


def test_an_engine_that_resizes_frames_loads_if_they_are_what_pillow_makes(
    arm_checkpoint: Path, engine: Spy
) -> None:
    engine.change = resizing
    load_policy(request(arm_checkpoint, FAKE), References(), str).policy.close()
    for fault in ("swapped", "black"):
        engine.change = partial(resizing, fault=fault)
        with pytest.raises(VerificationFailedError, match=r"camera frames .* keys that are .* off"):
            load_policy(request(arm_checkpoint, FAKE), References(), str)
        assert engine.events[-1] == "close fake"


def node_of(probe: Probe, checkpoint: Path, backend: str) -> PolicyNode:
    values = {
        "joint_names": list(JOINTS),
        "camera.base.slot": "base_0_rgb",
        "camera.wrist.slot": "left_wrist_0_rgb",
        "checkpoint": str(checkpoint),
        "device": "cpu",
        "cpu_threads": 1,
        "num_denoise_steps": 2,
        "backend": backend,
    }
    FakeRobot(probe)
    node = PolicyNode(parameter_overrides=[Parameter(n, value=v) for n, v in values.items()])
    probe.host(node)
    return node


@pytest.fixture
def fake_is_a_choice(engine: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        replace(row, choices=tuple(BACKENDS)) if row.name == "backend" else row
        for row in policy_node.POLICY
    ]
    monkeypatch.setattr(policy_node, "POLICY", tuple(rows))


@pytest.mark.usefixtures("fake_is_a_choice")
def test_a_node_does_not_configure_with_an_engine_that_fails(
    probe: Probe, arm_checkpoint: Path, engine: Spy
) -> None:
    engine.change = shuffle_a_layer
    node = node_of(probe, arm_checkpoint, FAKE)
    assert not probe.transition("policy_node", "configure")
    probe.diagnosis("policy_node: lifecycle", ERROR, "'fake' failed its verification: ")
    assert probe.state("policy_node") == "unconfigured"
    probe.release(node)


@pytest.mark.usefixtures("fake_is_a_choice")
def test_a_node_switches_to_a_real_engine_and_keeps_the_old_one_when_it_fails(
    probe: Probe, arm_checkpoint: Path, engine: Spy
) -> None:
    node = node_of(probe, arm_checkpoint, "pytorch")
    chunks = probe.listen(ActionChunk, "policy_node/action_chunk")
    assert probe.transition("policy_node", "configure")
    assert probe.transition("policy_node", "activate")
    for backend in ("pytorch_pipelined", FAKE):
        assert probe.set_parameter("policy_node", "backend", backend).successful
        probe.wait(lambda b=backend: chunks and chunks[-1].backend == b, backend)
        values = probe.diagnosis("policy_node: backend", OK, "verified")
        assert values["verified"] == "1" and values["verified_as"] == "float32"
    engine.change = shuffle_a_layer
    assert probe.set_parameter("policy_node", "backend", "pytorch").successful
    probe.wait(lambda: chunks[-1].backend == "pytorch", "pytorch")
    assert probe.set_parameter("policy_node", "backend", FAKE).successful

    def told() -> bool:
        return "'fake' failed" in probe.diagnostics["policy_node: backend"].message

    probe.wait(told, "the failure")
    count = len(chunks)
    probe.wait(lambda: len(chunks) > count + 2, "more chunks")
    assert {chunk.backend for chunk in chunks[count:]} == {"pytorch"}
    node.close()
    probe.release(node)


def test_checksums_are_compared_before_anything_is_loaded(
    engine: Spy, arm_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(arm_checkpoint, tmp_path / "checkpoint"))
    asked, said = request(folder, FAKE, require_checksums=True), []
    with pytest.raises(ChecksumError, match=r"wanted checksums\.json in"):
        load_policy(asked, References(), said.append)
    write_checksums(folder)
    loaded = load_policy(asked, References(), said.append)
    loaded.policy.close()
    assert any(line.startswith("4 files agree with checksums.json (") for line in said)
    engine.events.clear()
    with (folder / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ChecksumError, match=r"config\.json: wanted \d+ bytes"):
        load_policy(replace(asked, require_checksums=False), References(), said.append)
    assert engine.events == []


def test_a_report_that_cannot_be_written_is_told_and_the_policy_loads(
    engine: Spy, arm_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    asked, said = request(arm_checkpoint, FAKE, report_dir=str(tmp_path / "file")), []
    load_policy(asked, References(), said.append).policy.close()
    assert any("the verification report is not written: [Errno" in line for line in said)
