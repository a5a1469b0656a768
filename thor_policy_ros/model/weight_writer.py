"""Safetensors files written block by block: a checkpoint is never in memory as a whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from thor_policy_ros.model.whole_file import named

BLOCK_BYTES = 16 << 20
DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
}


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written. blocks: called when its turn comes; yields its rows in order, of
    any dtype, together as many elements as `shape` says."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterator[Tensor]]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(
    path: Path,
    plans: Sequence[TensorPlan],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write the tensors; a reader sees the whole file or none.

    progress: called with the bytes of every block written. Raises ValueError for a tensor whose
    blocks do not add up, OSError where the disk is full.
    """
    ordered = sorted(plans, key=lambda plan: (-plan.dtype.itemsize, plan.name))  # keeps alignment
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with named(path), os.fdopen(handle, "wb") as file:
            file.write(_header(ordered, metadata))
            for plan in ordered:
                begun = file.tell()
                for block in plan.blocks():
                    raw = block.detach().to("cpu", plan.dtype).contiguous().view(torch.uint8)
                    progress(file.write(raw.numpy().reshape(-1).data))
                if file.tell() - begun != plan.num_bytes:
                    raise ValueError(
                        f"{plan.name}: wanted {plan.num_bytes} bytes, got {file.tell() - begun}"
                    )
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def row_blocks(tensor: Tensor, block_bytes: int = BLOCK_BYTES) -> Iterator[Tensor]:
    """Views of consecutive rows, none much larger than `block_bytes`; a scalar is its own block."""
    if tensor.ndim == 0:
        yield tensor.reshape(1)
        return
    row_bytes = max(1, tensor[:1].numel() * tensor.dtype.itemsize)
    step = max(1, block_bytes // row_bytes)
    for start in range(0, tensor.shape[0], step):
        yield tensor[start : start + step]


def _header(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for plan in plans:
        entries[plan.name] = {
            "dtype": DTYPES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + plan.num_bytes],
        }
        offset += plan.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
