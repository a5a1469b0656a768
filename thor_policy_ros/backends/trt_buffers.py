"""Memory at fixed addresses that engines read and write, allocated once.

C cameras, N tokens of an image, P prefix tokens of a bucket, H horizon, A action dims, W width,
D head dimension, G kv heads. A bucket's tensor is a contiguous view that begins where the largest
one begins: addresses stay, sizes change with the bucket.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thor_policy_ros.backends.flow_guidance import GuidanceBuffers
from thor_policy_ros.backends.trt_networks import MASKED
from thor_policy_ros.backends.trt_parts import prefix_lengths
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.gemma import Modulation, rope_tables


class PrefixTables:
    """What depends on positions alone. Of all slots, never written."""

    def __init__(self, config: Pi05Config, device: torch.device) -> None:
        self.longest = prefix_lengths(config)[-1]
        positions = torch.arange(self.longest + config.action_horizon, device=device)
        rope = rope_tables(positions[None], config.language.head_dim)
        self.cos, self.sin = rope.cos[0, :, 0].contiguous(), rope.sin[0, :, 0].contiguous()
        masked = torch.full((self.longest,), MASKED, device=device)
        self._valid_then_masked = torch.cat((torch.zeros_like(masked), masked))
        self.all_valid = torch.ones(1, self.longest, dtype=torch.bool, device=device)

    def bias(self, valid: int, length: int) -> Tensor:
        """f32[length]: 0 for the first `valid`, MASKED for the others."""
        begin = self.longest - valid
        return self._valid_then_masked[begin : begin + length]


class PrefixInputs:
    """What one prefill puts together: images in, the embedded prefix out."""

    def __init__(self, config: Pi05Config, device: torch.device, dtype: torch.dtype) -> None:
        size = config.vision.image_size
        self.images = torch.zeros(config.num_cameras, 3, size, size, device=device)
        width = config.language.width
        self.embeddings = torch.zeros(prefix_lengths(config)[-1], width, device=device, dtype=dtype)


class PrefixSlot:
    """Keys and values of one prefix in its bucket, and what attending to it takes.

    valid: tokens that are not padding; length: those of the bucket.
    """

    def __init__(
        self, config: Pi05Config, tables: PrefixTables, device: torch.device, dtype: torch.dtype
    ) -> None:
        gemma, self._tables = config.language, tables
        self._layout = (gemma.depth, gemma.num_kv_heads, gemma.head_dim)
        room = math.prod(self._layout) * tables.longest
        self._keys = torch.zeros(room, device=device, dtype=dtype)
        self._values = torch.zeros(room, device=device, dtype=dtype)
        self._horizon = config.action_horizon
        self._bias = torch.zeros(tables.longest + self._horizon, device=device)
        self.cos = torch.zeros(self._horizon, gemma.head_dim, device=device)
        self.sin = torch.zeros_like(self.cos)
        self.bucket, self.valid, self.length = 0, 0, 0

    def begin(self, bucket: int, valid: int, length: int) -> None:
        """Take a prefix of these sizes: the masks, and the positions of the suffix."""
        self.bucket, self.valid, self.length = bucket, valid, length
        self._bias[:length].copy_(self._tables.bias(valid, length))
        self._bias[length : length + self._horizon].zero_()
        after = slice(valid, valid + self._horizon)
        self.cos.copy_(self._tables.cos[after])
        self.sin.copy_(self._tables.sin[after])

    @property
    def keys(self) -> Tensor:
        """[layers,G,P,D]"""
        return self._in_bucket(self._keys)

    @property
    def values(self) -> Tensor:
        """[layers,G,P,D]"""
        return self._in_bucket(self._values)

    @property
    def prefix_bias(self) -> Tensor:
        """f32[P]"""
        return self._bias[: self.length]

    @property
    def suffix_bias(self) -> Tensor:
        """f32[P+H]"""
        return self._bias[: self.length + self._horizon]

    @property
    def valid_views(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [layers,1,G,valid,D] and pad_mask bool[1,valid], without padding."""
        shown = (kv[:, None, :, : self.valid] for kv in (self.keys, self.values))
        return (*shown, self._tables.all_valid[:, : self.valid])  # type: ignore[return-value]

    def _in_bucket(self, flat: Tensor) -> Tensor:
        depth, groups, dim = self._layout
        return flat[: depth * groups * self.length * dim].view(depth, groups, self.length, dim)


class FlowState:
    """x of the flow, f32[H,A]: noise in, actions out, two places that steps go between."""

    def __init__(self, config: Pi05Config, device: torch.device) -> None:
        shape = (config.action_horizon, config.action_dim)
        self.noise, self.actions, self.velocity = (
            torch.zeros(shape, device=device) for _ in range(3)
        )
        self.places = (torch.zeros(shape, device=device), torch.zeros(shape, device=device))


class StepCount:
    """What N steps take from the time, each in a tensor of its own, and their guidance.

    modulations: of each step, f32[3*(2*layers+1),W]; step: minus its length, f32[1,1].
    """

    def __init__(self, config: Pi05Config, batched: list[Modulation], steps: int) -> None:
        """batched: of every norm in order, f32[N,1,W] each."""
        parts = torch.stack([part[:, 0] for norm in batched for part in norm], 1)
        self.modulations = [rows.clone() for rows in parts]
        self.step = torch.full((1, 1), -1 / steps, device=parts.device)
        self.guidance = GuidanceBuffers(
            steps, config.action_horizon, config.action_dim, parts.device
        )
