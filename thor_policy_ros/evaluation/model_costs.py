"""FLOPs and bytes of one frame of pi0.5, from its sizes alone.

What the backends compute is counted: only present cameras and real prompt tokens, keys and
values alone in the last prefix layer, and modulations read as constants instead of computed.
Letters: T tokens, W width, P prefix tokens, H horizon, G kv heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from thor_policy_ros.model.config import GemmaConfig, Pi05Config, VisionConfig

ACTIVATION_BYTES = 2  # bfloat16
FLOAT32_BYTES = 4  # norms, patch embedding and the action projections stay float32


@dataclass(frozen=True)
class Part:
    """One part of the network, run `count` times with weights of its own each time.

    linear_flops, weights: of the matrices that a low-precision engine would quantise;
    other_flops: attention, and the small float32 projections; other_bytes: what is read and
    written besides those weights (activations at the part's boundary, biases, K and V).
    What happens inside a part is taken to stay on the chip.
    """

    name: str
    count: int
    linear_flops: int = 0
    other_flops: int = 0
    weights: int = 0
    other_bytes: int = 0

    @property
    def flops(self) -> int:
        """Of one run."""
        return self.linear_flops + self.other_flops


@dataclass(frozen=True)
class FrameCosts:
    """The parts of a frame's stages; `denoise_step` is run `num_steps` times."""

    prefix_tokens: int
    num_steps: int
    vision: tuple[Part, ...]
    prefill: tuple[Part, ...]
    denoise_step: tuple[Part, ...]


def frame_costs(config: Pi05Config, cameras: int, prompt_tokens: int, num_steps: int) -> FrameCosts:
    """Costs of one frame without reuse. ValueError for counts that the config cannot have."""
    for name, count, most in (
        ("cameras", cameras, config.num_cameras),
        ("prompt tokens", prompt_tokens, config.max_token_len),
    ):
        if not 1 <= count <= most:
            raise ValueError(f"wanted 1 to {most} {name} for this config, got {count}")
    if num_steps < 1:
        raise ValueError(f"wanted at least 1 denoise step, got {num_steps}")
    prefix = cameras * config.vision.num_tokens + prompt_tokens
    return FrameCosts(
        prefix_tokens=prefix,
        num_steps=num_steps,
        vision=_vision(config.vision, config.language.width, cameras),
        prefill=prefill_parts(config.language, prefix, prompt_tokens),
        denoise_step=_denoise_step(config, prefix),
    )


def _vision(config: VisionConfig, out_width: int, cameras: int) -> tuple[Part, ...]:
    tokens, width, hidden = cameras * config.num_tokens, config.width, config.mlp_dim
    pixels = 3 * config.patch_size**2
    x = tokens * width
    return (
        Part(
            "patch embedding",
            1,
            other_flops=2 * x * pixels,
            other_bytes=FLOAT32_BYTES * (width * (pixels + 1 + config.num_tokens) + tokens * pixels)
            + ACTIVATION_BYTES * x,
        ),
        Part(
            "layer: projections",
            config.depth,
            linear_flops=8 * x * width,
            weights=4 * width**2,
            other_bytes=ACTIVATION_BYTES * (6 * x + 6 * width),
        ),
        Part(
            "layer: attention",
            config.depth,
            other_flops=4 * x * config.num_tokens,
            other_bytes=ACTIVATION_BYTES * 4 * x,
        ),
        Part(
            "layer: MLP",
            config.depth,
            linear_flops=4 * x * hidden,
            weights=2 * width * hidden,
            other_bytes=ACTIVATION_BYTES * (2 * x + hidden + 3 * width),
        ),
        Part(
            "projector",
            1,
            linear_flops=2 * x * out_width,
            weights=width * out_width,
            other_bytes=ACTIVATION_BYTES * (x + tokens * out_width + out_width + 2 * width),
        ),
    )


def prefill_parts(config: GemmaConfig, prefix: int, prompt_tokens: int) -> tuple[Part, ...]:
    """The language model over `prefix` tokens, `prompt_tokens` of which are looked up."""
    norm = FLOAT32_BYTES * config.width
    x = prefix * config.width
    kv = 2 * config.num_kv_heads * config.head_dim
    last = Part(
        "last layer: K, V",
        1,
        linear_flops=2 * x * kv,
        weights=config.width * kv,
        other_bytes=norm + ACTIVATION_BYTES * (x + prefix * kv),
    )
    embedding = ACTIVATION_BYTES * 2 * prompt_tokens * config.width
    layers = _gemma_layers(config, config.depth - 1, prefix, prefix, norm)
    return (Part("token embedding", 1, other_bytes=embedding), *layers, last)


def _denoise_step(config: Pi05Config, prefix: int) -> tuple[Part, ...]:
    expert, horizon = config.action_expert, config.action_horizon
    # Scale and shift in float32, the gate in bfloat16.
    modulation = (2 * FLOAT32_BYTES + ACTIVATION_BYTES) * expert.width
    x, actions = horizon * expert.width, horizon * config.action_dim
    projection = config.action_dim * expert.width
    into = FLOAT32_BYTES * (projection + expert.width + actions) + ACTIVATION_BYTES * x
    out = FLOAT32_BYTES * (projection + config.action_dim + 2 * actions) + ACTIVATION_BYTES * x
    return (
        Part("actions in", 1, other_flops=2 * horizon * projection, other_bytes=into),
        *_gemma_layers(expert, expert.depth, horizon, prefix + horizon, modulation),
        Part("actions out", 1, other_flops=2 * horizon * projection, other_bytes=modulation + out),
    )


def _gemma_layers(
    config: GemmaConfig, count: int, tokens: int, keys: int, norm_bytes: int
) -> tuple[Part, ...]:
    """`tokens` queries over `keys` keys; norm_bytes: parameters of one norm."""
    x = tokens * config.width
    heads = config.num_heads * config.head_dim
    kv = 2 * config.num_kv_heads * config.head_dim
    return (
        Part(
            "layer: projections",
            count,
            linear_flops=2 * x * (2 * heads + kv),
            weights=config.width * (2 * heads + kv),
            other_bytes=norm_bytes + ACTIVATION_BYTES * (2 * x + tokens * (2 * heads + kv)),
        ),
        Part(
            "layer: attention",
            count,
            other_flops=4 * tokens * keys * heads,
            other_bytes=ACTIVATION_BYTES * (2 * tokens * heads + keys * kv),
        ),
        Part(
            "layer: MLP",
            count,
            linear_flops=6 * x * config.mlp_dim,
            weights=3 * config.width * config.mlp_dim,
            other_bytes=norm_bytes + ACTIVATION_BYTES * 2 * x,
        ),
    )
