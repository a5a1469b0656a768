"""An auxiliary head that points at the object the words name. Training only: never exported.

Without it language grounding comes late: the flow loss alone says little about which of
three objects was meant.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointingHead(nn.Module):
    """From hidden image tokens: where the named object's centre is, and how it moves.

    Each patch gives a score, the centre's place within it, and the object's velocity.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.score = nn.Linear(width, 1)
        self.detail = nn.Linear(width, 4)

    def loss(self, hidden: Tensor, target_uv: Tensor, velocity: Tensor) -> Tensor:
        """Mean loss over cameras that see the object.

        hidden: f32[B,V,N,W] of the image tokens; target_uv: f32[B,V,2] in [0,1], NaN or
        outside where not in view; velocity: f32[B,2], about 1 in size.
        """
        seen = ((target_uv >= 0) & (target_uv < 1)).all(-1)
        place = torch.where(seen[..., None], target_uv, 0.0) * self.grid
        column, row = place.floor().unbind(-1)
        patch = (row * self.grid + column).long()
        scores = self.score(hidden).flatten(2).flatten(0, 1)
        where = F.cross_entropy(scores, patch.flatten(), reduction="none")
        chosen = patch[..., None, None].expand(*patch.shape, 1, hidden.shape[-1])
        detail = self.detail(hidden.gather(2, chosen).squeeze(2))
        motion = velocity[:, None].expand(*patch.shape, 2)
        wanted = torch.cat((place - place.floor() - 0.5, motion), -1)
        apart = (detail - wanted).square().sum(-1).flatten()
        weight = seen.flatten().float()
        return ((where + apart) * weight).sum() / weight.sum().clamp(min=1)
