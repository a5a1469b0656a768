"""Measure a checkpoint's activations, and store the FP8 scales that `fp8_mlp`,
`fused_fp8` and `tensorrt_fp8` use.

Runs the policy densely on recorded observations (--recorded), or in closed loop on the simulated
arm, keeps a high percentile over the frames of each layer's largest activation, and writes it
beside the weights under their hash: other weights, other scales. A GPU with FP8 is not needed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from thor_policy_ros.backends.fp8_calibration import ActivationRanges
from thor_policy_ros.backends.fp8_scales import Fp8Scales, write_scales
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.evaluation.recorded_observations import read_observations
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

FIRST_SCENE = 2_000_000
"""Scenes of their own: neither those of rollouts nor those of training."""


@dataclass(frozen=True)
class Frames:
    """What to calibrate on. recorded: a file of observations; None runs `episodes` simulated."""

    recorded: Path | None
    episodes: int

    @property
    def source(self) -> str:
        if self.recorded:
            return f"recorded: {self.recorded.name}"
        return f"simulated arm, {self.episodes} episodes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy calibrate`."""
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"))
    parser.add_argument("--config", help="named policy, where the checkpoint does not say")
    parser.add_argument("--tokenizer", type=Path, help="where the checkpoint has none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument(
        "--recorded", type=Path, metavar="FILE",
        help="safetensors: image.SLOT u8[N,H,W,3], state f32[N,S], prompts in the metadata",
    )  # fmt: skip
    parser.add_argument("--episodes", type=int, default=5, help="simulated, default %(default)s")
    parser.add_argument("--percentile", type=float, default=99.9, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, write the file, print what was found."""
    if not 0 < arguments.percentile <= 100:
        raise ValueError(f"--percentile wants 0 to 100, got {arguments.percentile}")
    if arguments.episodes < 1:
        raise ValueError(f"--episodes wants at least 1, got {arguments.episodes}")
    frames = Frames(arguments.recorded, arguments.episodes)
    with UnifiedPolicy(
        arguments.checkpoint,
        config=arguments.config,
        tokenizer=arguments.tokenizer,
        device=arguments.device,
    ) as policy:
        scales = calibrate(policy, arguments.checkpoint, frames, arguments.percentile)
    path = write_scales(arguments.checkpoint, scales)
    Console().print(table_of(scales))
    print(f"{scales.frames} frames ({scales.source}); wrote {path}")
    return 0


def calibrate(
    policy: UnifiedPolicy, checkpoint: Path, frames: Frames, percentile: float
) -> Fp8Scales:
    """Scales of a policy loaded in backend pytorch. ValueError for frames that do not fit it."""
    assert isinstance(policy.backend, PyTorchBackend)
    ranges = ActivationRanges(policy.backend.model)
    with ranges.recording():
        if frames.recorded is None:
            _simulate(policy, frames.episodes)
        else:
            for observation in read_observations(frames.recorded):
                policy.backend.prefill(policy.preprocess(observation), observation.stamp_s)
    digest = checkpoint_hash(checkpoint)
    found = ranges.layers(percentile), ranges.inputs(percentile)
    return Fp8Scales(digest, percentile, ranges.frames, frames.source, *found)


def table_of(scales: Fp8Scales) -> Table:
    """By layer: what is kept of the largest activations, and whether the layer stays bfloat16."""
    kept = f"p{scales.percentile:g}"
    table = Table("layer", f"input {kept}", "largest", f"hidden {kept}", "largest", "gate and up")
    for index, layer in enumerate(scales.layers):
        figures = (layer.input.kept, layer.input.largest, layer.hidden.kept, layer.hidden.largest)
        kind = "bfloat16: overflows" if layer.input.overflows else "FP8"
        table.add_row(str(index), *(f"{value:.4g}" for value in figures), kind)
    return table


def _simulate(policy: UnifiedPolicy, episodes: int) -> None:
    """Closed loop, so that the activations are those the policy meets at work."""
    # The simulator wants mujoco; a robot that calibrates on recorded observations has none.
    from thor_policy_ros.evaluation.closed_loop import Conditions, run_episode
    from thor_policy_ros.sim.arm_env import TabletopArm

    env = TabletopArm()
    env.reset(FIRST_SCENE, Conditions().speed_m_s)
    slots = tuple(env.images())
    if set(slots) != set(policy.config.camera_slots):
        raise ValueError(
            f"checkpoint {policy.config.name!r} has cameras {policy.config.camera_slots}, the"
            f" simulated arm {slots}; name recorded observations with --recorded FILE"
        )
    runner = PolicyRunner(policy, env.limits, time.perf_counter, joint_names=env.joint_names)
    for episode in range(episodes):
        run_episode(env, runner, Conditions(), FIRST_SCENE + episode)
