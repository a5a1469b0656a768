"""The vision tokens of each camera, kept from one prefix to the next where nothing new is seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.types import F32, Bool, ModelInputs

Embed = Callable[[F32], Tensor]
"""f32[v,3,S,S], some cameras' images -> their tokens on the device, [v,N,W]."""


class VisionTokens:
    """Holds what the last prefix was made of, by camera. Belongs to one engine."""

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def forget(self) -> None:
        self._held.clear()

    def of(self, inputs: ModelInputs, embed: Embed, keep: Bool | None = None) -> Tensor:
        """Tokens of the cameras that are present, [v*N,W], one after the other.

        keep: bool[V], cameras whose images are not looked at. Raises ValueError for one that
        the prefix before did not hold.
        """
        present = np.flatnonzero(inputs.image_mask).tolist()
        kept = [] if keep is None else [i for i in present if keep[i]]
        held, self._held = self._held, {}
        unknown = [i for i in kept if i not in held]
        if unknown:
            raise ValueError(
                f"cameras {unknown} are to be kept, but the prefix before held"
                f" {sorted(held)}; prefill without keeping them"
            )
        fresh = [i for i in present if i not in kept]
        if fresh == present:
            tokens = embed(in_model_range(inputs.images[fresh]))
            self._held = dict(zip(fresh, tokens.unbind(), strict=True))
            return tokens.flatten(0, 1)
        if fresh:
            tokens = embed(in_model_range(inputs.images[fresh]))
            held |= dict(zip(fresh, tokens.unbind(), strict=True))
        self._held = {i: held[i] for i in present}
        return torch.cat([self._held[i] for i in present])
