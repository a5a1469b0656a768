"""LeRobot's pi05 (0.5 and later), as its policy runs it: eager, or compiled in a mode of torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

PACKAGES = ("lerobot", "torch", "transformers")


def load(
    checkpoint: str,
    sizes: Mapping[str, Any],
    device: str,
    dtype: str,
    compile: str,
    num_steps: int,
) -> LeRobot:
    """The network inside LeRobot's policy, with the checkpoint's weights."""
    weights = importlib.import_module("peer_weights")
    modeling: Any = importlib.import_module("lerobot.policies.pi05.modeling_pi05")
    if not weights.is_published(sizes):
        modeling.get_gemma_config = weights.gemma_sizes(sizes, modeling.GemmaConfig)
        for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
            setattr(modeling, name, weights.with_sizes(getattr(modeling, name), sizes))
    side = sizes["vision"]["image_size"]
    config = modeling.PI05Config(
        chunk_size=sizes["action_horizon"],
        n_action_steps=sizes["action_horizon"],
        max_action_dim=sizes["action_dim"],
        tokenizer_max_length=sizes["max_token_len"],
        image_resolution=(side, side),
        dtype=dtype,
        device=device,
        compile_model=bool(compile),
        compile_mode=compile or "default",
    )
    with torch.device(device):  # its random weights take a CPU minutes
        model = modeling.PI05Pytorch(config)
    weights.fill(model, checkpoint)
    return LeRobot(model.to(device).eval(), weights.on_device, device, num_steps)


class LeRobot:
    def __init__(self, model: Any, on_device: Any, device: str, num_steps: int) -> None:
        self._model, self._on_device = model, on_device
        self._device, self._num_steps = device, num_steps

    @torch.no_grad()
    def actions(self, arrays: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        given = self._on_device(arrays, self._device)
        actions = self._model.sample_actions(
            list(given["images"].unbind(1)),
            list(given["image_mask"].unbind(1)),
            given["tokens"],
            given["token_mask"],
            noise=given["noise"],
            num_steps=self._num_steps,
        )
        on_host: np.ndarray[Any, Any] = actions[0].float().cpu().numpy()
        return on_host
