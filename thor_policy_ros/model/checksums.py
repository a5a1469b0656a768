"""A checkpoint's files known by their hash: `checksums.json`, written once and held to at loading.

It finds damage, a mixture of two checkpoints, and what somebody changed who could not write
`checksums.json` too: it is not signed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from thor_policy_ros.model.file_hashes import sha256_of
from thor_policy_ros.model.json_fields import read_object
from thor_policy_ros.model.named_configs import CONFIG
from thor_policy_ros.model.norm_stats import lerobot_file
from thor_policy_ros.model.tokenizer import FILE_NAMES
from thor_policy_ros.model.weight_files import HASH, INDEX, CheckpointError, weight_files
from thor_policy_ros.model.whole_file import write_whole

CHECKSUMS = "checksums.json"
FORMAT = 1
DERIVED = ("fp8_scales.*.json", "fp8_mlp.safetensors", HASH)
"""Made from the weights by `calibrate` and `convert`, and read beside them."""
# An asset's name may hold slashes.
_STATISTICS = tuple(f"assets/{'*/' * depth}norm_stats.json" for depth in range(1, 5))
_READ = (CONFIG, INDEX, *FILE_NAMES, *_STATISTICS, "policy_preprocessor.json", *DERIVED)


class ChecksumError(CheckpointError):
    """A file of the checkpoint is not the one in checksums.json; the message names each."""


class Entry(NamedTuple):
    """What a file has to be. sha256: 64 hex digits."""

    bytes: int
    sha256: str


def checkpoint_files(folder: Path | str) -> list[str]:
    """Every file of the folder that some backend reads, by its path in the folder."""
    folder = Path(folder)
    paths = {path for pattern in _READ for path in folder.glob(pattern) if path.is_file()}
    statistics = lerobot_file(folder)
    paths.update([statistics] if statistics is not None and statistics.is_file() else [])
    paths.update(weight_files(folder))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def write_checksums(folder: Path | str) -> Path:
    """Hash what loading reads and write checksums.json, whole or not at all.

    Raises CheckpointError without weights, and OSError.
    """
    folder = Path(folder)
    files = {name: _entry_of(folder / name) for name in checkpoint_files(folder)}
    return _write(folder, files)


def renew_checksums(folder: Path | str, names: Iterable[str]) -> None:
    """Have checksums.json, where there is one, tell of these files as they are now: to be called
    by whoever has just written them. The others' entries stay, right or wrong.

    Raises ChecksumError for a checksums.json that cannot be read, and OSError.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        return
    files = {name: entry._asdict() for name, entry in _read(folder / CHECKSUMS).items()}
    for name in names:
        files[name] = _entry_of(folder / name)
    _write(folder, files)


def _entry_of(path: Path) -> dict[str, Any]:
    return Entry(path.stat().st_size, sha256_of(path))._asdict()


def _write(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Path:
    ordered = {name: files[name] for name in sorted(files)}
    text = json.dumps({"format": FORMAT, "files": ordered}, indent=1) + "\n"
    return write_whole(folder / CHECKSUMS, text)


def verify_checksums(folder: Path | str, required: bool = False) -> tuple[str, ...]:
    """The files that were compared and are right; () where there is no checksums.json.

    Reads every listed file, unless this process did so and it has not changed since. Files that
    loading does not read are ignored; one that it reads must be listed. Raises ChecksumError,
    also for a folder without checksums.json if it is required.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        if required:
            raise ChecksumError(
                f"wanted {CHECKSUMS} in {folder}, as require_checksums says, and found none;"
                f" `{_command(folder)}`, where the files are known to be right, writes it"
            )
        return ()
    entries = _read(folder / CHECKSUMS)
    faults = _obvious_faults(folder, entries) or _content_faults(folder, entries)
    if faults:
        raise ChecksumError(
            "\n".join(faults) + f"\nCopy the checkpoint again; if you changed it yourself, have"
            f" `{_command(folder)}` write {CHECKSUMS} anew"
        )
    return tuple(sorted(entries))


def _command(folder: Path) -> str:
    return f"thor-policy inspect {folder} --write-checksums"


def _obvious_faults(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    """What can be told without reading a weight."""
    faults = []
    for name, wanted in entries.items():
        path = folder / name
        if not os.path.isfile(path):  # unlike Path.is_file, False for a name of 1000 letters
            faults.append(f"{path}: wanted {wanted.bytes} bytes by {CHECKSUMS}, got no such file")
        elif path.stat().st_size != wanted.bytes:
            got = path.stat().st_size
            faults.append(f"{path}: wanted {wanted.bytes} bytes by {CHECKSUMS}, got {got}")
    if faults:
        return faults
    unlisted = [name for name in checkpoint_files(folder) if name not in entries]
    return [f"{folder / name}: would be read, and is not in {CHECKSUMS}" for name in unlisted]


def _content_faults(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    found = {name: sha256_of(folder / name) for name in entries}
    return [
        f"{folder / name}: wanted SHA-256 {entries[name].sha256} by {CHECKSUMS}, got {got}"
        for name, got in found.items()
        if got != entries[name].sha256
    ]


def _read(path: Path) -> dict[str, Entry]:
    try:
        held = read_object(path)
        if held.get("format") != FORMAT:
            raise ValueError(f"{path}: wanted format {FORMAT}, got {str(held.get('format'))[:80]}")
        files = held.get("files")
        if not isinstance(files, dict) or not files:
            raise ValueError(f"{path}: wanted files with their hashes, got {str(files)[:80]}")
        return {name: _entry(name, entry, path) for name, entry in files.items()}
    except ValueError as error:
        raise ChecksumError(f"{error}; write it anew: `{_command(path.parent)}`") from error


def _entry(name: str, entry: Any, path: Path) -> Entry:
    """Of a file within the folder, by a name that needs no reading twice."""
    parts = PurePosixPath(name).parts
    if name != "/".join(parts) or not parts or {"..", "."} & set(parts) or "\0" in name:
        raise ValueError(f"{path}: wanted names of files in its folder, got {name[:80]!r}")
    size, digest = (entry.get(key) if isinstance(entry, dict) else None for key in Entry._fields)
    if type(size) is not int or not isinstance(digest, str) or not _is_sha256(digest):
        raise ValueError(
            f"{path}: {name[:80]}: wanted bytes and a sha256 of 64 hex digits, got"
            f" {str(entry)[:80]}"
        )
    return Entry(size, digest)


def _is_sha256(digest: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", digest) is not None
