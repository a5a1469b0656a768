"""Engines that are almost the policy: the pytorch backend with one defect each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.model.gemma import rope_tables
from thor_policy_ros.model.pi05 import Encoded, Pi05, positions_of
from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.model.transforms import resized
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.types import F32, Guidance, ModelInputs, PrefixKV

Fault = Callable[[UnifiedPolicy], None]


class PaddedEngine:
    """Encodes padding and missing cameras too and masks them, as engines of fixed shapes do.

    masked: false forgets the mask, which is the fault.
    """

    def __init__(self, backend: PyTorchBackend, masked: bool) -> None:
        assert isinstance(backend._model, Pi05)
        self.spec, self.dtype = backend.spec, backend.dtype
        self._model, self._masked = backend._model, masked

    @torch.inference_mode()
    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        images = in_model_range(inputs.images)
        given = (images, inputs.image_mask, inputs.tokens.astype(np.int64))
        arrays = (torch.from_numpy(array)[None] for array in (*given, inputs.token_mask))
        embeddings, pad_mask = self._model.embed_prefix(*arrays)
        encoded = self._model.encode(embeddings, pad_mask)
        if not self._masked:
            encoded = self._without_mask(embeddings, pad_mask)
        return PrefixKV(encoded.keys, encoded.values, pad_mask, observed_at_s, 1)

    def _without_mask(self, embeddings: Tensor, pad_mask: Tensor) -> Encoded:
        """Right positions, but attention sees every token."""
        language = self._model.language
        rope = rope_tables(positions_of(pad_mask), language.head_dim)
        cache = language.encode_keys_values(embeddings, rope, None)
        return Encoded(*(torch.stack(x) for x in zip(*cache, strict=True)), pad_mask, None)

    @torch.inference_mode()
    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        encoded = Encoded(prefix.keys, prefix.values, prefix.pad_mask, None)
        sampled = self._model.sample(encoded, torch.from_numpy(noise)[None], num_steps)
        actions: F32 = sampled[0].numpy()
        return actions

    def close(self) -> None:
        del self._model


def padded(policy: UnifiedPolicy) -> None:
    """No fault: another way to compute the same."""
    policy.backend = PaddedEngine(policy.backend, masked=True)


def mask_dropped(policy: UnifiedPolicy) -> None:
    policy.backend = PaddedEngine(policy.backend, masked=False)


def layer_shuffled(policy: UnifiedPolicy) -> None:
    """The rows of one projection of one prefix layer change places."""
    weight = _model(policy).language.layers[0].mlp.gate_up_proj.weight
    order = torch.randperm(weight.shape[0], generator=torch.Generator().manual_seed(0))
    weight.data = weight.data[order]


def expert_layer_shuffled(policy: UnifiedPolicy) -> None:
    """The same in the action expert: keys and values stay right, actions do not."""
    weight = _model(policy).expert.layers[0].self_attn.qkv_proj.weight
    order = torch.randperm(weight.shape[0], generator=torch.Generator().manual_seed(0))
    weight.data = weight.data[order]


def keys_scaled(policy: UnifiedPolicy) -> None:
    """Every layer's keys are 5 % too large: invisible to cosine."""

    def scaled(prefix: PrefixKV) -> PrefixKV:
        prefix.keys.mul_(1.05)
        return prefix

    _change_prefix(policy, scaled)


def norm_plus_one_forgotten(policy: UnifiedPolicy) -> None:
    """Gemma's RMSNorm multiplies by (1 + weight); one norm multiplies by weight."""
    norm = _model(policy).language.layers[1].input_layernorm
    norm.weight.data -= 1.0


def nan_in_one_position(policy: UnifiedPolicy) -> None:
    def broken(prefix: PrefixKV) -> PrefixKV:
        prefix.values[-1, 0, 0, 3, 0] = float("nan")
        return prefix

    _change_prefix(policy, broken)


def one_token_misplaced(policy: UnifiedPolicy) -> None:
    """The last prompt token's keys are those of the first image token."""

    def misplaced(prefix: PrefixKV) -> PrefixKV:
        prefix.keys[:, :, :, -1] = prefix.keys[:, :, :, 0]
        return prefix

    _change_prefix(policy, misplaced)


def prefix_too_short(policy: UnifiedPolicy) -> None:
    _change_prefix(policy, lambda kv: replace(kv, pad_mask=kv.pad_mask[:, :-1], **_short(kv)))


def actions_constant(policy: UnifiedPolicy) -> None:
    """The same actions, whatever was seen: those of the first frame."""
    denoise, first = policy.backend.denoise, []

    def constant(prefix: PrefixKV, noise: F32, num_steps: int) -> F32:
        first.append(denoise(prefix, noise, num_steps))
        return first[0]

    policy.backend.denoise = constant


def one_step_more(policy: UnifiedPolicy) -> None:
    denoise = policy.backend.denoise
    policy.backend.denoise = lambda kv, noise, n: denoise(kv, noise, n + 1)


def one_step_less(policy: UnifiedPolicy) -> None:
    denoise = policy.backend.denoise
    policy.backend.denoise = lambda kv, noise, n: denoise(kv, noise, max(n - 1, 1))


def stale_prefix(policy: UnifiedPolicy) -> None:
    """Keys and values are right, but denoising reads those of the frame before."""
    backend, held = policy.backend, []
    prefill, denoise = backend.prefill, backend.denoise
    last: list[ModelInputs] = []

    def remember(inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        held.append(inputs)
        last[:] = held[-2:-1] or held[-1:]
        prefix = prefill(inputs, observed_at_s)
        copied = (t.clone() for t in (prefix.keys, prefix.values, prefix.pad_mask))
        return PrefixKV(*copied, observed_at_s, prefix.generation)

    def with_stale(prefix: PrefixKV, noise: F32, num_steps: int) -> F32:
        return denoise(prefill(last[0], 0.0), noise, num_steps)

    backend.prefill, backend.denoise = remember, with_stale


def one_row_missing(policy: UnifiedPolicy) -> None:
    """One action row is missing."""
    denoise = policy.backend.denoise
    policy.backend.denoise = lambda kv, noise, n: denoise(kv, noise, n)[:-1]


def _short(kv: PrefixKV) -> dict[str, Tensor]:
    return {"keys": kv.keys[..., :-1, :], "values": kv.values[..., :-1, :]}


def _model(policy: UnifiedPolicy) -> Pi05:
    model = policy.backend._model
    assert isinstance(model, Pi05)
    return model


def _change_prefix(policy: UnifiedPolicy, change: Callable[[PrefixKV], PrefixKV]) -> None:
    prefill = policy.backend.prefill
    policy.backend.prefill = lambda inputs, at_s: _changed(prefill(inputs, at_s), change)


@torch.inference_mode()
def _changed(prefix: PrefixKV, change: Callable[[PrefixKV], PrefixKV]) -> PrefixKV:
    return change(prefix)


def resizing(backend: PyTorchBackend, fault: str = "") -> None:
    """It takes camera frames, and resizes them; fault: 'swapped' or 'black' ones."""
    plain, size = backend.prefill, backend.model.config.vision.image_size

    def prefill(inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        if inputs.frames:
            frames = inputs.frames[::-1] if fault == "swapped" else inputs.frames
            images = resized(frames, size) * np.uint8(fault != "black")
            inputs = replace(inputs, images=images, frames=())
        return plain(inputs, observed_at_s)

    backend.prefill = prefill  # type: ignore[method-assign]
    backend.resizes_frames = True  # type: ignore[attr-defined]
