"""Say what a checkpoint folder holds: sizes, config and why, statistics, and what is missing.

Reads headers and small files alone, so that it takes no time whatever the checkpoint's size.
Exit status 0 when the folder can be loaded as it is (with --config and --tokenizer, if given),
else 1. `--write-checksums` does read everything, and writes checksums.json beside a checkpoint that
can be loaded: from then on every load compares the files with it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from thor_policy_ros.evaluation.inspection import Inspection, inspect_checkpoint, tokenizer_doubt
from thor_policy_ros.model.checksums import CHECKSUMS, write_checksums
from thor_policy_ros.model.config import Pi05Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy inspect`."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--config", help="named policy, where the checkpoint does not say")
    parser.add_argument("--tokenizer", type=Path, help="where the checkpoint has none")
    parser.add_argument(
        "--write-checksums", action="store_true",
        help="hash every file that loading reads into checksums.json, if nothing is missing",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Print; 0 if nothing is missing, else 1."""
    asked = arguments.checkpoint, arguments.config, arguments.tokenizer
    found = inspect_checkpoint(*asked)
    if arguments.write_checksums and not found.missing:
        write_checksums(arguments.checkpoint)
        found = inspect_checkpoint(*asked)
    if arguments.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        _print(found)
        if arguments.write_checksums:
            print(f"{'did not write' if found.missing else 'wrote'} {CHECKSUMS}")
    return 1 if found.missing else 0


def _print(found: Inspection) -> None:
    console = Console(highlight=False, soft_wrap=True)
    total = sum(count for part, count in found.parameters.items() if part != "unused")
    console.print(f"{found.folder}: layout {found.layout}, {total / 1e6:,.2f} M parameters")
    for name, size in found.files.items():
        console.print(f"  {name}  {size / 1e6:,.1f} MB")
    for part, count in found.parameters.items():
        console.print(f"  {part:<14} {count / 1e6:>10,.2f} M")
    console.print(
        f"  dtypes: {', '.join(f'{k} {n / 1e6:,.2f} M' for k, n in found.dtypes.items())}"
    )
    if found.sizes:
        console.print(_sizes_line(found.sizes))
    if found.config:
        console.print(f"config: {found.config}, from {found.config_from}")
    else:
        console.print("config: not known; what speaks for and against the named ones:")
        for guess in found.guesses:
            mark = "[green]fits[/]" if guess.fits else "no"
            console.print(f"  {guess.name:<12} {mark}  {'; '.join(guess.reasons)}")
    for stats in found.statistics:
        flat = {part: dims for part, dims in stats.flat.items() if dims}
        console.print(
            f"statistics: {stats.asset_id or 'LeRobot'}, state {stats.state_dim}, actions"
            f" {stats.action_dim}, for {' and '.join(stats.kinds) or 'no normalisation'}"
            + (f"; without spread: {flat}" if flat else "")
        )
    console.print(f"tokenizer: {_tokenizer_line(found)}")
    if found.beside:
        console.print(f"beside it: {', '.join(found.beside)}")
    for entry in found.missing:
        console.print(f"[red]missing[/] {entry}")
    if not found.missing:
        console.print("[green]nothing is missing[/]")


def _tokenizer_line(found: Inspection) -> str:
    doubt = tokenizer_doubt(found)
    if doubt:
        return f"{found.tokenizer}, {doubt}: [yellow]is it this policy's?[/]"
    pieces = f", {found.tokenizer_pieces} pieces" if found.tokenizer_pieces else ""
    return f"{found.tokenizer or 'none'}{pieces}"


def _sizes_line(sizes: Pi05Config) -> str:
    vision, language, expert = sizes.vision, sizes.language, sizes.action_expert
    parts = (
        f"vision {vision.depth} layers of {vision.width}, images of {vision.image_size} in patches"
        f" of {vision.patch_size}",
        f"language {language.depth} of {language.width}",
        f"action expert {expert.depth} of {expert.width}",
        f"vocabulary {sizes.vocab_size}",
        f"actions padded to {sizes.action_dim}",
    )
    return f"  {'; '.join(parts)}"
