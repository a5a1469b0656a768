"""Troubleshooting from `thor-policy doctor`: its own judgements of machines with one fault each.

Nothing of the wording is repeated here: made-up facts go in, and what the doctor would print
comes out. A test holds that every note and every fault that the doctor knows is among them.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece

from thor_policy_ros.backends.engine_cache import EngineKey
from thor_policy_ros.evaluation.checks import FINE, WRONG, Check
from thor_policy_ros.evaluation.file_checks import check_engines, check_files
from thor_policy_ros.evaluation.graph_checks import check_graph, no_graph
from thor_policy_ros.evaluation.machine_checks import check_backend, check_machine
from thor_policy_ros.evaluation.machine_facts import (
    ClockFacts,
    GpuFacts,
    JetsonFacts,
    MachineFacts,
)

DEMO = Path(__file__).resolve().parents[1] / "checkpoints" / "demo"
GPU = GpuFacts("NVIDIA Thor", (11, 0), 122.0, 110.0)
MACHINE = MachineFacts(
    system="Linux 6.8, aarch64",
    python="3.12.3",
    memory_gib=122.0,
    available_gib=100.0,
    torch="2.13.0+cu130",
    torch_cuda="13.0",
    driver="580.00",
    device_files=("/dev/nvidia0",),
    gpus=(GPU,),
    flavours={"tensorrt": "10.13.3"},
    governors=("performance",),
    jetson=JetsonFacts("R38", "MAXN", True),
    clock=ClockFacts(True, 300),
)
INPUT: dict[str, Any] = {
    "name": "camera base",
    "topic": "/camera_base/image_raw",
    "kind": "sensor_msgs/msg/Image",
    "reliability": "best_effort",
    "publishers": ["/driver (sensor_msgs/msg/Image, best_effort)"],
    "other_types": [],
    "mismatches": [],
    "received": 90,
    "rate_hz": 30.0,
    "age_s": 0.01,
    "zero_stamps": 0,
}
GRAPH: dict[str, Any] = {
    "distribution": "jazzy",
    "rmw": "rmw_fastrtps_cpp",
    "domain_id": "0",
    "discovery_range": "",
    "transports": "",
    "nodes": ["/driver", "/policy_node"],
    "policy_node": "/policy_node",
    "parameters_of": "/policy_node",
    "parameters": {"max_input_age_s": 0.2, "control_rate_hz": 10.0},
    "inputs": [INPUT],
    "mismatches": [],
}
GRAPH_FAULTS: tuple[dict[str, Any], ...] = (
    {"distribution": ""},
    {"transports": "LARGE_DATA", "discovery_range": "LOCALHOST"},
    {"policy_node": "", "nodes": [], "parameters_of": "policy.yaml"},
    {"mismatches": ["/driver, /camera_base/image_raw to /policy_node: reliability"]},
)
INPUT_FAULTS: tuple[dict[str, Any], ...] = (
    {"publishers": [], "received": 0},
    {"received": 0},
    {"other_types": ["/driver publishes sensor_msgs/msg/CompressedImage"]},
    {"mismatches": ["/driver offers best_effort, /policy_node wants reliable"]},
    {"zero_stamps": 90},
    {"age_s": -1.0},
    {"age_s": 0.5},
    {"rate_hz": 5.0},
)
MACHINE_FAULTS: tuple[dict[str, Any], ...] = (
    {"python": "3.9.2"},
    {"gpus": (), "torch": "2.13.0+cpu", "torch_cuda": ""},
    {"gpus": ()},
    {"gpus": (), "device_files": ()},
    {"gpus": (replace(GPU, free_gib=2.0),)},
    {"gpus": (GpuFacts("NVIDIA Orin", (8, 7), 60.0, 50.0),)},
    {"flavours": {}},
    {"available_gib": 0.5},
    {"available_gib": 5.0},
    {"jetson": JetsonFacts("R38", "", True)},
    {"jetson": JetsonFacts("R38", "120W", True)},
    {"jetson": JetsonFacts("R38", "MAXN", None)},
    {"jetson": JetsonFacts("R38", "MAXN", False)},
    {"governors": ("schedutil",)},
    {"clock": ClockFacts(None, None)},
    {"clock": ClockFacts(False, None)},
    {"clock": ClockFacts(True, 20_000)},
)


def table() -> str:
    """What each check says when something is not in order, and what to type."""
    lines = ["| check | it says | what to type or change |", "|---|---|---|"]
    for check in faults():
        subject = f"**{check.subject}**" if check.level == WRONG else check.subject
        lines.append(f"| {subject} | {_cell(check.says)} | {_cell(check.do)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """As printed, not as Markdown."""
    return f"`` {text} ``".replace("|", "\\|") if text else ""


def faults() -> list[Check]:
    """Every line of the doctor that is not fine, in its order, each once."""
    return list(dict.fromkeys(check for check in _judged() if check.level != FINE))


def _judged() -> Iterator[Check]:
    yield no_graph("rclpy cannot be imported: ROS 2 is not installed, or not sourced")
    for change in GRAPH_FAULTS:
        yield from check_graph({**GRAPH, **change})
    for change in INPUT_FAULTS:
        yield from check_graph({**GRAPH, "inputs": [{**INPUT, **change}]})
    for change in MACHINE_FAULTS:
        yield from check_machine(replace(MACHINE, **change), needs_gpu=True)
    yield check_backend("tensorrt", ["a CUDA device"], ["pytorch", "pytorch_pipelined"])
    yield from _files()


def _files() -> Iterator[Check]:
    """Checkpoints, tokenizers and engines; names of this machine's folders are taken out."""
    yield from check_files(None, "", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        broken = folder / "tokenizer.model"
        broken.write_bytes(b"no sentencepiece model")
        small, large = _tokenizer(folder, 40), _tokenizer(folder, 900)
        for path, tokenizer in (
            (folder / "empty", None), (DEMO, broken), (DEMO, small), (DEMO, large),
            (_bare(folder), None), (_changed(folder), None),
        ):  # fmt: skip
            for check in check_files(path, "", tokenizer):
                says, do = (text.replace(name, "FOLDER") for text in (check.says, check.do))
                yield replace(check, says=says, do=do)
    engine = EngineKey("c", "tensorrt", "10.13", "any", "sm_90", "bf16", "vision", "s", "l", "d")
    cache = Path("engines")
    yield check_engines(cache, [engine], [], "tensorrt", "sm_110")
    yield check_engines(cache, [engine], ["engines/vision.engine is cut off"], "tensorrt", "sm_110")


def _tokenizer(folder: Path, pieces: int) -> Path:
    """A sentencepiece model of so many pieces, a character each."""
    model = io.BytesIO()
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + pieces - 3)))  # beside <unk>, <s>, </s>
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([letters]), model_writer=model, model_type="char",
        vocab_size=pieces, character_coverage=1.0, add_dummy_prefix=False,
        normalization_rule_name="identity", minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    path = folder / f"{pieces}_pieces.model"
    path.write_bytes(model.getvalue())
    return path


def _changed(folder: Path) -> Path:
    """The demo with another config than its checksums say."""
    changed = Path(shutil.copytree(DEMO, folder / "changed"))
    with (changed / "config.json").open("a") as file:
        file.write(" ")
    return changed


def _bare(folder: Path) -> Path:
    """The demo's weights alone, without statistics and tokenizer."""
    bare = folder / "weights_alone"
    bare.mkdir()
    for name in ("model.safetensors", "config.json"):
        (bare / name).symlink_to(DEMO / name)
    return bare
