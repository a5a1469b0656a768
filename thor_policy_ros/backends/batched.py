"""Several observations in one pass of the plain network, for a server of many clients.

The observations share the weights' traffic and the overhead of every call; each gets what it
would have got alone, to rounding. Cameras that all of them lack and padding beyond the longest
prompt are dropped; what differs between them is masked.

B observations, V cameras, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.model.gemma import Modulation, rope_tables
from thor_policy_ros.model.pi05 import Encoded, Pi05, flow_times
from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.types import F32, Backend, ModelInputs


def can_batch(backend: Backend) -> bool:
    """Whether `sample_batch` takes this engine: those whose network is called as it stands."""
    return type(backend) is PyTorchBackend


@torch.inference_mode()
def sample_batch(
    backend: Backend, inputs: Sequence[ModelInputs], noise: F32, num_steps: int
) -> F32:
    """Normalised actions f32[B,H,32] from noise f32[B,H,32], one row for each of the inputs.

    The thread that owns the backend calls this; prefixes that it holds stay valid. ValueError
    for an engine that `can_batch` refuses, and for noise of another shape.
    """
    if not isinstance(backend, PyTorchBackend) or not can_batch(backend):
        raise ValueError(f"backend {backend.spec.name!r} takes one observation at a time")
    model = backend.model
    wanted = (len(inputs), model.config.action_horizon, model.config.action_dim)
    if noise.shape != wanted or not inputs:
        raise ValueError(f"a batch of {len(inputs)} wants noise {wanted}, got {noise.shape}")
    encoded = _encoded(model, inputs, backend.device)
    x = torch.from_numpy(noise.astype(np.float32)).to(backend.device)
    actions: F32 = _denoised(model, encoded, x, num_steps).cpu().numpy()
    return actions


def _encoded(model: Pi05, inputs: Sequence[ModelInputs], device: torch.device) -> Encoded:
    """Keys and values of the whole batch, without what nobody has."""
    image_mask = np.stack([one.image_mask for one in inputs])
    token_mask = np.stack([one.token_mask for one in inputs])
    cameras = np.flatnonzero(image_mask.any(0))
    length = 1 + int(np.flatnonzero(token_mask.any(0)).max(initial=0))

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return model.prefill(
        tensor(np.stack([in_model_range(one.images[cameras]) for one in inputs])),
        tensor(image_mask[:, cameras]),
        tensor(np.stack([one.tokens[:length] for one in inputs]).astype(np.int64)),
        tensor(token_mask[:, :length]),
    )


def _denoised(model: Pi05, encoded: Encoded, x: Tensor, num_steps: int) -> Tensor:
    """As `Pi05.sample`, with what depends on the time alone computed once for all, and the keys
    and values of the suffix written behind the prefix's instead of joined to them anew."""
    horizon, length = x.shape[1], encoded.pad_mask.shape[1]
    room = (*encoded.keys.shape[:3], length + horizon, encoded.keys.shape[4])
    keys, values = encoded.keys.new_empty(room), encoded.values.new_empty(room)
    keys[..., :length, :], values[..., :length, :] = encoded.keys, encoded.values

    def extend(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys[layer, :, :, length:], values[layer, :, :, length:] = k, v
        return keys[layer], values[layer]

    mask = None
    if not bool(encoded.pad_mask.all()):
        ours = encoded.pad_mask.new_ones(x.shape[:2])
        mask = torch.cat((encoded.pad_mask, ours), 1)[:, None, None]
    positions = encoded.pad_mask.sum(-1, keepdim=True) + torch.arange(horizon, device=x.device)
    rope = rope_tables(positions, model.config.action_expert.head_dim)
    batched = model.modulations(flow_times(num_steps, x.device))
    for step in range(num_steps):
        now = [Modulation(*(part[step : step + 1] for part in one)) for one in batched]
        hidden = model.expert(model.action_in_proj(x).to(model.dtype), now, rope, mask, extend)
        x = torch.sub(x, model.action_out_proj(hidden.float()), alpha=1 / num_steps)
    return x
