"""From nothing to a checkpoint folder of the demo's policy: data, training, export."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.training.demo_tokenizer import build_demo_tokenizer
from thor_policy_ros.training.disturbed_expert import FRAMES_PER_EPISODE
from thor_policy_ros.training.expert_data import ExpertData, generate
from thor_policy_ros.training.export import write_checkpoint
from thor_policy_ros.training.flow_trainer import FlowTrainer, Recipe, Report
from thor_policy_ros.training.frames import split_frames
from thor_policy_ros.training.prompts import PromptTable

EPISODES = 8000
"""Of the expert, for the committed checkpoint."""


def expert_data(
    folder: Path,
    episodes: int,
    seed: int,
    workers: int | None,
    image_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> ExpertData:
    """The frames in `folder`, recorded first if it does not exist.

    A recording that is cut short leaves `folder` absent. ValueError where the folder holds
    another number of episodes than asked for.
    """
    if not folder.is_dir():
        unfinished = folder.with_name(folder.name + ".unfinished")
        generate(unfinished, episodes, seed, workers, image_size, progress)
        unfinished.rename(folder)
    data = ExpertData.load(folder)
    if len(data) != episodes * FRAMES_PER_EPISODE:
        raise ValueError(
            f"{folder} holds {len(data) // FRAMES_PER_EPISODE} episodes, {episodes} are wanted;"
            " name another folder or ask for as many as it has"
        )
    return data


def train_demo(
    config: PolicyConfig,
    recipe: Recipe,
    data: ExpertData,
    device: str,
    out: Path,
    on_report: Callable[[Report], None],
) -> dict[str, Any]:
    """Train, and write the checkpoint into `out`; at every report into `out`/partial.

    Returns recipe, machine and the training curve as JSON data.
    """
    config = replace(config, trained_prefix_rows=recipe.max_prefix_rows)
    # TF32 products on a GPU: their rounding is far below the noise of flow matching.
    torch.set_float32_matmul_precision("high")
    tokenizer = build_demo_tokenizer()
    frames, held_out, stats = split_frames(data, config, device)
    prompts = PromptTable(tokenizer, config.state_dim, config.model.max_token_len, device)
    trainer = FlowTrainer(config, recipe, frames, held_out, prompts)

    def report_and_save(report: Report) -> None:
        write_checkpoint(out / "partial", config, trainer.averaged, stats, tokenizer)
        on_report(report)

    curve = trainer.train(report_and_save)
    write_checkpoint(out, config, trainer.averaged, stats, tokenizer)
    return {
        "recipe": recipe.to_json(),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "torch": torch.__version__,
        "train_seconds": curve[-1].seconds,
        "curve": [report.to_json() for report in curve],
    }
