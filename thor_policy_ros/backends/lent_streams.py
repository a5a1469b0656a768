"""CUDA streams that are lent and come back, instead of a new one for every engine.

A library keeps memory for each stream that it ever worked in (cuBLAS), as long as the process
lives: with streams of their own, 100 switches of engines left 350 MB more in use on an H200.
"""

from __future__ import annotations

import threading

import torch

_free: dict[torch.device, list[torch.cuda.Stream]] = {}
_lock = threading.Lock()


def lend(device: torch.device) -> torch.cuda.Stream:
    """A stream that nobody else has; `give_back` it when its work is done."""
    with _lock:
        free = _free.setdefault(_indexed(device), [])
        return free.pop() if free else torch.cuda.Stream(device)


def give_back(stream: torch.cuda.Stream) -> None:
    """To be lent again. Whatever is still launched there goes before the next one's work."""
    with _lock:
        _free.setdefault(_indexed(stream.device), []).append(stream)


def _indexed(device: torch.device) -> torch.device:
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)
