"""What a checkpoint folder holds and lacks, from its headers and small files: no weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thor_policy_ros.model.checksums import CHECKSUMS, DERIVED
from thor_policy_ros.model.config import Pi05Config, PolicyConfig
from thor_policy_ros.model.foreign_config import disagreements
from thor_policy_ros.model.infer_sizes import infer_sizes
from thor_policy_ros.model.key_layout import EMBEDDING_KEYS
from thor_policy_ros.model.named_configs import CONFIG, NAMED, load_policy_config
from thor_policy_ros.model.norm_stats import WANTED, NormStats, load_norm_stats
from thor_policy_ros.model.tokenizer import PromptTokenizer, find_tokenizer
from thor_policy_ros.model.weight_files import CheckpointError, Contents, opened, read_contents

PARTS = (  # by the first that a key begins with, in openpi's names and in ours
    ("vision", ("paligemma_with_expert.paligemma.model.vision_tower.", "vision.")),
    ("projector", ("paligemma_with_expert.paligemma.model.multi_modal_projector.", "projector.")),
    ("embedding", (*EMBEDDING_KEYS, "language.embed_tokens.")),
    ("language", ("paligemma_with_expert.paligemma.model.language_model.", "language.")),
    ("action expert", ("paligemma_with_expert.gemma_expert.", "expert.")),
)


@dataclass(frozen=True)
class Guess:
    """A named config held against the folder. reasons: for and against, a line each."""

    name: str
    fits: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Statistics:
    """One file of norm statistics. flat: dimensions (of state, of actions) without any spread."""

    asset_id: str
    state_dim: int
    action_dim: int
    kinds: tuple[str, ...]
    flat: dict[str, list[int]]


@dataclass(frozen=True)
class Inspection:
    """missing: what stands in the way of loading it as `config`; () when nothing does.

    parameters: by part, those that pi0.5 does not use under 'unused'. sizes: None where they
    cannot be told. config_from: where `config` was found, or why it could not be.
    tokenizer_pieces: 0 where there is no tokenizer or its file cannot be read.
    """

    folder: str
    layout: str
    files: dict[str, int]
    dtypes: dict[str, int]
    parameters: dict[str, int]
    sizes: Pi05Config | None
    config: str
    config_from: str
    guesses: tuple[Guess, ...]
    statistics: tuple[Statistics, ...]
    tokenizer: str
    tokenizer_pieces: int
    beside: tuple[str, ...]
    missing: tuple[str, ...]


def inspect_checkpoint(
    folder: Path, named: str | None = None, tokenizer: Path | None = None
) -> Inspection:
    """Raises CheckpointError for a folder without weights and ValueError for an unknown name."""
    contents = read_contents(folder)
    sizes, sizes_missing = _sizes(contents, named)
    statistics = _all_statistics(folder)
    config, config_from = _config(folder, named)
    guesses = tuple(_guess(folder, one, sizes, statistics) for one in NAMED.values())
    missing = [sizes_missing] if sizes_missing else []
    if config is None:
        missing.append(f"policy config: {config_from}")
    else:
        missing += _missing_for(folder, config, sizes)
    found_tokenizer = _tokenizer(folder, tokenizer)
    pieces = _pieces(found_tokenizer)
    missing += _tokenizer_missing(found_tokenizer, pieces, sizes)
    return Inspection(
        folder=str(folder),
        layout=contents.layout,
        files={path.name: path.stat().st_size for path in sorted(set(contents.files.values()))},
        dtypes=_dtypes(contents),
        parameters=_parameters(contents),
        sizes=sizes,
        config=config.name if config else "",
        config_from=config_from,
        guesses=guesses,
        statistics=statistics,
        tokenizer=found_tokenizer,
        tokenizer_pieces=pieces,
        beside=_beside(folder),
        missing=tuple(missing),
    )


def _config(folder: Path, named: str | None) -> tuple[PolicyConfig | None, str]:
    try:
        config = load_policy_config(folder, named)
    except ValueError as error:
        return None, str(error)
    return config, f"--config {named}" if named else f"the policy entry of {folder / CONFIG}"


def _sizes(contents: Contents, named: str | None) -> tuple[Pi05Config | None, str]:
    """From the shapes of the weights; the three numbers that they do not show are a config's."""
    config, _ = _config(contents.folder, named)
    known = config.model if config else NAMED["pi05_libero"].model
    if contents.layout == "merged":
        return (known, "") if config else (None, "")
    try:
        return infer_sizes(
            contents, known.action_horizon, known.max_token_len, known.num_cameras
        ), ""
    except CheckpointError as error:
        return (known, "") if config else (None, f"sizes: {error}")


def _guess(
    folder: Path, config: PolicyConfig, sizes: Pi05Config | None, stats: Sequence[Statistics]
) -> Guess:
    """What speaks for and against a named config; a folder of weights alone fits several."""
    against, supports = [], []
    if sizes is None:
        against.append("its sizes are not known")
    elif _comparable(sizes, config.model) != config.model:
        against.append("the sizes of the network are others")
    else:
        supports.append("the sizes of the network agree")
    path = folder / CONFIG
    saved = json.loads(path.read_text()) if path.is_file() else {}
    differences = disagreements(config, saved) if isinstance(saved, Mapping) else []
    against += differences
    own = [found for found in stats if found.asset_id == config.asset_id]
    if own:
        supports.append(f"it has statistics of {config.asset_id}")
    for found in own or [found for found in stats if not found.asset_id]:
        if (found.state_dim, found.action_dim) < (config.state_dim, config.action_dim):
            against.append(f"its statistics are of {found.state_dim} and {found.action_dim}")
    if stats and not own and all(found.asset_id for found in stats):
        names = ", ".join(found.asset_id for found in stats)
        against.append(f"its statistics are of {names}, not {config.asset_id}")
    if saved and not differences and _says_anything(saved):
        supports.append(f"{CONFIG} does not contradict it")
    lines = [f"for: {text}" for text in supports] + [f"against: {text}" for text in against]
    return Guess(config.name, not against, tuple(lines))


def _says_anything(saved: Mapping[str, Any]) -> bool:
    return any(name in saved for name in ("action_horizon", "chunk_size"))


def _comparable(sizes: Pi05Config, known: Pi05Config) -> Pi05Config:
    """With what leaves no trace in the weights taken from `known`."""
    return replace(
        sizes,
        action_horizon=known.action_horizon,
        max_token_len=known.max_token_len,
        num_cameras=known.num_cameras,
    )


def _missing_for(folder: Path, config: PolicyConfig, sizes: Pi05Config | None) -> list[str]:
    missing = []
    if sizes is not None and _comparable(sizes, config.model) != config.model:
        missing.append(f"weights of the sizes of config {config.name!r}")
    try:
        stats = load_norm_stats(folder, config.asset_id)
        for part, dims in (("state", config.state_dim), ("actions", config.action_dim)):
            stats.affine(part, config.normalisation, dims)
    except (ValueError, OSError) as error:
        missing.append(f"statistics: {error}")
    return missing


def _all_statistics(folder: Path) -> tuple[Statistics, ...]:
    """Of every asset; LeRobot's have no name."""
    names = sorted(
        str(path.parent.relative_to(folder / "assets"))
        for path in (folder / "assets").rglob("norm_stats.json")
    )
    found = []
    for name in names or [""]:
        try:
            found.append(_statistics(name, load_norm_stats(folder, name)))
        except (ValueError, OSError):
            continue  # `_missing_for` says what is wrong with those of the chosen config
    return tuple(found)


def _statistics(asset_id: str, stats: NormStats) -> Statistics:
    groups = {"state": stats.state, "actions": stats.actions}
    kinds = [
        kind
        for kind, names in WANTED.items()
        if all(set(names) <= set(group) for group in groups.values())
    ]
    flat = {
        part: np.flatnonzero(group["q99"] <= group["q01"]).tolist()
        for part, group in groups.items()
        if {"q01", "q99"} <= set(group)
    }
    dims = [max((len(vector) for vector in group.values()), default=0) for group in groups.values()]
    return Statistics(asset_id, dims[0], dims[1], tuple(kinds), flat)


def _tokenizer(folder: Path, explicit: Path | None) -> str:
    try:
        return str(find_tokenizer(folder, explicit))
    except FileNotFoundError:
        return ""


def _pieces(tokenizer: str) -> int:
    try:
        return PromptTokenizer(tokenizer).vocab_size if tokenizer else 0
    except (RuntimeError, OSError):
        return 0


def _tokenizer_missing(file: str, pieces: int, sizes: Pi05Config | None) -> list[str]:
    if not file:
        return ["tokenizer: a PaliGemma sentencepiece model, here or in openpi's cache"]
    if not pieces:
        return [f"tokenizer: {file} is no sentencepiece model"]
    if sizes and pieces > sizes.vocab_size:
        return [f"tokenizer: {file} has {pieces} pieces, the model embeds {sizes.vocab_size}"]
    return []


def tokenizer_doubt(found: Inspection) -> str:
    """Why the tokenizer is hardly this policy's, '' where nothing speaks against it. PaliGemma's
    has as many pieces as the model embeds; with another one the policy would read other words."""
    embedded = found.sizes.vocab_size if found.sizes else 0
    if not found.tokenizer_pieces or 2 * found.tokenizer_pieces > embedded:
        return ""
    return f"{found.tokenizer_pieces} pieces, while the model embeds {embedded}"


def _dtypes(contents: Contents) -> dict[str, int]:
    """Parameters by dtype, as the files name it."""
    counts: dict[str, int] = {}
    for kind, count in _tensors(contents).values():
        counts[kind] = counts.get(kind, 0) + count
    return counts


def _parameters(contents: Contents) -> dict[str, int]:
    counts: dict[str, int] = {}
    for key, shape in contents.shapes.items():
        part = next((name for name, starts in PARTS if key.startswith(starts)), "heads")
        counts[part] = counts.get(part, 0) + math.prod(shape)
    if all(key in contents.shapes for key in EMBEDDING_KEYS):
        counts["embedding"] //= 2  # one matrix, stored twice
    unused = sum(_tensors(contents)[name][1] for name in contents.unused)
    return {**counts, "unused": unused} if unused else counts


def _tensors(contents: Contents) -> dict[str, tuple[str, int]]:
    """Name in the file -> (dtype, elements)."""
    found: dict[str, tuple[str, int]] = {}
    with ExitStack() as stack:
        for path in set(contents.files.values()):
            file = stack.enter_context(opened(path))
            for name in file.keys():  # noqa: SIM118 (a file handle, not a mapping)
                part = file.get_slice(name)
                found[name] = (str(part.get_dtype()), math.prod(part.get_shape()))
    return found


def _beside(folder: Path) -> tuple[str, ...]:
    """Files of ours that make this checkpoint load or run faster, or say what it has to be."""
    patterns = (*DERIVED, CHECKSUMS)
    return tuple(sorted(path.name for pattern in patterns for path in folder.glob(pattern)))
