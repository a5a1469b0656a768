"""What a checkpoint folder holds, told from the headers of its safetensors files.

A folder has `model.safetensors`, or shards listed by `model.safetensors.index.json`. Files
are memory-mapped; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from thor_policy_ros.model.file_hashes import HASH_BLOCK, known_sha256, sha256_of
from thor_policy_ros.model.json_fields import read_object
from thor_policy_ros.model.key_layout import LAYOUT_PREFIXES, UNUSED_KEYS, layout_of
from thor_policy_ros.model.whole_file import write_whole

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HASH = "weights_hash.json"
_FOREIGN = "not in this layout: "


class CheckpointError(ValueError):
    """A checkpoint does not hold exactly what the model needs; the message names each key."""


@dataclass(frozen=True)
class Contents:
    """Keys of a checkpoint by openpi's names, whatever its layout.

    shapes: key -> shape; files: key -> the file it is in; unused: keys known to have no
    meaning for pi0.5, as they are named in the file.
    """

    folder: Path
    layout: str
    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path]
    unused: tuple[str, ...] = ()

    def name(self, key: str) -> str:
        """The file's own name of a key."""
        if key.startswith(_FOREIGN):
            return key[len(_FOREIGN) :]
        return LAYOUT_PREFIXES[self.layout] + key


def read_contents(folder: Path | str) -> Contents:
    """Names and shapes; no weight is read. CheckpointError where there are none."""
    folder = Path(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, Path] = {}
    for path in weight_files(folder):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (a file handle, not a mapping)
                shapes[name] = tuple(file.get_slice(name).get_shape())
                files[name] = path
    layout = layout_of(shapes)
    keys = {name: _openpi_name(name, LAYOUT_PREFIXES[layout]) for name in shapes}
    used = [name for name in shapes if keys[name] not in UNUSED_KEYS]
    return Contents(
        folder=folder,
        layout=layout,
        shapes={keys[name]: shapes[name] for name in used},
        files={keys[name]: files[name] for name in used},
        unused=tuple(sorted(set(shapes) - set(used))),
    )


def checkpoint_hash(folder: Path | str) -> str:
    """SHA-256 of the weight files' bytes, 64 hex digits: what is derived from a checkpoint is
    kept under it. Reads everything (7 GB take some seconds), unless `remember_hash` did so and
    the files have neither size nor time changed since, or this process hashed the one file there
    is to hold it against checksums.json; CheckpointError without weights.
    """
    folder = Path(folder)
    files = weight_files(folder)
    seen = known_sha256(files[0]) if len(files) == 1 and files[0].is_file() else None
    return seen or _remembered_hash(folder) or _computed_hash(folder)


def remember_hash(folder: Path | str) -> str:
    """The checkpoint's hash, computed and written beside the weights for later loads."""
    folder = Path(folder)
    found = _computed_hash(folder)
    text = json.dumps({"sha256": found, "files": _stamps(folder)}, indent=1)
    write_whole(folder / HASH, text + "\n")
    return found


def _stamps(folder: Path) -> dict[str, list[int]]:
    files = {path.name: path.stat() for path in weight_files(folder)}
    return {name: [found.st_size, found.st_mtime_ns] for name, found in files.items()}


def _remembered_hash(folder: Path) -> str:
    """'' where none is remembered, or for other files than those that are here now."""
    try:
        held = json.loads((folder / HASH).read_text())
        return str(held["sha256"]) if held["files"] == _stamps(folder) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it is computed then


def _computed_hash(folder: Path) -> str:
    files = weight_files(folder)
    if len(files) == 1:
        return sha256_of(files[0])
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _openpi_name(name: str, prefix: str) -> str:
    """Without the layout's prefix; a name that lacks it must not pass for another key."""
    return name[len(prefix) :] if name.startswith(prefix) else _FOREIGN + name


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped; CheckpointError where it is missing or broken."""
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path} as safetensors: {error}") from error
    with handle as file:
        yield file


def _shards(index: Path) -> list[str]:
    """Names of the files beside the index that it lists."""
    try:
        listed = read_object(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    names = list(listed.values()) if isinstance(listed, dict) else []
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if not names or wrong:
        raise CheckpointError(
            f"{index}: wanted weight_map with the names of files beside it, got"
            f" {str(wrong[0] if wrong else listed)[:80]!r}"
        )
    return sorted(set(names))


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards in their order; CheckpointError where there are none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / name for name in _shards(folder / INDEX)]
    held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
    raise CheckpointError(
        f"wanted {WEIGHTS} (or {INDEX} with its shards) in {folder}, found: {held};"
        " convert a JAX checkpoint with openpi's convert_jax_model_to_pytorch.py first"
    )
