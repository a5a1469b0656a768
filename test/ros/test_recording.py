"""What the real policy node did is recorded, and computed again from the bag."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from support.fake_robot import FakeRobot
from support.ros_probe import Probe

from thor_policy_ros.evaluation.bag import Bag, BagError
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros.node_processes import NodeCommand

pytestmark = pytest.mark.node

CONFIG = Path(__file__).parents[2] / "config" / "demo.yaml"
NODE = "policy_node"
RECORD = [sys.executable, "-m", "thor_policy_ros.evaluation", "record", "--keep-free-mb", "1"]
Recording = Callable[..., Path]


class MovingRobot(FakeRobot):
    """Every image differs from the one before."""

    def publish(self) -> None:
        self._image = np.random.default_rng().integers(0, 255, (32, 32, 3), np.uint8)
        super().publish()


def record(probe: Probe, bag: Path, *options: str, **settings: object) -> tuple[int, str, str]:
    """Runs the recorder while the probe publishes; its status, output and errors."""
    process = subprocess.Popen(
        [*RECORD, "-o", str(bag), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,  # type: ignore[arg-type]
    )
    try:
        probe.wait(lambda: process.poll() is not None, "the end of the recording", 60.0)
    finally:
        process.kill()
        output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.fixture
def node(probe: Probe, arm_checkpoint: Path) -> Iterator[Callable[..., None]]:
    """Starts the policy node, and waits for its chunks."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(**parameters: object) -> None:
        given = {"checkpoint": arm_checkpoint, "reuse_mode": "fixed", **parameters}
        words = tuple((name, str(value)) for name, value in given.items())
        processes.append(subprocess.Popen(NodeCommand(NODE, (CONFIG,), words).argv()))
        chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
        probe.wait(lambda: len(chunks) > 2, "chunks")

    yield start
    for process in processes:
        process.kill()
        process.wait()


def replayed(
    bag: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    status = main(["replay", str(bag), "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def test_the_same_backend_repeats_a_recording_and_others_do_within_bounds(
    probe: Probe,
    node: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    MovingRobot(probe)
    node(kv_reuse_freq=2)
    bag = tmp_path / "bag"
    status, output, errors = record(probe, bag, "--seconds", "4")
    assert status == 0, errors
    summary = json.loads(output.splitlines()[-1])
    assert summary["failure"] == "" and summary["dropped"] == {}
    assert summary["messages"]["/policy_node/action_chunk"] > 10

    with Reader(bag) as reader:  # of rosbags: files, index and definitions fit together
        counts = {c.topic: c.msgcount for c in reader.connections if c.msgcount}
    assert counts == summary["messages"]
    assert (bag / "bag.mcap").read_bytes()[:5] == b"\x89MCAP"

    status, same = replayed(bag, capsys)
    # Often bit for bit; a library may sum otherwise where memory is aligned otherwise.
    assert (status, same["ok"]) == (0, True)
    assert max(joint["max_abs_difference"] for joint in same["joints"].values()) < 1e-5
    assert same["compared"] > 10 and same["recorded_backends"] == ["pytorch"]
    assert same["latency_ms"]["denoise"]["recorded"][0] > 0
    with Bag(bag) as opened:
        decisions = [frame.decision.split(":")[0] for frame in opened.frames()]
    assert "reuse" in decisions and "refill" in decisions

    for backend in ("pytorch_pipelined", "fused"):
        status, other = replayed(bag, capsys, "--backend", backend)
        assert (status, other["ok"], other["compared"]) == (0, True, same["compared"])
        assert other["cosine"]["min"] > 0.9999

    status, noisy = replayed(bag, capsys, "--seed", "5")
    assert (status, noisy["ok"]) == (1, False)
    assert replayed(bag, capsys, "--seed", "5")[1]["joints"] == noisy["joints"]
    assert replayed(bag, capsys, "--seed", "5", "--tolerance", "10")[0] == 0
    truncated_bags_are_refused(bag, tmp_path, capsys)


def truncated_bags_are_refused(bag: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (bag / "bag.mcap").read_bytes()
    for share in (0.0, 0.3, 0.9):
        cut = folder / f"cut_{share}"
        shutil.copytree(bag, cut)
        (cut / "bag.mcap").write_bytes(whole[: int(len(whole) * share)])
        assert main(["replay", str(cut)]) == 2
        assert "cannot be read, it may be truncated" in capsys.readouterr().err
    (cut / "metadata.yaml").unlink()
    with pytest.raises(BagError, match="recording did not end well"):
        Bag(cut)


def test_a_pipelined_recording_is_repeated_from_the_observation_before(
    probe: Probe,
    node: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    MovingRobot(probe)
    node(backend="pytorch_pipelined")
    status, _, errors = record(probe, tmp_path / "bag", "--seconds", "3")
    assert status == 0, errors
    status, same = replayed(tmp_path / "bag", capsys)
    assert (status, same["ok"]) == (0, True)
    assert same["compared"] > 10
    status, plain = replayed(tmp_path / "bag", capsys, "--backend", "pytorch")
    assert (status, plain["ok"]) == (0, True)


def test_what_is_missing_is_named(probe: Probe, node: Callable[..., None], tmp_path: Path) -> None:
    status, _, errors = record(probe, tmp_path / "bag", "--seconds", "1")
    assert status == 2
    assert "no policy node answers as /policy_node" in errors
    robot = FakeRobot(probe)
    node()
    status, _, errors = record(
        probe, tmp_path / "bag", "--seconds", "1", "--keep-free-mb", "100000000"
    )
    assert status == 2 and "MB are free on its disk" in errors
    probe.destroy_publisher(robot._cameras.pop("wrist"))
    status, _, errors = record(probe, tmp_path / "bag", "--seconds", "1", "--wait", "6")
    assert status == 2
    assert "nobody publishes /camera_wrist/image_raw" in errors
    assert not (tmp_path / "bag").exists()


def test_a_shell_that_has_not_sourced_ros_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert main(["record", "-o", str(tmp_path / "bag"), "--seconds", "1"]) == 2
    assert "source .venv/setup.bash" in capsys.readouterr().err


def test_a_disk_that_fills_up_ends_the_recording_with_the_reason(
    probe: Probe, node: Callable[..., None], tmp_path: Path
) -> None:
    """The system refuses to let the file grow, as a full disk does."""
    MovingRobot(probe)
    node()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    bag = tmp_path / "bag"
    status, _, errors = record(probe, bag, "--seconds", "30", preexec_fn=limit)
    assert status == 1
    assert "File too large; the bag has no index and cannot be replayed" in errors
    assert "Traceback" not in errors
    with pytest.raises(BagError, match="recording did not end well"):
        Bag(bag)
