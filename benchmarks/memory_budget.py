"""A GPU's memory that runs out, played on a CPU: torch's own error, raised where torch would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryBudget(TorchDispatchMode):
    """Within `with MemoryBudget(num_bytes):`, in this thread alone, the operation whose new
    tensors exceed the budget raises torch.OutOfMemoryError. What is freed is not given back.
    """

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.left = num_bytes

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        held = {place for place, _ in _storages((args, kwargs))}
        new = {place: size for place, size in _storages(made) if place not in held}
        self.left -= sum(new.values())
        if self.left < 0 and new:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory (played on a CPU). Tried to allocate {sum(new.values())} bytes"
            )
        return made


def _storages(tree: Any) -> Iterator[tuple[int, int]]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
            storage = leaf.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
