"""bench compare: peers in processes of their own, the protocol, ratios, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.evaluation import bench_compare, peer_client
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.compare_entrants import peer_choices
from thor_policy_ros.evaluation.peer_client import PeerError, PeerProcess, peer_names, write_inputs
from thor_policy_ros.types import ModelInputs

FAKES = Path(__file__).parents[1] / "support" / "fake_peers"
SETTINGS = {"device": "cpu", "dtype": "float32", "compile": "", "num_steps": 3, "threads": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real process with peers of the tests."""
    made = tmp_path / "peers"
    shutil.copytree(FAKES, made)
    shutil.copy(peer_client.PEERS / "peer_process.py", made)
    monkeypatch.setattr(peer_client, "PEERS", made)
    return made


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    inputs = ModelInputs(
        images=np.zeros((2, 3, 28, 28), np.float32),
        image_mask=np.array([True, False]),
        tokens=np.arange(5, dtype=np.int32),
        token_mask=np.ones(5, np.bool_),
    )
    return write_inputs(tmp_path / "frame.npz", inputs, np.full((6, 32), 0.5, np.float32))


def test_a_frame_goes_there_and_back_whatever_the_peer_prints(folder: Path, frame: Path) -> None:
    with PeerProcess("honest", sys.executable, folder) as peer:
        assert set(peer.versions()) == {"json"}
        assert peer.load(Path("anywhere"), TINY.model, SETTINGS) >= 0
        for _ in range(3):
            made = peer.frame(frame)
            assert np.array_equal(made.actions, np.full((6, 32), 1.5, np.float32))
            assert made.frame_ms > 0


def test_an_environment_without_the_peer_is_named(folder: Path) -> None:
    said = "lacks no_such_package_anywhere; install it there, or name another with --peer-python"
    with (
        PeerProcess("absent", sys.executable, folder) as peer,
        pytest.raises(PeerError, match=said),
    ):
        peer.versions()


def test_a_peer_that_dies_says_why(folder: Path) -> None:
    with (
        PeerProcess("broken", sys.executable, folder) as peer,
        pytest.raises(PeerError, match=r"ended with status 1(.|\n)*these weights are not mine"),
    ):
        peer.load(Path("anywhere"), TINY.model, SETTINGS)


def test_a_python_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(PeerError, match="cannot start /no/such/python"):
        PeerProcess("honest", "/no/such/python", folder)


def test_choices_want_a_known_peer_and_its_python() -> None:
    assert peer_names() == ["lerobot", "openpi"]
    chosen = peer_choices("lerobot, lerobot:reduce-overhead", ["lerobot=/bin/python=3"])
    assert [(c.label, c.python) for c in chosen] == [
        ("lerobot", "/bin/python=3"),
        ("lerobot:reduce-overhead", "/bin/python=3"),
    ]
    with pytest.raises(ValueError, match=r"unknown peer 'jax'; choose one of: lerobot, openpi"):
        peer_choices("jax", [])
    with pytest.raises(ValueError, match="--peer-python openpi=/path"):
        peer_choices("openpi", ["lerobot=/bin/python"])
    with pytest.raises(ValueError, match="--against wants one or more"):
        peer_choices(" , ", [])


def test_backends_and_peers_take_turns_in_one_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = write_toy_checkpoint(tmp_path / "tiny"), tmp_path / "compare.json"
    command = ["bench", "compare", "--checkpoint", str(checkpoint), "--device", "cpu"]
    command += ["--against", "honest:some-mode", "--peer-python", f"honest={sys.executable}"]
    command += ["--backend", "fused_freq1,pytorch", "--frames", "4", "--json", str(out)]
    assert main(command) == 0
    report = json.loads(out.read_text())
    entrants = {entry["name"]: entry for entry in report["entrants"]}
    assert list(entrants) == ["fused_freq1", "pytorch", "honest:some-mode"]
    assert all(entry["frame_ms"]["count"] == 4 for entry in entrants.values())
    assert entrants["pytorch"]["actions_cosine"] > 0.999999
    assert entrants["honest:some-mode"]["actions_cosine"] < 0.9, "it gives noise"
    assert all(
        entrants[name]["float32"]["flow_cosine"] > 0.999999 for name in ("fused_freq1", "pytorch")
    )
    assert entrants["honest:some-mode"]["float32"]["flow_cosine"] < 0.9
    assert set(report["times_faster"]["pytorch"]) == {"fused_freq1", "honest:some-mode"}
    assert "fused_freq1 is " in capsys.readouterr().out


def test_turns_begin_once_everyone_is_ready_and_the_file_is_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = write_toy_checkpoint(tmp_path / "tiny"), tmp_path / "compare.json"
    go, ready = tmp_path / "go", tmp_path / "go.ready"
    ready.touch()  # of an earlier run
    waited: list[bool] = []

    def sleep(seconds: float) -> None:
        waited.append(ready.exists())
        go.touch()

    monkeypatch.setattr(bench_compare, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(bench_compare, "opened_entrants", forgets(ready, bench_compare))
    command = ["bench", "compare", "--checkpoint", str(checkpoint), "--device", "cpu"]
    command += ["--against", "honest", "--peer-python", f"honest={sys.executable}"]
    command += ["--frames", "2", "--begin-when", str(go), "--json", str(out)]
    assert main(command) == 0
    assert waited == [True]
    assert len(json.loads(out.read_text())["entrants"]) == 2


def forgets(ready: Path, module: ModuleType) -> Callable[..., Any]:
    """`opened_entrants`, which checks that the file of an earlier run is gone by then."""
    opened_entrants: Callable[..., Any] = module.opened_entrants

    def checked(*given: Any) -> Any:
        assert not ready.exists(), "left by an earlier run"
        return opened_entrants(*given)

    return checked


def test_a_peer_that_cannot_run_ends_the_command_with_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_toy_checkpoint(tmp_path / "tiny")
    command = ["bench", "compare", "--checkpoint", str(checkpoint), "--device", "cpu"]
    command += ["--against", "absent", "--peer-python", f"absent={sys.executable}"]
    assert main(command) == 2
    assert "lacks no_such_package_anywhere" in capsys.readouterr().err
