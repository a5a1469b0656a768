"""Camera frames to pixels of the model's size, on the device, as Pillow makes them to the bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.backends.fused_trial import refused
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.resize_taps import ResizeTaps, resize_taps
from thor_policy_ros.model.transforms import resize_with_pad
from thor_policy_ros.types import U8

SIZES_KEPT = 8
WHAT = "camera frames resized on the device"


class FrameResizer:
    """The memory of one slot: what frames are fetched to, and what becomes of them.

    A camera whose frames grow gets more memory then; tables of the last few sizes are kept.
    """

    def __init__(self, cameras: int, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        shape = (3, size, size)
        self._pixels = [
            torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(cameras)
        ]
        self._raw = [torch.empty(0, dtype=torch.uint8, device=device) for _ in range(cameras)]
        self._taps: OrderedDict[tuple[int, int], ResizeTaps] = OrderedDict()

    def __call__(self, ops: Ops, frames: Sequence[U8]) -> list[Tensor]:
        """u8[H,W,3] of each camera, not taller than wide -> u8[3,S,S] each, valid until the next
        call. Launched in the current stream: frames in pinned memory must not change until that is
        done."""
        for place, frame in enumerate(frames):
            height, width, _ = frame.shape
            taps = self._taps_of(height, width)
            ops.resize_image(self._fetched(place, frame), taps, self._pixels[place])
        return self._pixels[: len(frames)]

    def _fetched(self, place: int, frame: U8) -> Tensor:
        if self._raw[place].numel() < frame.size:
            self._raw[place] = torch.empty(frame.size, dtype=torch.uint8, device=self._device)
        raw = self._raw[place][: frame.size].view(frame.shape)
        return raw.copy_(torch.from_numpy(frame), non_blocking=True)

    def _taps_of(self, height: int, width: int) -> ResizeTaps:
        key = (height, width)
        if key not in self._taps:
            self._taps[key] = resize_taps(height, width, self._size, self._device)
            if len(self._taps) > SIZES_KEPT:
                self._taps.popitem(last=False)
        self._taps.move_to_end(key)
        return self._taps[key]


def frames_refused(ops: Ops, size: int, device: torch.device) -> str:
    """Why `ops` must not resize frames: a trial of random ones differs from Pillow; '' if it does
    not. It leaves the kernel compiled, for frames of any size."""

    def trial() -> float:
        resizer, random = FrameResizer(1, size, device), np.random.default_rng(0)
        differs = False
        for height, width in ((size + 3, 2 * size), (size // 2, size - 3)):
            frame = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            made = resizer(ops, [frame])[0].permute(1, 2, 0).cpu().numpy()
            differs |= not np.array_equal(made, resize_with_pad(frame, size))
        return float(differs)

    return refused(WHAT, trial)
