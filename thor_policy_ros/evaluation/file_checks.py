"""Judges checkpoint, tokenizer and built engines for `thor-policy doctor`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from thor_policy_ros.backends.engine_cache import SUFFIX, EngineFileError, EngineKey, read_key
from thor_policy_ros.evaluation.checks import Check, fine, note, wrong
from thor_policy_ros.evaluation.inspection import Inspection, inspect_checkpoint, tokenizer_doubt
from thor_policy_ros.model.checksums import CHECKSUMS, verify_checksums
from thor_policy_ros.model.weight_files import CheckpointError

COPY_AGAIN = "copy the checkpoint again"
BUILT = ("tensorrt", "tensorrt_fp8", "torch_trt")  # engines that come from the cache


def check_files(checkpoint: Path | None, policy_config: str, tokenizer: Path | None) -> list[Check]:
    """Checkpoint and tokenizer. checkpoint: None when nobody named one."""
    if checkpoint is None:
        says = "none named"
        return [note("checkpoint", says, "thor-policy doctor --checkpoint FOLDER")]
    try:
        found = inspect_checkpoint(checkpoint, policy_config or None, tokenizer)
    except (CheckpointError, ValueError, OSError) as error:
        return [wrong("checkpoint", str(error), f"ls {checkpoint}; thor-policy inspect --help")]
    return [_check_checkpoint(found), _check_tokenizer(found), check_checksums(checkpoint)]


def check_checksums(checkpoint: Path) -> Check:
    """Reads every listed file: half a minute for 7 GB on a slow core."""
    begun_s = time.perf_counter()
    try:
        right = verify_checksums(checkpoint)
    except (CheckpointError, OSError) as error:
        lines = str(error).splitlines()
        more = f"; and {len(lines) - 2} more" if len(lines) > 2 else ""
        return wrong("checksums", lines[0] + more, lines[-1] if len(lines) > 1 else COPY_AGAIN)
    if not right:
        return note(
            "checksums",
            f"no {CHECKSUMS}: damage or a mixed-up copy would not be noticed",
            f"thor-policy inspect {checkpoint} --write-checksums, where it is known to be right",
        )
    return fine(
        "checksums",
        f"{len(right)} files are as {CHECKSUMS} says ({time.perf_counter() - begun_s:.1f} s)",
    )


def _check_checkpoint(found: Inspection) -> Check:
    missing = [entry for entry in found.missing if not entry.startswith("tokenizer:")]
    if missing:
        return wrong(
            "checkpoint",
            f"{found.folder}: missing {'; '.join(missing)}",
            f"thor-policy inspect {found.folder}",
        )
    millions = sum(n for part, n in found.parameters.items() if part != "unused") / 1e6
    return fine("checkpoint", f"{found.folder}: {found.config}, {millions:,.1f} M parameters")


def _check_tokenizer(found: Inspection) -> Check:
    if not found.tokenizer:
        return wrong(
            "tokenizer",
            "none found for the checkpoint",
            "copy paligemma_tokenizer.model into the checkpoint's folder, or set parameter "
            "tokenizer",
        )
    if not found.tokenizer_pieces:
        return wrong("tokenizer", f"{found.tokenizer} is no sentencepiece model", "fetch it again")
    too_many = next((e for e in found.missing if e.startswith("tokenizer:")), "")
    if too_many:
        return wrong("tokenizer", too_many.removeprefix("tokenizer: "), "fetch this policy's own")
    doubt = tokenizer_doubt(found)
    if doubt:
        return note(
            "tokenizer",
            f"{found.tokenizer}: {doubt}; another policy's gives words another meaning",
            "thor-policy inspect FOLDER; parameter tokenizer names another file",
        )
    return fine("tokenizer", f"{found.tokenizer}: {found.tokenizer_pieces} pieces")


def read_cache(folder: Path) -> tuple[list[EngineKey], list[str]]:
    """Keys of the engines in a cache folder, and the faults of files that are none."""
    keys, faults = [], []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            keys.append(read_key(path))
        except (EngineFileError, OSError, TypeError) as error:
            faults.append(str(error))
    return keys, faults


def check_engines(
    folder: Path, keys: Sequence[EngineKey], faults: Sequence[str], engine: str, present: str | None
) -> Check:
    """engine: of the wanted backend. present: capability of this machine's GPU, as 'sm_110'."""
    if faults:
        return wrong("engines", "; ".join(faults), f"remove them from {folder}; thor-policy build")
    ours, shown = [key for key in keys if key.capability == present], _from_home(folder)
    if engine not in BUILT:
        return fine("engines", f"{len(keys)} in {shown}; the wanted backend builds none")
    if present is not None and not ours:
        return note(
            "engines",
            f"none for {present} in {shown}: the first start builds them, for minutes",
            "thor-policy build --checkpoint FOLDER",
        )
    return fine("engines", f"{len(ours)} of {len(keys)} in {shown} are for this GPU ({present})")


def _from_home(folder: Path) -> str:
    """As a shell takes it, '~' for the user's home."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)
