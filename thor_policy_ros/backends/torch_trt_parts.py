"""The three networks of `trt_networks` as modules that torch.export turns into one graph each.

Inputs and outputs have the names and shapes that they have there, so the same buffers serve both.
Letters: C images, N tokens of an image, P tokens of the prefix, H horizon, A action dims of the
model, W width, D head dimension, G kv heads. C and P stay open within bounds: one graph, with one
copy of the weights, for every bucket.

Norms and attention are decomposed here into plain operations with float32 norms and softmax.
Left to Torch-TensorRT, softmax would be computed in bfloat16, 2.11 would refuse queries that are
not shaped like their keys, and by default a bias would be taken for a causal mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from thor_policy_ros.backends.trt_parts import prefix_lengths
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.gemma import Modulation, Rope
from thor_policy_ros.model.pi05 import Pi05


class Vision(nn.Module):
    """images f32[C,3,S,S] in [-1,1] -> image tokens [C*N,W of the language]."""

    def __init__(self, model: Pi05) -> None:
        super().__init__()
        self.vision = model.vision
        self.projector = model.projector

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.projector(self.vision(images)).flatten(0, 1)
        return tokens


class PrefixKeysValues(nn.Module):
    """embeddings [P,W], cos and sin f32[P,D], bias f32[P] -> keys, values [layers,G,P,D].

    Of the last layer only keys and values are computed: nothing else of it is used.
    """

    def __init__(self, model: Pi05) -> None:
        super().__init__()
        self.language = model.language

    def forward(
        self, embeddings: Tensor, cos: Tensor, sin: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        mask = bias.to(embeddings.dtype)[None, None, None]
        cache = self.language.encode_keys_values(embeddings[None], _rope(cos, sin), mask)
        keys, values = (torch.cat(x) for x in zip(*cache, strict=True))
        return keys, values


class DenoiseStep(nn.Module):
    """x f32[H,A] and minus the step's length, f32[1,1] -> next_x and velocity, f32[H,A] each.

    Also taken: modulations f32[3*(2*layers+1),W], the rows scale (1 added), shift, gate of each
    adaptive norm in order; cos, sin f32[H,D]; keys, values [layers,G,P,D]; bias f32[P+H].
    """

    def __init__(self, model: Pi05) -> None:
        super().__init__()
        self.expert = model.expert
        self.action_in_proj = model.action_in_proj
        self.action_out_proj = model.action_out_proj
        self.dtype = model.dtype

    def forward(
        self,
        x: Tensor,
        step: Tensor,
        modulations: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        def extend(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat((keys[layer][None], k), 2), torch.cat((values[layer][None], v), 2)

        rows = [row[None, None] for row in modulations.unbind(0)]
        of_norms = [Modulation(*rows[i : i + 3]) for i in range(0, len(rows), 3)]
        mask = bias.to(self.dtype)[None, None, None]
        hidden = self.action_in_proj(x[None]).to(self.dtype)
        hidden = self.expert(hidden, of_norms, _rope(cos, sin), mask, extend)
        velocity: Tensor = self.action_out_proj(hidden.float())[0]
        return x + velocity * step, velocity


def _rope(cos: Tensor, sin: Tensor) -> Rope:
    return Rope(cos[None, :, None], sin[None, :, None])


@dataclass(frozen=True)
class Open:
    """A size that stays open: `offset` more than one between least and most."""

    name: str
    least: int
    most: int
    offset: int = 0


class Input(NamedTuple):
    """dtype 'float32', or '' for the model's own. shape: of ints and open sizes."""

    shape: tuple[int | Open, ...]
    dtype: str = "float32"

    def at(self, pick: Callable[[Open], int]) -> tuple[int, ...]:
        """The shape with every open size chosen (its offset is added)."""
        return tuple(
            size if isinstance(size, int) else pick(size) + size.offset for size in self.shape
        )


class Graph(NamedTuple):
    """One part: its module, and its inputs and outputs in order, by the names of `trt_networks`."""

    module: Callable[[Pi05], nn.Module]
    inputs: Callable[[Pi05Config], dict[str, Input]]
    outputs: tuple[str, ...]


def _vision_inputs(config: Pi05Config) -> dict[str, Input]:
    size = config.vision.image_size
    return {"images": Input((Open("cameras", 1, config.num_cameras), 3, size, size))}


def _prefix_inputs(config: Pi05Config) -> dict[str, Input]:
    tokens, gemma = _tokens(config), config.language
    return {
        "embeddings": Input((tokens, gemma.width), ""),
        "cos": Input((tokens, gemma.head_dim)),
        "sin": Input((tokens, gemma.head_dim)),
        "bias": Input((tokens,)),
    }


def _denoise_inputs(config: Pi05Config) -> dict[str, Input]:
    tokens, gemma, horizon = _tokens(config), config.action_expert, config.action_horizon
    kv = Input((gemma.depth, gemma.num_kv_heads, tokens, gemma.head_dim), "")
    rope = Input((horizon, gemma.head_dim))
    return {
        "x": Input((horizon, config.action_dim)),
        "step": Input((1, 1)),
        "modulations": Input((3 * (2 * gemma.depth + 1), gemma.width)),
        "cos": rope,
        "sin": rope,
        "keys": kv,
        "values": kv,
        "bias": Input((Open(tokens.name, tokens.least, tokens.most, horizon),)),
    }


def _tokens(config: Pi05Config) -> Open:
    lengths = prefix_lengths(config)
    return Open("tokens", lengths[0], lengths[-1])


GRAPHS: dict[str, Graph] = {
    "vision": Graph(Vision, _vision_inputs, ("image_tokens",)),
    "prefix": Graph(PrefixKeysValues, _prefix_inputs, ("keys", "values")),
    "denoise": Graph(DenoiseStep, _denoise_inputs, ("next_x", "velocity")),
}


def export_part(name: str, model: Pi05, device: torch.device | str = "cpu") -> ExportedProgram:
    """The part as one graph without breaks, norms and attention in plain operations.

    model: with the part's weights on `device`; parameters that are on 'meta' are taken out of it.
    Raises what torch.export raises where it cannot trace the module.
    """
    graph, config = GRAPHS[name], model.config
    inputs = graph.inputs(config)
    examples = tuple(_example(given, model.dtype, device) for given in inputs.values())
    dims: dict[str, Any] = {}
    shapes = tuple(_dynamic(given, dims) for given in inputs.values())
    module = graph.module(model).eval()
    _forget_absent(module)
    program = torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
    return program.run_decompositions(DECOMPOSITIONS)


def operations_of(program: ExportedProgram) -> Counter[str]:
    """How often each operation occurs, such as 'aten.linear.default'."""
    called = (node for node in program.graph.nodes if node.op == "call_function")
    return Counter(str(node.target) for node in called)


def _forget_absent(module: nn.Module) -> None:
    """Without the parameters that were not loaded: no graph reads them, but all would hold them."""
    for inner in module.modules():
        for key, parameter in inner.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(inner, key, None)


def _example(given: Input, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    kind = torch.float32 if given.dtype else dtype
    return torch.zeros(given.at(lambda size: size.most), dtype=kind, device=device)


def _dynamic(given: Input, dims: dict[str, Any]) -> Mapping[int, Any]:
    """Which axes torch.export leaves open; a size with one value is none."""
    found = {}
    for axis, size in enumerate(given.shape):
        if isinstance(size, Open) and size.least < size.most:
            if size.name not in dims:
                dims[size.name] = Dim(size.name, min=size.least, max=size.most)
            found[axis] = dims[size.name] + size.offset if size.offset else dims[size.name]
    return found


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """query [B,heads,rows,D]; key, value [B,heads,keys,D]: softmax in float32, bias added to it."""
    if dropout_p or is_causal or enable_gqa:
        raise ValueError("pi0.5 has attention without dropout, causality or repeated heads")
    scores = torch.matmul(query, key.transpose(-2, -1)).float()
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores + attn_mask.float()
    return torch.matmul(scores.softmax(-1).to(query.dtype), value)


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x: float32, as the model hands it over; [...,W]."""
    assert len(shape) == 1 and eps is not None and x.dtype == torch.float32
    normed = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """x: [...,W]; float32 inside."""
    assert len(shape) == 1
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    return (normed * weight.float() + bias.float()).to(x.dtype)


_ATEN = torch.ops.aten
DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    _ATEN.scaled_dot_product_attention.default: _attention,
    _ATEN.rms_norm.default: _rms_norm,
    _ATEN.layer_norm.default: _layer_norm,
}
