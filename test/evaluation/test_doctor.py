"""`thor-policy doctor`: what each fact is judged to mean, and what is to be typed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from thor_policy_ros.backends.engine_cache import EngineCache, EngineKey, read_key
from thor_policy_ros.backends.registry import BACKENDS, availability
from thor_policy_ros.evaluation import doctor
from thor_policy_ros.evaluation.checks import FINE, NOTE, WRONG, Check, exit_status
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.file_checks import check_engines, check_files, read_cache
from thor_policy_ros.evaluation.graph_checks import check_graph
from thor_policy_ros.evaluation.machine_checks import check_backend, check_machine
from thor_policy_ros.evaluation.machine_facts import (
    ClockFacts,
    GpuFacts,
    JetsonFacts,
    MachineFacts,
    parse_driver,
    parse_meminfo,
    parse_power_mode,
    read_clock,
    read_gpu_pinned,
    read_jetson,
    read_machine,
)
from tools.guide_checks import GRAPH, INPUT

DEMO = Path(doctor.__file__).resolve().parents[2] / "checkpoints" / "demo"
H200 = GpuFacts("NVIDIA H200", (9, 0), 140.0, 130.0)
MACHINE = MachineFacts(
    system="Linux 6.8, x86_64",
    python="3.12.3",
    memory_gib=128.0,
    available_gib=100.0,
    torch="2.13.0+cu130",
    torch_cuda="13.0",
    driver="580.95.05",
    device_files=("/dev/nvidia0",),
    gpus=(H200,),
    flavours={"tensorrt": "10.13.3"},
    governors=("performance",),
    clock=ClockFacts(True, 300),
)


def by_subject(checks: list[Check]) -> dict[str, Check]:
    return {check.subject: check for check in checks}


def test_a_machine_in_order_is_fine_in_every_line() -> None:
    checks = check_machine(MACHINE, needs_gpu=True)
    assert {check.level for check in checks} == {FINE}
    assert {"gpu", "driver", "cuda", "fp8", "tensorrt", "memory", "clock sync"} <= set(
        by_subject(checks)
    )


@pytest.mark.parametrize(
    ("change", "subject", "level", "word"),
    [
        ({"python": "3.9.2"}, "python", WRONG, "PYTHON=python3.12"),
        ({"gpus": ()}, "gpu", WRONG, "nvidia-smi"),
        ({"gpus": (), "torch_cuda": ""}, "gpu", WRONG, "pip install torch"),
        ({"gpus": (), "device_files": ()}, "gpu", WRONG, "--gpus all"),
        ({"gpus": (replace(H200, capability=(8, 7)),)}, "fp8", NOTE, "tensorrt"),
        ({"gpus": (replace(H200, free_gib=2.0),)}, "gpu memory", NOTE, "nvidia-smi"),
        ({"flavours": {}}, "tensorrt", NOTE, "pip install"),
        ({"available_gib": 0.5}, "memory", WRONG, "ps aux"),
        ({"governors": ("powersave",)}, "cpu clocks", NOTE, "cpupower"),
        ({"clock": ClockFacts(False, None)}, "clock sync", NOTE, "chrony"),
        ({"clock": ClockFacts(True, 20_000)}, "clock sync", NOTE, "chronyc"),
        ({"clock": ClockFacts(None, None)}, "clock sync", NOTE, "timedatectl"),
        ({"jetson": JetsonFacts("R38", "30W", True)}, "power mode", NOTE, "nvpmodel -m 0"),
        ({"jetson": JetsonFacts("R38", "MAXN", False)}, "gpu clocks", NOTE, "jetson_clocks"),
    ],
)
def test_what_is_wrong_says_what_to_type(
    change: dict[str, Any], subject: str, level: str, word: str
) -> None:
    checks = check_machine(replace(MACHINE, **change), needs_gpu=True)
    found = by_subject(checks)[subject]
    assert (found.level, word in found.do) == (level, True), found
    assert exit_status(checks) == (level == WRONG)


def test_a_backend_for_the_cpu_can_do_without_a_gpu() -> None:
    checks = check_machine(replace(MACHINE, gpus=(), device_files=()), needs_gpu=False)
    assert by_subject(checks)["gpu"].level == NOTE
    assert exit_status(checks) == 0


def test_an_engine_that_runs_without_a_gpu_is_not_said_to_want_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: which engines run without one is not seen here")
    able = {spec.engine for name, spec in BACKENDS.items() if not availability(name)}
    assert able and able <= set(doctor.ON_A_CPU)


def test_a_backend_that_cannot_run_names_what_is_missing_and_the_others() -> None:
    found = check_backend("tensorrt", ["a CUDA device"], ["pytorch"])
    assert found.level == WRONG and "a CUDA device" in found.says and "pytorch" in found.do
    assert check_backend("pytorch", (), ()).level == FINE


def test_texts_of_the_system_are_read() -> None:
    memory = "MemTotal:       131072000 kB\nMemAvailable:    1048576 kB\n"
    assert parse_meminfo(memory)["MemAvailable"] == 1.0
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23\nGCC version:"
    assert parse_driver(version) == "580.95.05"
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release Build"
    assert parse_driver(opened) == "580.00"
    assert parse_driver("") == ""
    assert parse_power_mode("NV Power Mode: MAXN\n0\n") == "MAXN"


def test_a_jetson_is_known_by_its_release_and_its_clocks_by_their_bounds(tmp_path: Path) -> None:
    assert read_jetson(tmp_path) == JetsonFacts()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R38 (release)\n")
    assert read_jetson(tmp_path).release == "# R38 (release)"
    assert read_gpu_pinned(tmp_path) is None
    gpu = tmp_path / "sys/class/devfreq/gpu-gpc-0"
    gpu.mkdir(parents=True)
    (gpu / "min_freq").write_text("100\n")
    (gpu / "max_freq").write_text("900\n")
    assert read_gpu_pinned(tmp_path) is False
    (gpu / "min_freq").write_text("900\n")
    assert read_gpu_pinned(tmp_path) is True


def test_this_machine_can_be_read() -> None:
    found = read_machine()
    assert 0 < found.available_gib <= found.memory_gib
    clock = read_clock()
    assert clock.synchronised in (True, False, None)
    assert clock.error_us is None or clock.error_us >= 0


def test_the_files_are_held_to_their_checksums(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    found = by_subject(check_files(folder, "", None))["checksums"]
    assert found.level == WRONG and "model.safetensors: wanted SHA-256" in found.says
    assert found.do.startswith("Copy the checkpoint again")
    (folder / "checksums.json").unlink()
    found = by_subject(check_files(folder, "", None))["checksums"]
    assert found.level == NOTE and f"thor-policy inspect {folder} --write" in found.do


def test_checkpoint_and_tokenizer_are_looked_into(tmp_path: Path) -> None:
    found = by_subject(check_files(DEMO, "", None))
    assert (found["checkpoint"].level, found["tokenizer"].level) == (FINE, FINE)
    assert found["checksums"].level == FINE
    assert "4 files are as checksums.json says" in found["checksums"].says
    assert by_subject(check_files(None, "", None))["checkpoint"].level == NOTE
    assert by_subject(check_files(tmp_path, "", None))["checkpoint"].level == WRONG
    broken = tmp_path / "tokenizer.model"
    broken.write_bytes(b"no sentencepiece")
    assert by_subject(check_files(DEMO, "", broken))["tokenizer"].level == WRONG


def key(capability: str) -> EngineKey:
    return EngineKey("c", "tensorrt", "10.13", "any", capability, "bf16", "vision", "s", "l", "d")


def test_engines_are_counted_for_this_gpu_and_damaged_ones_named(tmp_path: Path) -> None:
    fetched = EngineCache(tmp_path).fetch(key("sm_90"), lambda: b"engine")
    assert read_key(fetched.path) == key("sm_90")
    keys, faults = read_cache(tmp_path)
    assert check_engines(tmp_path, keys, faults, "tensorrt", "sm_90").level == FINE
    other = check_engines(tmp_path, keys, faults, "tensorrt", "sm_110")
    assert other.level == NOTE and "thor-policy build" in other.do
    fetched.path.write_bytes(fetched.path.read_bytes()[:40])
    keys, faults = read_cache(tmp_path)
    damaged = check_engines(tmp_path, keys, faults, "tensorrt", "sm_90")
    assert damaged.level == WRONG and fetched.path.name in damaged.says
    (tmp_path / "empty.engine").write_bytes(b"")
    assert len(read_cache(tmp_path)[1]) == 2


def judged(**change: Any) -> Check:
    return by_subject(check_graph({**GRAPH, "inputs": [{**INPUT, **change}]}))["camera base"]


def test_a_graph_in_order_is_fine() -> None:
    assert {check.level for check in check_graph(GRAPH)} == {FINE}


@pytest.mark.parametrize(
    ("change", "level", "word"),
    [
        ({"other_types": ["/driver publishes x/msg/Y"]}, WRONG, "transport"),
        ({"mismatches": ["/driver: reliability"]}, WRONG, "image_reliability"),
        ({"publishers": [], "received": 0}, WRONG, "topic list"),
        ({"received": 0}, WRONG, "large_images"),
        ({"zero_stamps": 90, "age_s": None}, WRONG, "accept_zero_stamps"),
        ({"age_s": -1.0}, WRONG, "synchronise"),
        ({"age_s": 0.5}, WRONG, "max_input_age_s"),
        ({"rate_hz": 5.0}, NOTE, "control_rate_hz"),
    ],
)
def test_an_input_at_fault_says_what_to_type(change: dict[str, Any], level: str, word: str) -> None:
    found = judged(**change)
    assert (found.level, word in found.do) == (level, True), found


def test_where_nobody_is_up_a_silent_topic_is_no_fault() -> None:
    silent = {**INPUT, "publishers": [], "received": 0}
    checks = check_graph({**GRAPH, "nodes": [], "policy_node": "", "inputs": [silent]})
    assert by_subject(checks)["camera base"].level == NOTE
    assert by_subject(checks)["policy node"].level == NOTE


def test_shut_out_publishers_and_lost_transports_are_named() -> None:
    facts = {**GRAPH, "mismatches": ["/a, /x to /policy_node: reliability"]}
    assert by_subject(check_graph(facts))["qos"].level == WRONG
    facts = {**GRAPH, "transports": "LARGE_DATA", "discovery_range": "LOCALHOST"}
    assert by_subject(check_graph(facts))["rmw"].level == NOTE


def test_the_screen_loses_nothing_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    says = "a long reason " * 12
    doctor.print_checks([Check("camera base", WRONG, says, "type this")], Console(width=80))
    out = capsys.readouterr().out
    assert out.count("reason") == 12 and "-> type this" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "0 fine, 0 to look at, 1 wrong" in out


def test_the_command_gives_json_and_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["doctor", "--no-ros", "--json", "--engine-cache", str(tmp_path)]
    assert main([*common, "--checkpoint", str(DEMO)]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"checkpoint", "gpu", "clock sync", "engines"} <= {one["subject"] for one in checks}
    assert main([*common, "--checkpoint", str(tmp_path)]) == 1
    assert main([*common, "--backend", "no_such"]) == 2


def test_without_rclpy_the_graph_is_wrong_and_the_rest_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert main(["doctor", "--json", "--engine-cache", str(tmp_path)]) == 1
    found = {c["subject"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert "setup.bash" in found["ros"]["do"] and "memory" in found
