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
    image_mask = np.stack([one.image_mask for one in inputs])
    token_mask = np.stack([one.token_mask for one in inputs])
    cameras = np.flatnonzero(image_mask.any(0))
    length = 1 + int(np.flatnonzero(token_mask.any(0)).max(initial=0))

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(backend.device)

    encoded = model.prefill(
        tensor(np.stack([one.images[cameras] for one in inputs])),
        tensor(image_mask[:, cameras]),
        tensor(np.stack([one.tokens[:length] for one in inputs]).astype(np.int64)),
        tensor(token_mask[:, :length]),
    )
    actions: F32 = model.sample(encoded, tensor(noise.astype(np.float32)), num_steps).cpu().numpy()
    return actions
