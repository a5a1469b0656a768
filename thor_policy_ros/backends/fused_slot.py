"""The fixed memory of one prefix: what a frame's inputs are copied to, and what is made of them.

V cameras, v present ones, N tokens of an image, W width of the prefix,
R rows of a cache (the longest prefix and the horizon), G kv heads, D head dim.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thor_policy_ros.backends.fused_frames import FrameResizer
from thor_policy_ros.backends.fused_network import LayerKV, Place
from thor_policy_ros.backends.fused_weights import FusedModel
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.weights import CameraImages, rope_halves
from thor_policy_ros.model.image_memory import pinned_address
from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.types import F32, I32, U8

PROMPTS_KEPT = 16


class HostArray:
    """Numbers that the host and launched programs share: on a GPU in pinned memory, which programs
    reach by themselves. (A copy by a call of its own took 70 us of the host's time, for an image.)
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        on_gpu = device.type == "cuda"
        self.tensor = torch.zeros(shape, dtype=dtype, pin_memory=on_gpu)
        self._array = self.tensor.numpy()
        self._used = torch.cuda.Event() if on_gpu else None

    def array(self) -> npt.NDArray[Any]:
        """The host's again: what was launched to use it is done."""
        if self._used is not None:
            self._used.synchronize()
        return self._array

    def launched(self) -> None:
        """What uses it has been launched."""
        if self._used is not None:
            self._used.record()


class EmbeddedPrompts:
    """Embeddings of the instructions met last, [n,W] each: a repeated one is not looked up."""

    def __init__(self, embed: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._embed = embed
        self._device = device
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, tokens: I32) -> Tensor:
        key = tokens.tobytes()
        if key not in self._kept:
            self._kept[key] = self._embed(self._on_device(tokens))
            if len(self._kept) > PROMPTS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _on_device(self, tokens: I32) -> Tensor:
        host = torch.from_numpy(tokens.astype(np.int64))
        if self._device.type != "cuda":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)


class Slot:
    """One prefix. `images` and `embeddings` are its inputs, `place` holds its keys and values.

    padded: whether programs of fixed sizes run on it, which see whole buffers; otherwise they
    see what is valid alone. in_place: whether they read images at their addresses, pixels too.
    """

    def __init__(self, model: FusedModel, padded: bool, in_place: bool = False) -> None:
        config, device = model.config, model.device
        vision, gemma, rows = config.vision, config.language, config.max_prefix_len
        self._model = model
        self._padded = padded
        self._horizon = config.action_horizon
        size = vision.image_size
        self.embeddings = torch.zeros(rows, gemma.width, device=device, dtype=model.dtype)
        own = HostArray((config.num_cameras, 3, size, size), device)
        self._own = own.array()
        self._addresses = HostArray((1 + config.num_cameras,), device, torch.int64)
        self._held: object = None
        self._resizer = FrameResizer(config.num_cameras, size, device) if in_place else None
        self.images = CameraImages(own.tensor, self._addresses.tensor if in_place else None)
        shape = (gemma.depth, 1, gemma.num_kv_heads, rows + self._horizon, gemma.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=model.dtype)
        self.values = torch.zeros(shape, device=device, dtype=model.dtype)
        self._all_valid = torch.ones(1, rows, dtype=torch.bool, device=device)
        self._length_on_device = torch.zeros(1, dtype=torch.int32, device=device)
        self._zero = torch.zeros(1, dtype=torch.int32, device=device)
        self._rope = rope_halves(rows + self._horizon, gemma.head_dim, device)
        self._prompt: tuple[int, bytes] = (0, b"")
        self.length = 0
        self._set_length(1)

    @property
    def prefix(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views: keys and values [layers,1,G,P,D], pad_mask bool[1,P] (all true)."""
        used = slice(0, self.length)
        return self.keys[..., used, :], self.values[..., used, :], self._all_valid[:, used]

    def put_images(self, images: U8 | F32, present: Sequence[int]) -> None:
        """Say where those of [V,3,S,S] that are present lie, or copy them where the device does not
        reach them. They must not change until what reads them is done."""
        reached = None if self.images.addresses is None else pinned_address(images)
        addresses = self._addresses.array()  # what reads the last frame's images is done
        self._held = None if reached is None else images
        if reached is None:
            for place, index in enumerate(present):
                self._own[place] = in_model_range(images[index])
            images, present = self._own, range(len(present))
            reached = self._own.ctypes.data
        addresses[0] = images.dtype == np.uint8
        for place, index in enumerate(present):
            addresses[1 + place] = reached + index * images.strides[0]

    def put_frames(self, ops: Ops, frames: Sequence[U8 | None], present: Sequence[int]) -> None:
        """As `put_images`, for frames u8[H,W,3] that the device resizes."""
        if self._resizer is None:
            raise ValueError("this engine wants images of the model's size, got camera frames")
        seen = [frame for i in present if (frame := frames[i]) is not None]
        if len(seen) != len(present):
            raise ValueError(f"wanted a frame of each of {len(present)} cameras, got {len(seen)}")
        addresses = self._addresses.array()
        self._held = seen
        addresses[0] = 1
        for place, pixels in enumerate(self._resizer(ops, seen), 1):
            addresses[place] = pixels.data_ptr()

    def launched(self) -> None:
        """What reads the images has been launched."""
        self._addresses.launched()

    def put_prompt(self, tokens: I32, cameras: int, embedded: EmbeddedPrompts) -> None:
        """Place the prompt behind the tokens of `cameras` images, unless it is there already."""
        key = (cameras, tokens.tobytes())
        if key == self._prompt:
            return
        begin = cameras * self._model.config.vision.num_tokens
        end = begin + len(tokens)
        self.embeddings[begin:end].copy_(embedded(tokens))
        self._set_length(end)
        self._prompt = key

    def _set_length(self, length: int) -> None:
        """Of the valid prefix; programs of fixed sizes read it on the device."""
        if length == self.length:
            return
        self.length = length
        self._length_on_device.fill_(length)
        rows = self.keys.shape[3] if self._padded else length
        behind = self.keys.shape[3] if self._padded else length + self._horizon
        self.place = self._place(rows)
        self.extended = self._place(behind)

    def _place(self, rows: int) -> Place:
        layers: list[LayerKV] = [
            (keys[0, :, :rows], values[0, :, :rows])
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        whole = self.keys, self.values
        return Place(layers, self._length_on_device, *self._rope, self._zero, *whole)
