"""Write a checkpoint in another layout: openpi's, LeRobot's, or merged, which loads fastest.

`merged` holds the parameters packed and in the dtypes that a GPU runs; with --fp8 also the weights
of `fp8_mlp`, quantised. Statistics, tokenizer, config and FP8 scales come along. Nothing is in
memory as a whole: the checkpoint is read and written in blocks. The source is not changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from thor_policy_ros.backends.fp8_scales import read_scales, write_scales
from thor_policy_ros.backends.fp8_stored import store_fp8
from thor_policy_ros.model.checksums import verify_checksums, write_checksums
from thor_policy_ros.model.config import PolicyConfig, to_json
from thor_policy_ros.model.conversion import LAYOUTS, convert_weights, converted_bytes
from thor_policy_ros.model.foreign_config import LEROBOT_NORMALISATIONS
from thor_policy_ros.model.named_configs import CONFIG, load_policy_config
from thor_policy_ros.model.norm_stats import load_norm_stats
from thor_policy_ros.model.norm_stats_files import write_lerobot_stats, write_openpi_stats
from thor_policy_ros.model.tokenizer import find_tokenizer
from thor_policy_ros.model.weight_files import WEIGHTS, remember_hash
from thor_policy_ros.model.whole_file import require_room, whole_folder, write_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy convert`."""
    parser.add_argument("source", type=Path, help="checkpoint folder, in any layout")
    parser.add_argument("destination", type=Path, help="folder to write, new or empty")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="layout of the destination")
    parser.add_argument("--config", help="named policy, where the checkpoint does not say")
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        help="of the weights; default: as they are, and bfloat16 for merged",
    )
    parser.add_argument("--fp8", action="store_true", help="with merged: FP8 weights too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    source, destination, layout = arguments.source, arguments.destination, arguments.to
    config = load_policy_config(source, arguments.config)
    if destination.exists() and any(destination.iterdir()):
        raise ValueError(f"{destination} is not empty; give a new folder")
    if arguments.fp8 and layout != "merged":
        raise ValueError("--fp8 wants --to merged: the other layouts have no place for it")
    verify_checksums(source)
    stats = load_norm_stats(source, config.asset_id)
    dtype = DTYPES.get(arguments.dtype or "")
    begun_s = time.perf_counter()
    total = converted_bytes(source, config.model, layout, dtype)
    require_room(destination, total)
    files = [destination / WEIGHTS]
    with whole_folder(destination):
        with _bar(total, not arguments.json) as progress:
            notes = list(
                convert_weights(source, destination, config.model, layout, dtype, progress)
            )
        digest = remember_hash(destination)
        if layout == "lerobot":
            write_lerobot_stats(destination, stats)
            notes += _lerobot_notes(config)
        else:
            write_openpi_stats(destination, config.asset_id, stats)
        _write_config(destination / CONFIG, config, layout, dtype)
        notes += _copy_beside(source, destination, config, digest)
        if arguments.fp8:
            files.append(store_fp8(destination, config.model.language))
        write_checksums(destination)
    _report(arguments, config, files, notes, time.perf_counter() - begun_s)
    return 0


def _write_config(path: Path, config: PolicyConfig, layout: str, dtype: torch.dtype | None) -> None:
    """LeRobot refuses fields that it does not know, so that its file cannot name our policy."""
    model = config.model
    data: dict[str, Any] = {
        "action_dim": model.action_dim,
        "action_horizon": model.action_horizon,
        "policy": to_json(config),
    }
    if layout == "lerobot":
        data = _lerobot_config(config, dtype)
    write_whole(path, json.dumps(data, indent=1) + "\n")


def _lerobot_config(config: PolicyConfig, dtype: torch.dtype | None) -> dict[str, Any]:
    model, size = config.model, config.model.vision.image_size
    kind = LEROBOT_NORMALISATIONS[config.normalisation]
    images = {
        f"observation.images.{slot}": {"type": "VISUAL", "shape": [3, size, size]}
        for slot in config.camera_slots
    }
    state = {"type": "STATE", "shape": [config.state_dim]}
    return {
        "type": "pi05",
        "input_features": {**images, "observation.state": state},
        "output_features": {"action": {"type": "ACTION", "shape": [config.action_dim]}},
        "dtype": "float32" if dtype == torch.float32 else "bfloat16",
        "chunk_size": model.action_horizon,
        "n_action_steps": model.action_horizon,
        "max_state_dim": model.action_dim,
        "max_action_dim": model.action_dim,
        "image_resolution": [size, size],
        "tokenizer_max_length": model.max_token_len,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": kind, "ACTION": kind},
        **({"use_relative_actions": True} if any(config.relative_actions) else {}),
    }


def _lerobot_notes(config: PolicyConfig) -> Iterator[str]:
    """What LeRobot does otherwise than this policy was trained."""
    yield (
        "LeRobot builds its own processors: make_pre_post_processors(config, dataset_stats=...)"
        " with the statistics of the normalizer's file"
    )
    if not config.state_in_prompt:
        yield f"LeRobot writes the state into every prompt; {config.name} was trained without it"
    if config.aloha_units:
        yield "LeRobot does not convert Aloha's joint signs and gripper units"


def _copy_beside(
    source: Path, destination: Path, config: PolicyConfig, digest: str
) -> Iterator[str]:
    """Tokenizer and FP8 scales, where there are any; yields notes about what is not there."""
    try:
        tokenizer = find_tokenizer(source, None)
    except FileNotFoundError:
        yield "no tokenizer was found to copy: give --tokenizer when loading"
    else:
        shutil.copyfile(tokenizer, destination / "tokenizer.model")
    scales = read_scales(source, config.model.language.depth - 1)
    if scales is not None:
        write_scales(destination, replace(scales, checkpoint=digest))


def _report(
    arguments: argparse.Namespace,
    config: PolicyConfig,
    files: list[Path],
    notes: list[str],
    seconds: float,
) -> None:
    sizes = {str(path): path.stat().st_size for path in files}
    if arguments.json:
        facts = {"config": config.name, "layout": arguments.to, "files": sizes, "notes": notes}
        print(json.dumps({**facts, "seconds": round(seconds, 2)}, indent=2))
        return
    for path, size in sizes.items():
        print(f"wrote {path}, {size / 1e6:.1f} MB")
    for note in notes:
        print(f"note: {note}")
    print(f"{config.name} in layout {arguments.to}, {seconds:.1f} s")


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
