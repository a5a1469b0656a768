"""pi0.5 written as a sequence of fused operations, without batch axis.

Letters: v present cameras, N tokens of an image, C columns of a patch, P rows of the prefix (of
its bucket, padding included), H horizon, A action dims, W width, G kv heads, D head dim. x, the
residual stream, is updated in place by the norm or product that ends each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from thor_policy_ros.backends.fused_products import Products
from thor_policy_ros.backends.fused_steps import StepConstants, StepTable
from thor_policy_ros.backends.fused_weights import (
    ExpertWeights,
    Linear,
    PrefixWeights,
    VisionWeights,
)
from thor_policy_ros.backends.kernels.expert_stack import ExpertStack
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.weights import CameraImages, Rotation

LayerKV = tuple[Tensor, Tensor]
"""Keys and values [G,R,D] of one layer."""


class Tools(NamedTuple):
    """What the network is computed with. notes: what diagnostics should say of it."""

    ops: Ops
    products: Products
    notes: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where a prefix lives: its layers' keys and values, how many rows are valid (i32[1], on
    the device), and the RoPE tables f32[R,D/2] of their positions."""

    layers: Sequence[LayerKV]
    length: Tensor
    cos: Tensor
    sin: Tensor
    zero: Tensor
    """i32[1]: where a prefix starts."""
    keys: Tensor
    """[L,1,G,R,D]: all layers' in one, as `values`."""
    values: Tensor


class Expert(NamedTuple):
    """The action expert. stack: what runs all steps in one launch; None: by `ops`, one operation
    after the other."""

    ops: Ops
    weights: ExpertWeights
    stack: ExpertStack | None = None


def image_tokens(tools: Tools, weights: VisionWeights, heads: int, images: CameraImages) -> Tensor:
    """images f32[v,3,S,S] in [-1,1] -> [v*N,language width]."""
    (ops, products, _), (tokens, width) = tools, weights.offset.shape
    x = ops.embed_patches(images, weights.patch, weights.offset, weights.norm[0].dtype)
    h = ops.layer_norm(x, *weights.layers[0].norm1, quantise=weights.layers[0].qkv.input_scale)
    readers = [(layer.norm1, layer.qkv) for layer in weights.layers[1:]]
    readers.append((weights.norm, weights.projector))
    for layer, (norm, reader) in zip(weights.layers, readers, strict=True):
        qkv = products.linear(h, layer.qkv).view(-1, tokens, 3 * width)
        attended = ops.vision_attention(qkv, heads, quantise=layer.out.input_scale)
        delta = products.delta(attended.view(-1, width), layer.out)
        h = ops.layer_norm(x, *layer.norm2, delta=delta, quantise=layer.fc1.input_scale)
        hidden = products.gelu(h, layer.fc1, layer.fc2.input_scale)
        delta = products.delta(hidden, layer.fc2)
        h = ops.layer_norm(x, *norm, delta=delta, quantise=reader.input_scale)
    return products.linear(h, weights.projector)


def encode_prefix(tools: Tools, weights: PrefixWeights, x: Tensor, place: Place) -> None:
    """Embeddings [P,W], which it destroys -> every layer's keys and values in `place`.

    Rows from the valid length on are padding, which no valid row sees.
    """
    (ops, products, _), first = tools, weights.layers[0]
    h = ops.rms_norm(x, first.norm1, quantise=first.qkv.input_scale)
    readers = [(layer.norm1, layer.qkv) for layer in weights.layers[1:]]
    readers.append((weights.last_norm, weights.last_kv))
    inner = zip(weights.layers, place.layers, readers, strict=False)
    for layer, (keys, values), (norm, reader) in inner:
        q = queries(tools, h, layer.qkv, place, (keys, values))
        attended = ops.prefix_attention(
            q, keys, values, place.length, quantise=layer.o.input_scale
        )  # fmt: skip
        delta = products.delta(attended, layer.o)
        h = ops.rms_norm(x, layer.norm2, delta=delta, quantise=layer.gate_up.input_scale)
        hidden = products.geglu(h, layer.gate_up, layer.down.input_scale)
        delta = products.delta(hidden, layer.down)
        h = ops.rms_norm(x, norm, delta=delta, quantise=reader.input_scale)
    queries(tools, h, weights.last_kv, place, place.layers[-1])


def queries(tools: Tools, h: Tensor, layer: Linear, place: Place, kv: LayerKV) -> Tensor:
    """The product's queries [P,heads,D]; its keys and values go to `kv`."""
    rotation = Rotation(place.cos, place.sin, place.zero, *kv)
    q = tools.products.rotated(h, layer, rotation)
    return tools.ops.split_qkv(tools.products.linear(h, layer), *rotation) if q is None else q


def expert_hidden(
    expert: Expert, x_t: Tensor, constants: StepConstants, place: Place, hidden: Tensor
) -> None:
    """Actions x_t f32[H,A] -> `hidden` [H,W] before the final norm, by single operations.

    What lies behind the prefix's keys and values is the expert's to write.
    """
    ops, weights, steps = expert.ops, expert.weights, constants.layers
    x = ops.embed_actions(x_t, *weights.into, steps[0].attention.scale, hidden)
    read_next = [*(step.attention.scale for step in steps[1:]), constants.final_scale]
    layers = zip(weights.layers, steps, place.layers, read_next, strict=True)
    for layer, step, (keys, values), scale in layers:
        q = ops.expert_qkv(
            x, step.attention.bias, layer.qkv, place.cos, place.sin, place.length, keys, values
        )
        attended = ops.suffix_attention(q, keys, values, place.length)
        x = ops.gated_linear(hidden, attended, layer.o, step.attention_gate, step.mlp.scale)
        active = ops.expert_geglu(x, step.mlp.bias, layer.gate_up)
        x = ops.gated_linear(hidden, active, layer.down, step.mlp_gate, scale)


class Flow(NamedTuple):
    """What Euler's rule works on: from noise f32[H,A] to result f32[H,A], both also in the host's
    pinned memory; the single operations' actions f32[H,A] and scratch [H,W]; the guidance's target
    f32[H,A] and gains f32[steps,H]."""

    noise: Tensor
    result: Tensor
    actions: Tensor
    hidden: Tensor
    target: Tensor
    gains: Tensor


def euler_step(expert: Expert, flow: Flow, constants: StepConstants, step: int, steps: int) -> None:
    """From the expert's hidden states to the actions after step number `step` of `steps`."""
    expert.ops.euler_step(
        flow.actions,
        flow.hidden,
        constants.final_scale,
        constants.final_shift,
        *expert.weights.out,
        flow.target,
        flow.gains[step],
        t=1 - step / steps,
        dt=1 / steps,
    )


def integrate(expert: Expert, flow: Flow, table: StepTable, place: Place) -> None:
    """All steps: `flow.noise` becomes `flow.result`."""
    if expert.stack is not None:
        ends, guidance = (flow.noise, flow.result), (flow.target, flow.gains)
        keys_and_positions = place.keys, place.values, place.length, place.cos, place.sin
        expert.stack.run(*ends, table.rows, *guidance, *keys_and_positions)
        return
    flow.actions.copy_(flow.noise, non_blocking=True)
    for step, constants in enumerate(table.steps):
        expert_hidden(expert, flow.actions, constants, place, flow.hidden)
        euler_step(expert, flow, constants, step, len(table.steps))
    flow.result.copy_(flow.actions, non_blocking=True)
