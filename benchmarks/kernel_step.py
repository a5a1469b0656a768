"""One Euler step of pi0.5's expert out of the fused operations, with random weights."""

from __future__ import annotations

import torch
from kernel_cases import (
    ACTIONS,
    EXPERT_HIDDEN,
    EXPERT_WIDTH,
    HEAD_DIM,
    HEADS,
    HORIZON,
    PREFIX,
    ROWS,
)
from torch import Tensor

from thor_policy_ros.backends.kernels import (
    Folded,
    Ops,
    Weight,
    quantise_rows,
    rope_halves,
)

SHAPES = {
    "qkv": ((HEADS + 2) * HEAD_DIM, EXPERT_WIDTH),
    "o": (EXPERT_WIDTH, HEADS * HEAD_DIM),
    "gate_up": (2 * EXPERT_HIDDEN, EXPERT_WIDTH),
    "down": (EXPERT_WIDTH, EXPERT_HIDDEN),
}


class DenoiseStep:
    """`actions` go through the expert once and take a step; every layer has weights of its own."""

    def __init__(self, device: torch.device, fp8: bool, layers: int) -> None:
        generator = torch.Generator(device).manual_seed(5)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator)

        def weight(n: int, k: int) -> Weight:
            values = normal(n, k).bfloat16() / k**0.5
            return quantise_rows(values) if fp8 else Weight(values)

        self.layers = [
            {name: weight(*shape) for name, shape in SHAPES.items()} for _ in range(layers)
        ]
        self.folds = [
            [
                Folded(1 + 0.1 * normal(SHAPES[n][1]), 0.1 * normal(SHAPES[n][0]))
                for n in ("qkv", "gate_up")
            ]
            for _ in range(layers)
        ]
        self.gates = [(0.3 * normal(2, EXPERT_WIDTH)).unbind(0) for _ in range(layers)]
        self.buffers = [normal(2, 1, ROWS, HEAD_DIM).bfloat16().unbind(0) for _ in range(layers)]
        self.into = normal(EXPERT_WIDTH, ACTIONS) / ACTIONS**0.5, normal(EXPERT_WIDTH)
        self.out = normal(ACTIONS, EXPERT_WIDTH) / EXPERT_WIDTH**0.5, normal(ACTIONS)
        self.final = 1 + 0.1 * normal(EXPERT_WIDTH), 0.1 * normal(EXPERT_WIDTH)
        self.target, self.gain = normal(HORIZON, ACTIONS), torch.zeros(HORIZON, device=device)
        self.rope = rope_halves(ROWS, HEAD_DIM, device)
        self.length = torch.tensor([PREFIX], dtype=torch.int32, device=device)
        self.start = normal(HORIZON, ACTIONS)
        self.actions = self.start.clone()
        self.hidden = torch.empty(HORIZON, EXPERT_WIDTH, device=device, dtype=torch.bfloat16)

    @property
    def weight_bytes(self) -> int:
        """Of the layers' matrices, which a step reads once."""
        return sum(w.data.nbytes for layer in self.layers for w in layer.values())

    def rerun(self, ops: Ops) -> Tensor:
        """The actions after one step from `start`."""
        self.actions.copy_(self.start)
        self.run(ops)
        return self.actions.clone()

    def run(self, ops: Ops) -> None:
        """One step from `actions`, in place."""
        x = ops.embed_actions(self.actions, *self.into, self.folds[0][0].scale, self.hidden)
        scales = [folds[0].scale for folds in self.folds[1:]] + [self.final[0]]
        for weights, folds, gates, (keys, values), scale in zip(
            self.layers, self.folds, self.gates, self.buffers, scales, strict=True
        ):
            attention, mlp = folds
            q = ops.expert_qkv(
                x, attention.bias, weights["qkv"], *self.rope, self.length, keys, values
            )
            attended = ops.suffix_attention(q, keys, values, self.length)
            x = ops.gated_linear(self.hidden, attended, weights["o"], gates[0], mlp.scale)
            active = ops.expert_geglu(x, mlp.bias, weights["gate_up"])
            x = ops.gated_linear(self.hidden, active, weights["down"], gates[1], scale)
        ops.euler_step(
            self.actions, self.hidden, *self.final, *self.out, self.target, self.gain, t=0.7, dt=0.1
        )
