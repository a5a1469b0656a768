"""Weights of pi0.5 into and out of safetensors files, strictly.

Both openpi's and LeRobot's key layouts load, and `merged` files, which name our own packed
parameters. Each tensor is copied once, from the mapped file into its place on the target device in
the target dtype: the module is built without memory, so 3.4 billion parameters take no more than
their own size, and the host no more than a block of rows beside the mapping.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from thor_policy_ros.model.checksums import verify_checksums
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.key_layout import EMBEDDING_KEYS, Part, all_parts, merged_parts
from thor_policy_ros.model.pi05 import Pi05, stays_float32
from thor_policy_ros.model.weight_files import (
    WEIGHTS,
    CheckpointError,
    Contents,
    opened,
    read_contents,
)
from thor_policy_ros.model.weight_writer import row_blocks


def load_pi05(
    folder: Path | str,
    config: Pi05Config,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    wanted: Callable[[str], bool] = lambda parameter: True,
) -> Pi05:
    """The model with the folder's weights, in eval mode, without gradients.

    dtype: float32 or bfloat16; the parts that `stays_float32` names stay float32.
    wanted: which parameters of Pi05 get memory and weights; the others stay on 'meta'. The
    folder must fit the whole model all the same.
    Raises CheckpointError that names every missing, unexpected and wrongly shaped key, and
    ChecksumError for files that are not those of the folder's checksums.json.
    """
    verify_checksums(folder)
    contents = read_contents(folder)
    with torch.device("meta"):
        model = Pi05(config)
    parts_of = merged_parts if contents.layout == "merged" else all_parts
    parts = _match(contents, parts_of(model.named_parameters(), config))
    allocate(model, torch.device(device), dtype, wanted)
    with torch.no_grad():
        _fill(model, contents, {key: p for key, p in parts.items() if wanted(p.parameter)})
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


def _match(contents: Contents, wanted: dict[str, Part]) -> dict[str, Part]:
    """`wanted` with the embedding under the key that the file has it; raises on any difference."""
    spare_embeddings = _choose_embedding(contents, wanted)
    name = contents.name
    missing = [name(key) for key in sorted(set(wanted) - set(contents.shapes))]
    unexpected = set(contents.shapes) - set(wanted) - spare_embeddings
    shapes = [
        f"{name(key)}: wanted {list(part.shape)}, got {list(contents.shapes[key])}"
        for key, part in sorted(wanted.items())
        if key in contents.shapes and contents.shapes[key] != part.shape
    ]
    if missing or unexpected or shapes:
        surplus = [name(key) for key in sorted(unexpected)]
        raise CheckpointError(_difference(contents, missing, surplus, shapes))
    return wanted


def _choose_embedding(contents: Contents, wanted: dict[str, Part]) -> set[str]:
    """Move the embedding to a key that the file has; returns the keys left over."""
    if EMBEDDING_KEYS[0] not in wanted:  # a merged file has one embedding, under our name
        return set()
    held = [key for key in EMBEDDING_KEYS if key in contents.shapes]
    if held and held[0] != EMBEDDING_KEYS[0]:
        wanted[held[0]] = wanted.pop(EMBEDDING_KEYS[0])
    return set(held[1:])


def _difference(
    contents: Contents, missing: list[str], unexpected: list[str], shapes: list[str]
) -> str:
    lines = [f"{contents.folder} ({contents.layout} layout) does not fit the model's config:"]
    for title, entries in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("wrong shape", shapes),
    ):
        lines += [f"  {title} ({len(entries)}):"] if entries else []
        lines += [f"    {entry}" for entry in entries]
    lines.append("Check that the named config is the one this checkpoint was trained with.")
    return "\n".join(lines)


def allocate(
    model: Pi05, device: torch.device, dtype: torch.dtype, wanted: Callable[[str], bool]
) -> None:
    """Replace each wanted meta parameter by uninitialised memory on `device`; all get the
    dtype that they have in a model of `dtype`."""
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            full_name = f"{name}.{key}"
            kind = torch.float32 if stays_float32(full_name) else dtype
            place = device if wanted(full_name) else torch.device("meta")
            empty = torch.empty(parameter.shape, dtype=kind, device=place)
            setattr(module, key, torch.nn.Parameter(empty, requires_grad=False))


def _fill(model: Pi05, contents: Contents, parts: dict[str, Part]) -> None:
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        handles = {p: stack.enter_context(opened(p)) for p in set(contents.files.values())}

        def tensor(key: str) -> Tensor:
            read: Tensor = handles[contents.files[key]].get_tensor(contents.name(key))
            return read

        if all(key in contents.shapes for key in EMBEDDING_KEYS):
            _check_tied(contents, *(tensor(key) for key in EMBEDDING_KEYS))
        for key, part in parts.items():
            _copy(_rows(parameters[part.parameter], part), tensor(key))


def _copy(destination: Tensor, source: Tensor) -> None:
    """Into place, converting. Bytes cross to a device as they are in the file and are converted
    there, block by block: torch itself would convert the whole tensor on the host first."""
    start = 0
    for block in row_blocks(source):
        rows = destination[start : start + len(block)] if destination.ndim else destination
        rows.copy_(block.to(destination.device).reshape(rows.shape))
        start += len(block)


def _check_tied(contents: Contents, embedding: Tensor, head: Tensor) -> None:
    """Two stored copies of the tied matrix must agree, or one of them is not pi0.5's."""
    pairs = zip(row_blocks(embedding), row_blocks(head), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        first, second = (contents.name(key) for key in EMBEDDING_KEYS)
        raise CheckpointError(
            f"{contents.folder}: {first} and {second} should be one tied matrix but differ;"
            " delete the one that training did not update"
        )


def _rows(parameter: Tensor, part: Part) -> Tensor:
    """The rows of one of our parameters that a checkpoint key holds."""
    return parameter[part.start : part.start + part.shape[0]]
