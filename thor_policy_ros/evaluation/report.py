"""Make a self-contained HTML page of a recording: was the run well, and where did it hurt.

From a bag of `thor-policy record`, also one that a crash cut short. Latencies, deadlines, reuse,
diagnostics, safety, backends, and the images at the worst moments. Wants no ROS. The page has no
script and fetches nothing.
"""

from __future__ import annotations

import argparse
import datetime
import math
from pathlib import Path
from typing import Any

import thor_policy_ros
from thor_policy_ros.evaluation.bag import Bag, BagError
from thor_policy_ros.evaluation.report_frames import Frames
from thor_policy_ros.evaluation.report_health import Health
from thor_policy_ros.evaluation.report_moments import add_images, worst_moments
from thor_policy_ros.evaluation.report_page import Report, page
from thor_policy_ros.evaluation.report_verdict import WORDS, verdict_of
from thor_policy_ros.model.whole_file import write_whole

LEFT_OUT = 0.02
"""Messages dropped by the recorder beyond this share are worth a word in the verdict."""
SETTINGS = (
    "backend", "kv_reuse_freq", "reuse_mode", "num_denoise_steps", "control_rate_hz", "deadline_ms",
    "chunk_blending", "max_input_age_s", "cameras", "device", "dtype", "cpu_threads", "seed",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy report`."""
    parser.add_argument("bag", type=Path, help="folder that `thor-policy record` made")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: BAG.html")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, prints the verdict; 0 if one was made."""
    out = arguments.out or arguments.bag.absolute().with_suffix(".html")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file with --out FILE.html")
    with Bag(arguments.bag, allow_cut=True) as bag:
        report = report_of(bag)
    text = page(report)
    write_whole(out, text)
    print(f"{WORDS[report.verdict.level]}: {report.verdict.headline}")
    print(f"{out}: {len(text) / 1e6:.1f} MB, {len(report.frames.rows)} frames")
    return 0


def report_of(bag: Bag) -> Report:
    """Everything that the page shows. Raises BagError for a bag without a single message."""
    if not bag.message_count:
        raise BagError(
            f"{bag.path} holds no message: nothing was published, or the recording was cut short "
            "before its first megabyte was written"
        )
    start_s, duration_s = bag.start_s, bag.duration_s
    frames = Frames(bag.frames(), start_s, duration_s)
    health = Health.of(bag.diagnostics(), start_s)
    moments = worst_moments(frames)
    add_images(bag, moments)
    begun = datetime.datetime.fromtimestamp(start_s, datetime.timezone.utc)
    title = f"{bag.path.absolute().name}: {bag.node} on {begun:%Y-%m-%d %H:%M} UTC"
    verdict = verdict_of(frames, health, bag.parameters, _notes(bag))
    return Report(title, verdict, frames, health, moments, _facts(bag, frames, health),
                  bag.parameters)  # fmt: skip


def _notes(bag: Bag) -> tuple[str, ...]:
    """What is wrong with the recording itself."""
    found = []
    if bag.cut:
        found.append("the recording was cut short; what came before is shown")
    dropped = {t: int(n) for t, n in (bag.facts.get("dropped") or {}).items() if n}
    lost = sum(dropped.values())
    if lost > LEFT_OUT * (lost + bag.message_count):
        found.append(f"the recorder could not keep up and dropped {lost} messages")
    return tuple(found)


def _facts(bag: Bag, frames: Frames, health: Health) -> list[tuple[str, str]]:
    """Machine, engine, device, settings, versions; what is not known is left out."""
    backend, recorder = health.last_values("backend"), bag.facts.get("recorder") or {}
    cores = recorder.get("cpu_count")
    dropped = sum(int(n) for n in (bag.facts.get("dropped") or {}).values())
    found: list[tuple[str, Any]] = [
        ("bag", f"{bag.path.name}, {frames.duration_s:.1f} s, {bag.message_count} messages"),
        ("dropped by the recorder", dropped or ""),
        ("recording", f"cut short: {bag.cut}" if bag.cut else "complete"),
        ("robot or computer", ", ".join(sorted(health.hardware))),
        ("recorded on", recorder.get("host")),
        ("system", recorder.get("system")),
        ("CPU cores", cores),
        ("Python, ROS", _both(recorder.get("python"), recorder.get("ros_distro"))),
        ("middleware", recorder.get("rmw")),
        ("package", bag.facts.get("version")),
        ("torch, CUDA", _both(backend.get("torch_version"), backend.get("cuda_version"))),
        ("checkpoint", bag.parameters.get("checkpoint")),
        ("policy_config", bag.parameters.get("policy_config")),
        *((name, backend[name]) for name in sorted(backend) if name.startswith("gpu_")),
        ("instructions", "; ".join(_instructions(frames))),
        *((name, _setting(bag.parameters.get(name))) for name in SETTINGS),
        ("page made by", f"thor-policy {thor_policy_ros.__version__}"),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def _instructions(frames: Frames, shown: int = 12) -> list[str]:
    words = list(dict.fromkeys(row.instruction for row in frames.rows))
    more = [f"and {len(words) - shown} more"] if len(words) > shown else []
    return [*words[:shown], *more]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return "" if value is None else str(value)


def _both(one: Any, other: Any) -> str:
    return ", ".join(str(part) for part in (one, other) if part)
