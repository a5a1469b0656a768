"""openpi's PyTorch pi0.5, with the transformers that it patches: eager, or compiled by torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

PACKAGES = ("openpi", "torch", "transformers", "jax")
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def load(
    checkpoint: str,
    sizes: Mapping[str, Any],
    device: str,
    dtype: str,
    compile: str,
    num_steps: int,
) -> OpenPi:
    """openpi's PI0Pytorch with the checkpoint's weights."""
    weights = importlib.import_module("peer_weights")
    pi0 = importlib.import_module("openpi.models_pytorch.pi0_pytorch")
    side = sizes["vision"]["image_size"]
    if not weights.is_published(sizes):
        gemma = importlib.import_module("openpi.models_pytorch.gemma_pytorch")
        pi0._gemma.get_config = weights.gemma_sizes(sizes, pi0._gemma.Config)
        for name in ("PaliGemmaForConditionalGeneration", "GemmaForCausalLM"):
            setattr(gemma, name, weights.with_sizes(getattr(gemma, name), sizes))
        prepare = pi0._preprocessing.preprocess_observation_pytorch
        pi0._preprocessing.preprocess_observation_pytorch = partial(
            prepare, image_resolution=(side, side)
        )
    config = SimpleNamespace(
        pi05=True,
        paligemma_variant="gemma_2b",
        action_expert_variant="gemma_300m",
        action_dim=sizes["action_dim"],
        action_horizon=sizes["action_horizon"],
        max_token_len=sizes["max_token_len"],
        dtype=dtype,
        pytorch_compile_mode=compile or None,
    )
    model = pi0.PI0Pytorch(config)
    weights.fill(model, checkpoint)
    return OpenPi(model.to(device).eval(), weights.on_device, device, num_steps)


class OpenPi:
    def __init__(self, model: Any, on_device: Any, device: str, num_steps: int) -> None:
        self._model, self._on_device = model, on_device
        self._device, self._num_steps = torch.device(device), num_steps

    @torch.no_grad()
    def actions(self, arrays: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        given = self._on_device(arrays, self._device)
        observation = SimpleNamespace(
            images=dict(zip(CAMERAS, given["images"].unbind(1), strict=True)),
            image_masks=dict(zip(CAMERAS, given["image_mask"].unbind(1), strict=True)),
            state=torch.zeros(1, given["noise"].shape[2], device=self._device),
            tokenized_prompt=given["tokens"],
            tokenized_prompt_mask=given["token_mask"],
            token_ar_mask=None,
            token_loss_mask=None,
        )
        actions = self._model.sample_actions(
            self._device, observation, noise=given["noise"], num_steps=self._num_steps
        )
        on_host: np.ndarray[Any, Any] = actions[0].float().cpu().numpy()
        return on_host
