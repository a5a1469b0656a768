"""The terminal dashboard: what it counts, how it looks, and that it hears real nodes."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rich.console import Console
from support.ros_probe import RELIABLE, Probe

from thor_policy_ros.evaluation import monitor as command
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros.frame_loop import STAGES
from thor_policy_ros.ros.monitor import parser
from thor_policy_ros.ros.monitor_record import ERROR, OK, WARN, Frame, MonitorRecord, Status
from thor_policy_ros.ros.monitor_view import ASCII_BLOCKS, BLOCKS, Screen, spark

NODE = "arm/policy_node"
HOPS_MS = {
    "camera_transport": 3.0,
    "camera_decode": 0.5,
    "camera_wait": 21.0,
    "chunk_transport": 1.5,
    "chunk_handover": 5.0,
    "observation_to_command": 62.0,
}


def frame(total_ms: float = 20.0, decision: str = "refill: age", late: bool = False) -> Frame:
    stages = {**dict.fromkeys(STAGES, 2.0), "total": total_ms}
    return Frame("pytorch", stages, decision, 100.0, late, 3, 1, HOPS_MS)


def status(level: int, message: str, at_s: float, **values: str) -> Status:
    return Status(level, message, values, at_s)


def shown(record: MonitorRecord, now_s: float = 10.0, width: int = 80) -> str:
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(Screen(record, "/arm/policy_node", now_s, lambda s: f"t={s:.0f}"))
    return captured.get()


def test_frames_are_counted_by_decision_and_deadline() -> None:
    record = MonitorRecord()
    for at in range(50):
        record.add_frame(frame(decision="reuse" if at % 2 else "refill: age (5)"), at * 0.1)
    record.add_frame(frame(900.0, late=True), 5.0)
    assert record.decisions == {"refill": 26, "reuse": 25}
    assert (record.frames, record.missed_deadlines) == (51, 1)
    assert record.frame_rate.rate_hz(5.0) == pytest.approx(10.0)


def test_a_fault_is_a_change_of_level() -> None:
    record = MonitorRecord()
    for at, level in enumerate((OK, OK, WARN, WARN, ERROR, OK)):
        record.add_status(f"{NODE}: inputs", status(level, f"m{at}", at))
    assert [(f.at_s, f.level, f.message) for f in record.faults] == [
        (2, WARN, "m2"),
        (4, ERROR, "m4"),
        (5, OK, "m5"),
    ]


def test_the_screen_says_everything_and_keeps_to_its_width() -> None:
    record = MonitorRecord()
    record.add_status(f"{NODE}: lifecycle", status(OK, "active", 9.0, state="active"))
    record.add_status(f"{NODE}: instruction", status(OK, "followed", 9.0, text="pick up the cube"))
    record.add_status(f"{NODE}: camera wrist", status(ERROR, "stale, " + "very " * 30, 9.5))
    record.add_status(f"{NODE}: inference", status(OK, "chunks on time", 2.0))
    for at in range(20):
        record.add_frame(frame(10.0 + at), at * 0.5)
        record.add_chunk(at * 0.5)
    for width in (60, 80, 140):
        text = shown(record, width=width)
        assert max(map(len, text.splitlines())) <= width
        for wanted in ("active", "backend pytorch", "pick up the cube", "max 29.0 ms", "refill 20"):
            assert wanted in text, (wanted, width)
        assert re.search(r"ERROR +camera wrist", text)
        assert re.search(r"SILENT +inference +for 8 s", text)
        assert "ok lifecycle, instruction" in text
        assert text.index("camera wrist") < text.index("denoise"), "troubles come first"
        assert "t=10" in text, "the fault, with its time"


def test_the_way_between_the_hosts_is_told_hop_by_hop() -> None:
    record = MonitorRecord()
    record.add_frame(frame(20.0), 1.0)
    unknown = Frame("pytorch", frame().stages_ms, "reuse", 100.0, False, 0, 0,
                    dict.fromkeys(HOPS_MS, math.nan))  # fmt: skip
    record.add_frame(unknown, 1.1)
    text = " ".join(shown(record, width=140).split())
    assert "camera 3.0 decode 0.5 wait 21.0 frame 20.0 chunk 1.5 taken 5.0 all 62 ms" in text
    silent = MonitorRecord()
    silent.add_frame(unknown, 1.0)
    assert "way between the hosts: not known" in shown(silent)


def test_it_fits_a_terminal_of_24_rows_in_ordinary_times() -> None:
    record = MonitorRecord()
    for task in ("lifecycle", "backend", "inputs", "camera base", "camera wrist", "state", "reuse"):
        record.add_status(f"{NODE}: {task}", status(OK, "fine", 9.0))
    for at in range(20):
        record.add_status(f"{NODE}: inference", status(at % 2, f"m{at}", 9.0))
        record.add_frame(frame(), at * 0.5)
    console = Console(width=80, height=24, force_terminal=True, no_color=True)
    with console.capture() as captured:
        console.print(Screen(record, "/arm/policy_node", 10.0, str))
    assert len(captured.get().splitlines()) <= 24


def test_before_anything_is_heard_the_screen_says_what_to_compare() -> None:
    assert "ROS_DOMAIN_ID" in shown(MonitorRecord())


def test_a_sparkline_goes_from_nothing_to_the_highest() -> None:
    assert spark([0, 1, 4, 8]) == "▁▁▄█"
    assert spark([0, 4, 8], ASCII_BLOCKS) == "_=@".replace("=", ASCII_BLOCKS[3])
    assert spark([math.nan, 1.0]) == "?█" and spark([]) == ""
    assert len(set(BLOCKS)) == len(set(ASCII_BLOCKS)) == 8


def test_both_command_lines_have_the_same_options() -> None:
    import argparse

    outer = argparse.ArgumentParser()
    command.add_arguments(outer)
    given = ["--node", "/a/p", "--once", "--save", "x.svg", "--width", "90", "--no-colour"]
    inner = parser().parse_args(command.options_of(outer.parse_args(given)))
    assert (inner.node, inner.once, inner.save) == ("/a/p", True, Path("x.svg"))
    assert (inner.width, inner.no_colour, inner.seconds) == (90, True, 3.0)
    assert vars(outer.parse_args([])).keys() == vars(parser().parse_args([])).keys()


def publish(probe: Probe) -> None:
    diagnostics = probe.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
    frames = probe.create_publisher(FrameLatency, f"/{NODE}/frame_latency", RELIABLE)
    chunks = probe.create_publisher(ActionChunk, f"/{NODE}/action_chunk", RELIABLE)

    def tick() -> None:
        state = [KeyValue(key="state", value="active")]
        ours = DiagnosticStatus(name=f"{NODE}: lifecycle", message="active", values=state)
        bad = DiagnosticStatus(name=f"{NODE}: state", message="too old", level=b"\x02")
        foreign = DiagnosticStatus(name="other: thing", message="not ours")
        diagnostics.publish(DiagnosticArray(status=[ours, bad, foreign]))
        frames.publish(FrameLatency(backend="pytorch", total_ms=12.5, decision="refill: first"))
        chunks.publish(ActionChunk())

    probe.create_timer(0.1, tick)


def run(probe: Probe, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", command.MODULE, "--node", NODE, *options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    probe.wait(lambda: process.poll() is not None, "the snapshot")
    return process


@pytest.mark.node
@pytest.mark.parametrize("suffix", ["svg", "txt"])
def test_one_snapshot_of_a_running_node(probe: Probe, tmp_path: Path, suffix: str) -> None:
    publish(probe)
    saved = tmp_path / f"shot.{suffix}"
    process = run(probe, "--once", "--seconds", "2", "--save", str(saved), "--width", "90")
    assert process.returncode == 0 and process.stdout is not None
    text = process.stdout.read()
    for wanted in ("/arm/policy_node  active", "backend pytorch", "refill"):
        assert wanted in text, text
    assert re.search(r"ERROR +state +too old", text)
    assert "12.5" in text and "not ours" not in text
    assert "policy_node" in saved.read_text() and "cdnjs" not in saved.read_text()


@pytest.mark.node
def test_in_a_pipe_it_follows_until_interrupted(probe: Probe) -> None:
    import signal

    publish(probe)
    argv = [sys.executable, "-m", command.MODULE, "--node", NODE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        probe.spin_for(6.0)
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()
        assert process.wait(20) == 0
    assert text.count("/arm/policy_node") >= 2


def test_without_ros_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["monitor"]) == 2
    assert "setup.bash" in capsys.readouterr().err


def test_nothing_heard_is_a_failure_that_says_where_to_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from thor_policy_ros.ros import monitor

    class Silent:
        title, record = "/nobody", MonitorRecord()

    class Spinner:
        def spin_once(self, timeout_sec: float) -> None: ...

    monkeypatch.setattr(monitor, "PATIENCE_S", 0.1)
    options: Any = parser().parse_args(["--once", "--seconds", "0.1"])
    interrupted = threading.Event()
    rest: Any = (Silent(), Spinner(), Console(), options, interrupted)
    assert monitor._once(*rest) == 1
    assert "ROS_DOMAIN_ID" in capsys.readouterr().err
    interrupted.set()
    assert monitor._once(*rest) == 1
    assert not capsys.readouterr().err, "who interrupts it knows why"
