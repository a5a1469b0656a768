"""The expert's layers in one launch on a CUDA device: right, how fast, and where the time goes.

    PYTHONPATH=. python3 benchmarks/expert_stack_on_cuda.py --out expert_stack.json

A denoise step of pi0.5's size with random weights, in bfloat16 and E4M3: its output against the
float32 reference and the step of single kernels; a step's time in a CUDA graph, both in turns; and
from clocks inside the kernel how long each phase waits, multiplies and hands on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kernel_cases import EXPERT_HIDDEN, EXPERT_WIDTH, HEAD_DIM, HEADS, HORIZON, ROWS
from kernel_step import DenoiseStep
from torch import Tensor

from thor_policy_ros.backends.kernels import Weight, create_ops
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.expert_stack import ExpertStack, StackPlan, stack_plan

PHASES = ("qkv", "scores", "values", "o", "gate_up", "down")
LAYERS = 18


class Layer(NamedTuple):
    qkv: Weight
    o: Weight
    gate_up: Weight
    down: Weight


class StackStep:
    """A `DenoiseStep` whose layers are one launch."""

    def __init__(self, step: DenoiseStep, device: torch.device, **macros: int) -> None:
        self.step = step
        layers = [Layer(**weights) for weights in step.layers]
        fp8 = layers[0].qkv.scale is not None
        plan = planned(fp8, device)
        self.stack = ExpertStack(plan, layers, device, **macros)
        pieces = []
        for (attention, mlp), (gate1, gate2) in zip(step.folds, step.gates, strict=True):
            pieces += [attention.scale, attention.bias, gate1, mlp.scale, mlp.bias, gate2]
        self.constants = torch.cat(pieces).contiguous()
        self.keys = torch.stack([k for k, _ in step.buffers]).contiguous()
        self.values = torch.stack([v for _, v in step.buffers]).contiguous()

    def layers(self) -> None:
        """`hidden`, in place."""
        step = self.step
        self.stack.run(step.hidden, self.constants, self.keys, self.values, step.length, *step.rope)

    def run(self, ops: Any) -> None:
        step = self.step
        ops.embed_actions(step.actions, *step.into, step.folds[0][0].scale, step.hidden)
        self.layers()
        ops.euler_step(
            step.actions, step.hidden, *step.final, *step.out, step.target, step.gain, t=0.7, dt=0.1
        )

    def rerun(self, ops: Any) -> Tensor:
        self.step.actions.copy_(self.step.start)
        self.run(ops)
        return self.step.actions.clone()


def planned(fp8: bool, device: torch.device) -> StackPlan:
    plan = stack_plan(
        HORIZON, EXPERT_WIDTH, HEADS, HEAD_DIM, EXPERT_HIDDEN, LAYERS, ROWS, fp8, limits_of(device)
    )
    if plan is None:
        raise SystemExit("the stack is not made for this device")
    return plan


def captured(work: Any) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def replay_us(graphs: dict[str, torch.cuda.CUDAGraph], replays: int = 20, rounds: int = 15) -> Any:
    """Median over rounds of a replay's microseconds, the graphs in turns."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            begin.record()
            for _ in range(replays):
                graph.replay()
            end.record()
            end.synchronize()
            times[name].append(1e3 * begin.elapsed_time(end) / replays)
    return {name: round(statistics.median(values), 1) for name, values in times.items()}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def phases(stack: ExpertStack, mhz: float) -> dict[str, Any]:
    """Medians over blocks and inner layers, in microseconds."""
    clocks = stack.clocks[1:-1].double() / mhz
    begun, received, multiplied, ended = clocks.unbind(2)
    result = {}
    for index, name in enumerate(PHASES):
        spans = {
            "receive": received - begun,
            "multiply": multiplied - received,
            "sum_and_hand_on": ended - multiplied,
        }
        result[name] = {
            key: [round(float(x[:, index].quantile(q)), 2) for q in (0.1, 0.5, 0.9)]
            for key, x in spans.items()
        }
        whole = (ended - begun)[:, index].median(0).values
        slow = whole.argsort(descending=True)[:6]
        result[name]["slowest_blocks"] = {int(b): round(float(whole[b]), 2) for b in slow}
    whole = stack.clocks[2:, 0, 0].double() - stack.clocks[1:-1, 0, 0].double()
    return {"phases_us": result, "layer_us": round(float(whole.median()) / mhz, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", default=["CLOCKS=0"], metavar="MACRO=N,...")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
    }
    good = True
    for fp8 in (False, True):
        name = "e4m3" if fp8 else "bf16"
        report[name], right = measured(fp8, options.variants)
        good &= right
        print(name, json.dumps(report[name]), flush=True)
        options.out.write_text(json.dumps(report, indent=1))
    print("right" if good else "WRONG")
    return 0 if good else 1


def measured(fp8: bool, variants: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Everything of one kind of weights, and whether all was right. variants: macros that the
    kernel is compiled with, while it is being worked on."""
    device = torch.device("cuda")
    step, ops = DenoiseStep(device, fp8, LAYERS), create_ops("triton", device, True)
    graphs = {"single kernels": captured(partial(step.run, ops))}
    entry: dict[str, Any] = {}
    kept, good = [], True  # graphs hold addresses alone
    for variant in variants:
        macros = {k: int(v) for k, v in (pair.split("=") for pair in variant.split(","))}
        stacked = StackStep(step, device, **macros)
        entry[variant] = compared(stacked, ops)
        good &= entry[variant]["right"]
        if not stacked.stack.failed:
            kept.append(stacked)
            graphs[variant] = captured(partial(stacked.run, ops))
            graphs[f"{variant}, layers alone"] = captured(stacked.layers)
    entry["step_us"] = replay_us(graphs)
    entry["inside"] = inside(step, ops, device)
    # Not only one length: the suffix lies behind it.
    step.length.fill_(301)
    entry["length_301"] = compared(StackStep(step, device), ops)
    return entry, good and entry["length_301"]["right"]


def compared(stacked: StackStep, ops: Any) -> dict[str, Any]:
    """Relative differences (norms) to the step of single kernels; equality of 50 runs."""
    step = stacked.step
    single = step.rerun(ops)
    single_hidden = step.hidden.clone()
    found = stacked.rerun(ops)
    of_hidden = relative(step.hidden, single_hidden)
    same = all(torch.equal(found, stacked.rerun(ops)) for _ in range(50))
    failed = stacked.stack.failed
    return {
        "plan": vars(stacked.stack.plan).copy(),
        "hidden_to_single_kernels": of_hidden,
        "actions_to_single_kernels": relative(found, single),
        "bit_equal_50_times": same,
        "failed": failed,
        "right": same and not failed and of_hidden < 0.02,
    }


def inside(step: DenoiseStep, ops: Any, device: torch.device) -> dict[str, Any]:
    """Where the time goes. Cycles are turned into microseconds by the whole kernel's time."""
    timed = StackStep(step, device, CLOCKS=1)
    for _ in range(3):
        timed.run(ops)
    torch.cuda.synchronize()
    us = replay_us({"layers": captured(timed.layers)})["layers"]
    clocks = timed.stack.clocks
    cycles = float((clocks[-1, 5, 3] - clocks[0, 0, 0]).double().median())
    return {"with_clocks_us": us, **phases(timed.stack, cycles / us)}


if __name__ == "__main__":
    sys.exit(main())
