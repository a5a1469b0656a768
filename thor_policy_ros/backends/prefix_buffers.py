"""The keys and values of one prefix, with room behind them for the action tokens' own.

P prefix tokens, H action tokens, G kv heads, D head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thor_policy_ros.model.config import Pi05Config


class _Layer(NamedTuple):
    """Views of one layer's buffers, [1,G,H,D] for the suffix and [1,G,P+H,D] for all."""

    suffix_keys: Tensor
    suffix_values: Tensor
    keys: Tensor
    values: Tensor


class PrefixBuffers:
    """Fixed memory that each prefill overwrites. Only valid tokens are stored: there is no mask.

    A denoise step writes its keys and values behind the prefix, so that attention reads one
    block of memory and nothing is concatenated.
    """

    def __init__(self, config: Pi05Config, device: torch.device, dtype: torch.dtype) -> None:
        gemma = config.language
        self._horizon = config.action_horizon
        shape = (
            gemma.depth,
            1,
            gemma.num_kv_heads,
            config.max_prefix_len + config.action_horizon,
            gemma.head_dim,
        )
        self._keys = torch.empty(shape, device=device, dtype=dtype)
        self._values = torch.empty(shape, device=device, dtype=dtype)
        self._all_valid = torch.ones(1, config.max_prefix_len, dtype=torch.bool, device=device)
        self._layers: list[_Layer] = []
        self.length = 0

    def fill(self, cache: list[tuple[Tensor, Tensor]]) -> None:
        """Store each layer's prefix keys and values, [1,G,P,D]."""
        self._resize(cache[0][0].shape[2])
        for layer, (keys, values) in enumerate(cache):
            self._keys[layer, :, :, : self.length].copy_(keys)
            self._values[layer, :, :, : self.length].copy_(values)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the suffix's [1,G,H,D]; returns keys and values of prefix and suffix."""
        views = self._layers[layer]
        views.suffix_keys.copy_(keys)
        views.suffix_values.copy_(values)
        return views.keys, views.values

    @property
    def prefix(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views: keys and values [layers,1,G,P,D], pad_mask bool[1,P] (all true)."""
        used = slice(0, self.length)
        return self._keys[..., used, :], self._values[..., used, :], self._all_valid[:, used]

    def _resize(self, length: int) -> None:
        if length == self.length:
            return
        end = length + self._horizon
        self.length = length
        self._layers = [
            _Layer(k[:, :, length:end], v[:, :, length:end], k[:, :, :end], v[:, :, :end])
            for k, v in zip(self._keys, self._values, strict=True)
        ]
