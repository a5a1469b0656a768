"""The same weights under other names: openpi's, LeRobot's, or our own, packed as they are run.

A `merged` file holds our parameters whole, in the dtypes that a GPU runs: loading it is one copy
for each. Rows are read from the mapped source and written block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.key_layout import (
    EMBEDDING_KEYS,
    LAYOUT_PREFIXES,
    UNUSED_KEYS,
    all_parts,
    merged_parts,
)
from thor_policy_ros.model.pi05 import Pi05, stays_float32
from thor_policy_ros.model.weight_files import (
    WEIGHTS,
    CheckpointError,
    Contents,
    opened,
    read_contents,
)
from thor_policy_ros.model.weight_writer import TensorPlan, row_blocks, write_safetensors

LAYOUTS = tuple(LAYOUT_PREFIXES)
EXPERT_HEAD = UNUSED_KEYS[0]
"""Has no meaning for pi0.5; the original loaders insist on it all the same."""
# The keys under which each layout stores the tied embedding.
_EMBEDDINGS = {"openpi": EMBEDDING_KEYS[1:], "lerobot": EMBEDDING_KEYS}


class Piece(NamedTuple):
    """Rows [start, stop) of a key of the source (by its name in `Contents`)."""

    key: str
    start: int
    stop: int


class Target(NamedTuple):
    """One tensor to write: its parameter, its own name and shape, and the rows it is made of.
    Without pieces it is zeros."""

    parameter: str
    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def convert_weights(
    source: Path | str,
    destination: Path | str,
    config: Pi05Config,
    layout: str,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> tuple[str, ...]:
    """Write `destination`/model.safetensors in `layout`; returns notes for a person.

    dtype: None keeps each tensor's (for a merged file: bfloat16, but what `stays_float32`);
    bfloat16 leaves those parts float32. Raises CheckpointError where the source does not fit the
    config, and ValueError for an unknown layout or where the destination is the source.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; choose one of: {', '.join(LAYOUTS)}")
    source, destination = Path(source), Path(destination)
    if destination.resolve() == source.resolve():
        raise ValueError(f"the converted checkpoint wants a folder of its own, got {destination}")
    contents = read_contents(source)
    targets, notes = _targets(contents, config, layout)
    with ExitStack() as stack:
        handles = {p: stack.enter_context(opened(p)) for p in set(contents.files.values())}
        plans = [_plan(target, contents, handles, layout, dtype) for target in targets]
        destination.mkdir(parents=True, exist_ok=True)
        write_safetensors(destination / WEIGHTS, plans, {"format": "pt"}, progress)
    return notes


def converted_bytes(
    source: Path | str, config: Pi05Config, layout: str, dtype: torch.dtype | None = None
) -> int:
    """Size of what `convert_weights` would write, without its header."""
    contents = read_contents(source)
    with ExitStack() as stack:
        handles = {p: stack.enter_context(opened(p)) for p in set(contents.files.values())}
        targets, _ = _targets(contents, config, layout)
        return sum(_plan(t, contents, handles, layout, dtype).num_bytes for t in targets)


def _targets(
    contents: Contents, config: Pi05Config, layout: str
) -> tuple[list[Target], tuple[str, ...]]:
    with torch.device("meta"):
        parameters = dict(Pi05(config).named_parameters())
    held = _held_pieces(contents, config, parameters)
    prefix = LAYOUT_PREFIXES[layout]
    if layout == "merged":
        dropped = (f"left out, not used by pi0.5: {', '.join(contents.unused)}",)
        return [
            Target(name, name, tuple(tensor.shape), tuple(held[name]))
            for name, tensor in parameters.items()
        ], dropped if contents.unused else ()
    targets = []
    for key, part in all_parts(parameters.items(), config).items():
        pieces = tuple(_cut(held[part.parameter], part.start, part.start + part.shape[0]))
        keys = _EMBEDDINGS[layout] if key in EMBEDDING_KEYS else (key,)
        targets += [Target(part.parameter, prefix + name, part.shape, pieces) for name in keys]
    return targets, _add_unused(targets, contents, config, prefix)


def _add_unused(
    targets: list[Target], contents: Contents, config: Pi05Config, prefix: str
) -> tuple[str, ...]:
    """The original loaders want the expert's output head: as it was, or zeros."""
    shape = (config.vocab_size, config.action_expert.width)
    name = LAYOUT_PREFIXES[contents.layout] + EXPERT_HEAD
    if name in contents.unused:
        pieces = (Piece(EXPERT_HEAD, 0, shape[0]),)
        targets.append(Target("", prefix + EXPERT_HEAD, shape, pieces))
        return ()
    targets.append(Target("", prefix + EXPERT_HEAD, shape, ()))
    return (f"{prefix}{EXPERT_HEAD} is zeros: the source has none and pi0.5 does not use it",)


def _held_pieces(
    contents: Contents, config: Pi05Config, parameters: dict[str, Any]
) -> dict[str, list[Piece]]:
    """Parameter -> the rows of the source that make it up, in order; CheckpointError if not."""
    parts_of = merged_parts if contents.layout == "merged" else all_parts
    parts = parts_of(parameters.items(), config)
    embeddings = [key for key in EMBEDDING_KEYS if key in contents.shapes]
    held: dict[str, list[Piece]] = {}
    wrong = []
    for key, part in parts.items():
        found = embeddings[0] if key in EMBEDDING_KEYS and embeddings else key
        if contents.shapes.get(found) != part.shape:
            got = contents.shapes.get(found)
            wrong.append(f"{contents.name(key)}: wanted {list(part.shape)}, got {got or 'none'}")
        held.setdefault(part.parameter, []).append(Piece(found, 0, part.shape[0]))
    surplus = sorted(set(contents.shapes) - set(parts) - set(EMBEDDING_KEYS))
    wrong += [f"{contents.name(key)}: unexpected" for key in surplus]
    if wrong:
        lines = "\n  ".join(wrong)
        raise CheckpointError(f"{contents.folder} does not fit the config's sizes:\n  {lines}")
    return held


def _cut(pieces: Sequence[Piece], start: int, stop: int) -> Iterator[Piece]:
    """The rows [start, stop) of pieces laid end to end."""
    begin = 0
    for piece in pieces:
        length = piece.stop - piece.start
        low, high = max(start - begin, 0), min(stop - begin, length)
        if low < high:
            yield Piece(piece.key, piece.start + low, piece.start + high)
        begin += length


def _plan(
    target: Target,
    contents: Contents,
    handles: dict[Path, Any],
    layout: str,
    dtype: torch.dtype | None,
) -> TensorPlan:
    def tensor(key: str) -> Tensor:
        name = contents.name(key)
        if key in contents.files:
            read: Tensor = handles[contents.files[key]].get_tensor(name)
        else:  # not used by pi0.5, so `contents` does not say where it is
            read = next(h.get_tensor(name) for h in handles.values() if name in h.keys())  # noqa: SIM118
        return read

    kind = _dtype(target, tensor, layout, dtype)

    def blocks() -> Iterator[Tensor]:
        if not target.pieces:
            yield from row_blocks(torch.zeros((), dtype=kind).expand(target.shape))
        for piece in target.pieces:
            whole = tensor(piece.key)
            yield from row_blocks(whole[piece.start : piece.stop])

    return TensorPlan(target.name, target.shape, kind, blocks)


def _dtype(
    target: Target, tensor: Callable[[str], Tensor], layout: str, dtype: torch.dtype | None
) -> torch.dtype:
    kept = tensor(target.pieces[0].key).dtype if target.pieces else torch.bfloat16
    if dtype is None and layout != "merged":
        return kept
    wanted = dtype or torch.bfloat16
    return torch.float32 if target.parameter and stays_float32(target.parameter) else wanted
