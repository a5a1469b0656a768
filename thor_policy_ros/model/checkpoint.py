"""Weights of pi0.5 from safetensors files, strictly, in openpi's or LeRobot's key layout.

Files are memory-mapped and each tensor is copied once, into its place on the target
device in the target dtype; nothing is unpickled. A folder holds `model.safetensors`, or
shards listed by `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.key_layout import (
    EMBEDDING_KEYS,
    LAYOUT_PREFIXES,
    UNUSED_KEYS,
    Part,
    all_parts,
    layout_of,
)
from thor_policy_ros.model.pi05 import Pi05, stays_float32

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint does not hold exactly what the model needs; the message names each key."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint folder holds, by openpi's key names.

    shapes: key -> shape; files: key -> the file it is in; unused: keys known to have no
    meaning for pi0.5, as they are named in the file.
    """

    folder: Path
    layout: str
    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path]
    unused: tuple[str, ...] = field(default=())

    @property
    def prefix(self) -> str:
        """What the file's own keys have before openpi's names."""
        return LAYOUT_PREFIXES[self.layout]


def read_contents(folder: Path | str) -> Contents:
    """Names and shapes from the files' headers; no weight is read."""
    folder = Path(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, Path] = {}
    for path in _weight_files(folder):
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 (a file handle, not a mapping)
                shapes[key] = tuple(file.get_slice(key).get_shape())
                files[key] = path
    layout = layout_of(shapes)
    prefix = LAYOUT_PREFIXES[layout]
    names = {key: key[len(prefix) :] if key.startswith(prefix) else key for key in shapes}
    return Contents(
        folder=folder,
        layout=layout,
        shapes={names[k]: s for k, s in shapes.items() if names[k] not in UNUSED_KEYS},
        files={names[k]: f for k, f in files.items() if names[k] not in UNUSED_KEYS},
        unused=tuple(sorted(k for k in shapes if names[k] in UNUSED_KEYS)),
    )


def load_pi05(
    folder: Path | str,
    config: Pi05Config,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pi05:
    """The model with the folder's weights, in eval mode, without gradients.

    dtype: float32 or bfloat16; the parts that `stays_float32` names stay float32.
    Raises CheckpointError that names every missing, unexpected and wrongly shaped key.
    """
    contents = read_contents(folder)
    with torch.device("meta"):
        model = Pi05(config)
    parts = _match(contents, all_parts(model.named_parameters(), config))
    _allocate(model, torch.device(device), dtype)
    with torch.no_grad():
        _fill(model, contents, parts)
    return model.eval().requires_grad_(False)


def save_pi05(model: Pi05, folder: Path | str, dtype: torch.dtype | None = None) -> Path:
    """Write `model.safetensors` in openpi's layout; `dtype` converts every tensor."""
    path = Path(folder) / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    parameters = dict(model.named_parameters())
    tensors = {}
    for key, part in all_parts(parameters.items(), model.config).items():
        rows = _rows(parameters[part.parameter].detach(), part)
        tensors[key] = rows.to(device="cpu", dtype=dtype or rows.dtype, copy=True).contiguous()
    tensors[EMBEDDING_KEYS[1]] = tensors.pop(EMBEDDING_KEYS[0])
    save_file(tensors, path)
    return path


# Files


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text())["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
    raise CheckpointError(
        f"wanted {WEIGHTS} (or {INDEX} with its shards) in {folder}, found: {held};"
        " convert a JAX checkpoint with openpi's convert_jax_model_to_pytorch.py first"
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped; CheckpointError where it is missing or broken."""
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path} as safetensors: {error}") from error
    with handle as file:
        yield file


# Matching keys


def _match(contents: Contents, wanted: dict[str, Part]) -> dict[str, Part]:
    """`wanted` with the embedding under the key that the file has it; raises on any difference."""
    spare_embeddings = _choose_embedding(contents, wanted)
    missing = sorted(set(wanted) - set(contents.shapes))
    unexpected = sorted(set(contents.shapes) - set(wanted) - spare_embeddings)
    shapes = [
        f"{key}: wanted {list(part.shape)}, got {list(contents.shapes[key])}"
        for key, part in sorted(wanted.items())
        if key in contents.shapes and contents.shapes[key] != part.shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(_difference(contents, missing, unexpected, shapes))
    return wanted


def _choose_embedding(contents: Contents, wanted: dict[str, Part]) -> set[str]:
    """Move the embedding to a key that the file has; returns the keys left over."""
    held = [key for key in EMBEDDING_KEYS if key in contents.shapes]
    if held and held[0] != EMBEDDING_KEYS[0]:
        wanted[held[0]] = wanted.pop(EMBEDDING_KEYS[0])
    return set(held[1:])


def _difference(
    contents: Contents, missing: list[str], unexpected: list[str], shapes: list[str]
) -> str:
    lines = [f"{contents.folder} ({contents.layout} layout) does not fit the model's config:"]
    for title, entries in (
        ("missing", [contents.prefix + k for k in missing]),
        ("unexpected", [contents.prefix + k for k in unexpected]),
        ("wrong shape", [contents.prefix + s for s in shapes]),
    ):
        lines += [f"  {title} ({len(entries)}):"] if entries else []
        lines += [f"    {entry}" for entry in entries]
    lines.append("Check that the named config is the one this checkpoint was trained with.")
    return "\n".join(lines)


# Filling


def _allocate(model: Pi05, device: torch.device, dtype: torch.dtype) -> None:
    """Replace each meta parameter by uninitialised memory on `device`."""
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            kind = torch.float32 if stays_float32(f"{name}.{key}") else dtype
            empty = torch.empty(parameter.shape, dtype=kind, device=device)
            setattr(module, key, torch.nn.Parameter(empty, requires_grad=False))


def _fill(model: Pi05, contents: Contents, parts: dict[str, Part]) -> None:
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        files = {p: stack.enter_context(_opened(p)) for p in set(contents.files.values())}

        def tensor(key: str) -> Tensor:
            read: Tensor = files[contents.files[key]].get_tensor(contents.prefix + key)
            return read

        _check_tied(contents, tensor)
        for key, part in parts.items():
            _rows(parameters[part.parameter], part).copy_(tensor(key))


def _check_tied(contents: Contents, tensor: Any) -> None:
    """Two stored copies of the tied embedding must agree, or one of them is not pi0.5's."""
    if all(key in contents.shapes for key in EMBEDDING_KEYS):
        first, second = (tensor(key) for key in EMBEDDING_KEYS)
        if not torch.equal(first, second):
            raise CheckpointError(
                f"{contents.folder}: {contents.prefix + EMBEDDING_KEYS[0]} and"
                f" {contents.prefix + EMBEDDING_KEYS[1]} should be one tied matrix but differ;"
                " delete the one that training did not update"
            )


def _rows(parameter: Tensor, part: Part) -> Tensor:
    """The rows of one of our parameters that a checkpoint key holds."""
    return parameter[part.start : part.start + part.shape[0]]
