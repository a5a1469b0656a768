"""How to compute each array that a recording may hold, by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.recording import Recording
from thor_policy_ros.model.pi05 import Encoded, Pi05, time_embedding
from thor_policy_ros.types import ModelInputs, PrefixKV


class FullPath:
    """The model as it is written: padding and masked cameras in, hidden states finished."""

    def __init__(self, model: Pi05, recording: Recording) -> None:
        self._model = model
        self._recording = recording
        self._device = model.action_in_proj.weight.device

    def vision(self, camera: str) -> Tensor:
        return self._model.embed_image(self._recording.images[:, int(camera)].to(self._device))

    def embeddings(self) -> Tensor:
        return self._embedded[0]

    def pad_mask(self) -> Tensor:
        return self._embedded[1]

    def hidden(self) -> Tensor:
        assert self._encoded.hidden is not None
        return self._encoded.hidden

    def keys(self) -> Tensor:
        return self._encoded.keys

    def values(self) -> Tensor:
        return self._encoded.values

    def velocity(self, t: str) -> Tensor:
        keys, values, pad_mask, _ = self._encoded
        at = torch.tensor([float(t)], device=self._device)
        return self._model.denoise_step(self._noise, at, keys, values, pad_mask)

    def actions(self, num_steps: str) -> Tensor:
        return self._model.sample(self._encoded, self._noise, int(num_steps))

    def time_embedding(self, t: str) -> Tensor:
        return time_embedding(torch.tensor([float(t)]), self._model.config.action_expert.width)

    @property
    def _noise(self) -> Tensor:
        return self._recording.noise.to(self._device)

    @cached_property
    def _embedded(self) -> tuple[Tensor, Tensor]:
        r = self._recording
        inputs = (r.images, r.image_mask, r.tokens, r.token_mask)
        return self._model.embed_prefix(*(x.to(self._device) for x in inputs))

    @cached_property
    def _encoded(self) -> Encoded:
        return self._model.encode(*self._embedded, with_hidden=True)


class BackendPath:
    """The pytorch backend's prefix of valid tokens alone, and its actions."""

    def __init__(self, model: Pi05, recording: Recording) -> None:
        self._backend = PyTorchBackend(BACKENDS["pytorch"], model)
        self._recording = recording

    def keys(self) -> Tensor:
        keys: Tensor = self._prefix.keys
        return keys

    def values(self) -> Tensor:
        values: Tensor = self._prefix.values
        return values

    def actions(self, num_steps: str) -> Tensor:
        noise = self._recording.noise[0].numpy()
        return torch.from_numpy(self._backend.denoise(self._prefix, noise, int(num_steps)))[None]

    @cached_property
    def _prefix(self) -> PrefixKV:
        r = self._recording
        inputs = ModelInputs(
            images=r.images[0].numpy(),
            image_mask=r.image_mask[0].numpy(),
            tokens=r.tokens[0].numpy().astype(np.int32),
            token_mask=r.token_mask[0].numpy(),
        )
        return self._backend.prefill(inputs, 0.0)


_FULL: dict[str, Callable[..., Tensor]] = {
    r"vision_(\d+)": FullPath.vision,
    r"prefix_embeddings": FullPath.embeddings,
    r"prefix_pad_mask": FullPath.pad_mask,
    r"prefix_hidden": FullPath.hidden,
    r"prefix_k": FullPath.keys,
    r"prefix_v": FullPath.values,
    r"velocity_t([\d.]+)": FullPath.velocity,
    r"actions_(\d+)_steps": FullPath.actions,
    r"time_embedding_t([\d.]+)": FullPath.time_embedding,
}
_BACKEND: dict[str, Callable[..., Tensor]] = {
    r"prefix_k": BackendPath.keys,
    r"prefix_v": BackendPath.values,
    r"actions_(\d+)_steps": BackendPath.actions,
}
PREFIX_AXIS = {"prefix_embeddings": 1, "prefix_hidden": 1, "prefix_k": 3, "prefix_v": 3}
"""Arrays with one row per prefix token, and the axis of the tokens."""


def computed_arrays(
    name: str, full: FullPath, backend: BackendPath
) -> Iterator[tuple[str, Tensor]]:
    """(label, array) for each way of computing the recorded array `name`.

    Arrays with a prefix axis come with the valid tokens alone. ValueError for a name that
    this version cannot compute.
    """
    compute, arguments = _find(_FULL, name)
    if compute is None:
        raise ValueError(
            f"the recorded array {name!r} is not one that this version can compute; it knows"
            f" the names {', '.join(_FULL)}"
        )
    yield name, valid_rows(name, compute(full, *arguments), full.pad_mask())
    compute, arguments = _find(_BACKEND, name)
    if compute is not None:
        yield f"{name} (backend)", compute(backend, *arguments)


def valid_rows(name: str, array: Tensor, pad_mask: Tensor) -> Tensor:
    """Drop the rows of padding and masked cameras, where `name` has a prefix axis."""
    if name not in PREFIX_AXIS:
        return array
    valid = pad_mask[0].nonzero().flatten().to(array.device)
    return array.index_select(PREFIX_AXIS[name], valid)


def _find(
    table: dict[str, Callable[..., Tensor]], name: str
) -> tuple[Callable[..., Tensor] | None, tuple[str, ...]]:
    for pattern, compute in table.items():
        match = re.fullmatch(pattern, name)
        if match:
            return compute, match.groups()
    return None, ()
