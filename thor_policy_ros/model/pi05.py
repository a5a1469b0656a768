"""pi0.5: images and words become keys and values, from which noise is turned into actions.

Letters: B batch, V cameras, S image size, N tokens of an image, L prompt tokens,
P = V*N + L prefix tokens, H horizon, A action dims of the model (32), D head dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.gemma import Expert, Modulation, Prefix, rope_tables
from thor_policy_ros.model.siglip import Siglip

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0

# As in the original, these stay float32 in a bfloat16 model: they are small, and the
# modulations and the Euler state are sensitive to rounding.
FLOAT32_PARTS = (
    "vision.patch_embedding.",
    "vision.position_embedding",
    "layernorm.",
    "norm.",
    "action_in_proj.",
    "action_out_proj.",
    "time_mlp_in.",
    "time_mlp_out.",
)


class Encoded(NamedTuple):
    """The encoded prefix of a batch.

    keys, values: [layers,B,G,P,D], RoPE in keys; pad_mask: bool[B,P], true where a token
    is valid (rows of other tokens carry no meaning); hidden: [B,P,W] after the final norm,
    or None where it was not asked for.
    """

    keys: Tensor
    values: Tensor
    pad_mask: Tensor
    hidden: Tensor | None


def stays_float32(parameter: str) -> bool:
    """Whether this parameter of Pi05 stays float32 when the rest is bfloat16."""
    if parameter.startswith("vision.layers.") or parameter.startswith("vision.post_layernorm."):
        return False
    return any(part in parameter for part in FLOAT32_PARTS)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sine and cosine of t [B] at periods from 4e-3 to 4, computed in float64: f32[B,width]."""
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=t.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = (2 * math.pi / period) * t.double()[:, None]
    return torch.cat((angle.sin(), angle.cos()), -1).float()


def flow_times(num_steps: int, device: torch.device) -> Tensor:
    """The times of Euler's steps, f32[num_steps]: 1, 1 - 1/N, ..., 1/N.

    Summed up step by step in float32, as the original does: the shortest period is 4e-3, so
    a rounding of t shows. Ten recorded steps are met to 5e-7 instead of 3e-5.
    """
    dt = torch.tensor(-1 / num_steps)
    times = [torch.tensor(1.0)]
    for _ in range(num_steps - 1):
        times.append(times[-1] + dt)
    return torch.stack(times).to(device)


def positions_of(pad_mask: Tensor) -> Tensor:
    """bool[B,P] -> int[B,P]: valid tokens are counted from 0, padding is skipped."""
    return pad_mask.long().cumsum(-1) - 1


class Pi05(nn.Module):
    """The network. Weights random until `checkpoint.load_pi05`; trainable from scratch."""

    def __init__(self, config: Pi05Config) -> None:
        super().__init__()
        self.config = config
        width = config.action_expert.width
        self.vision = Siglip(config.vision)
        self.projector = nn.Linear(config.vision.width, config.language.width)
        self.language = Prefix(config.language, config.vocab_size)
        self.expert = Expert(config.action_expert)
        self.action_in_proj = nn.Linear(config.action_dim, width)
        self.action_out_proj = nn.Linear(width, config.action_dim)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.expert.layers[0].self_attn.o_proj.weight.dtype  # type: ignore[union-attr,return-value]

    def embed_image(self, images: Tensor) -> Tensor:
        """images: f32[B,3,S,S] in [-1,1] -> image tokens [B,N,W]. ValueError for pixels."""
        if not images.is_floating_point():
            raise ValueError(
                f"wanted images as float32 in [-1,1], got {images.dtype}:"
                " `model.pixels.in_model_range` turns pixels into them"
            )
        tokens: Tensor = self.projector(self.vision(images))
        return tokens

    def embed_prefix(
        self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """images f32[B,V,3,S,S], image_mask bool[B,V], tokens int[B,L], token_mask bool[B,L].

        Returns embeddings [B,P,W] and pad_mask bool[B,P].
        """
        image_tokens = self.embed_image(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        seen = image_mask[:, :, None].expand(image_tokens.shape[:3]).flatten(1)
        embeddings = torch.cat((image_tokens.flatten(1, 2), self.language.embed(tokens)), 1)
        return embeddings, torch.cat((seen, token_mask), 1)

    def encode(self, embeddings: Tensor, pad_mask: Tensor, with_hidden: bool = False) -> Encoded:
        """Run the prefix over embeddings [B,P,W]; `with_hidden` also finishes the last layer."""
        rope = rope_tables(positions_of(pad_mask), self.config.language.head_dim)
        mask = pad_mask[:, None, None]
        hidden = None
        if with_hidden:
            hidden, cache = self.language.encode(embeddings, rope, mask)
        else:
            cache = self.language.encode_keys_values(embeddings, rope, mask)
        keys, values = (torch.stack(x) for x in zip(*cache, strict=True))
        return Encoded(keys, values, pad_mask, hidden)

    def prefill(
        self,
        images: Tensor,
        image_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        with_hidden: bool = False,
    ) -> Encoded:
        """Encode images and prompt: `embed_prefix`, then `encode`."""
        embeddings, pad_mask = self.embed_prefix(images, image_mask, tokens, token_mask)
        return self.encode(embeddings, pad_mask, with_hidden)

    def time_condition(self, t: Tensor) -> Tensor:
        """t: f32[B] -> the condition of every adaptive norm, f32[B,expert width]."""
        embedded = time_embedding(t, self.config.action_expert.width)
        hidden = F.silu(self.time_mlp_in(embedded.to(self.time_mlp_in.weight.dtype)))
        return F.silu(self.time_mlp_out(hidden))

    def modulations(self, t: Tensor) -> list[Modulation]:
        """t: f32[B] -> all that a denoise step takes from the time; constant for fixed t.

        t may be f32[B,H], a time for each row: then the modulations are [B,H,W].
        """
        if t.ndim == 1:
            return self.expert.modulations(self.time_condition(t))
        flat = self.expert.modulations(self.time_condition(t.flatten()))
        return [Modulation(*(part.view(*t.shape, -1) for part in parts)) for parts in flat]

    def denoise_step(
        self, x_t: Tensor, t: Tensor, keys: Tensor, values: Tensor, pad_mask: Tensor
    ) -> Tensor:
        """Velocity of the flow at time t (t=1 is noise, t=0 the action).

        x_t: f32[B,H,A], normalised; keys, values: [layers,B,G,P,D]; pad_mask: bool[B,P].
        t: f32[B], or f32[B,H] where rows differ: 0 for those given as they are, to a model that
        was trained to continue such a prefix. Returns f32[B,H,A].
        """
        horizon = x_t.shape[1]
        suffix_mask = pad_mask.new_ones(pad_mask.shape[0], horizon)
        offsets = torch.arange(horizon, device=x_t.device)
        positions = pad_mask.sum(-1, keepdim=True) + offsets
        mask = torch.cat((pad_mask, suffix_mask), 1)[:, None, None]

        def extend(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat((keys[layer], k), 2), torch.cat((values[layer], v), 2)

        hidden = self.expert(
            self.action_in_proj(x_t).to(self.dtype),
            self.modulations(t),
            rope_tables(positions, self.config.action_expert.head_dim),
            mask,
            extend,
        )
        velocity: Tensor = self.action_out_proj(hidden.to(self.action_out_proj.weight.dtype))
        return velocity

    def sample(self, encoded: Encoded, noise: Tensor, num_steps: int) -> Tensor:
        """Euler's rule from noise f32[B,H,A] at t=1 to actions at t=0, both normalised."""
        x = noise
        for t in flow_times(num_steps, noise.device):
            times = t.expand(x.shape[0])
            velocity = self.denoise_step(x, times, encoded.keys, encoded.values, encoded.pad_mask)
            x = x - velocity / num_steps
        return x

    def velocity(self, encoded: Encoded, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocities of K noise draws per prefix, with gradients into prefix and expert.

        encoded: from `prefill` of B observations; x_t: f32[B,K,H,A]; t: f32[B,K] or, by row,
        f32[B,K,H]. Returns f32[B,K,H,A].
        """
        draws = x_t.shape[1]
        keys = encoded.keys.repeat_interleave(draws, 1)
        values = encoded.values.repeat_interleave(draws, 1)
        pad_mask = encoded.pad_mask.repeat_interleave(draws, 0)
        v = self.denoise_step(x_t.flatten(0, 1), t.flatten(0, 1), keys, values, pad_mask)
        return v.unflatten(0, x_t.shape[:2])
