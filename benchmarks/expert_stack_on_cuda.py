"""All denoise steps in one launch on a CUDA device: right, how fast, and where the time goes.

    PYTHONPATH=. python3 benchmarks/expert_stack_on_cuda.py --out expert_stack.json

One step and ten of pi0.5's size with random weights, in bfloat16 and E4M3: their actions against
those of single kernels; their time in a CUDA graph, all in turns, and what a step more takes; and
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
from typing import Any

import torch
from kernel_cases import ACTIONS, EXPERT_HIDDEN, EXPERT_WIDTH, HEAD_DIM, HEADS, HORIZON, ROWS
from kernel_step import DenoiseStep
from torch import Tensor

from thor_policy_ros.backends.fused_network import Expert, Flow, Place, integrate
from thor_policy_ros.backends.fused_steps import StepTable, constants_in
from thor_policy_ros.backends.fused_weights import ExpertLayerWeights, ExpertWeights
from thor_policy_ros.backends.kernels import Ops, create_ops
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.expert_stack import ExpertStack, StackPlan, stack_plan

PHASES = ("qkv", "scores", "values", "o", "gate_up", "down")
LAYERS, STEPS = 18, 10


class Chunk:
    """Some steps from the same noise, each with constants of its own; by `ops` and, where there is
    a stack, in its one launch."""

    def __init__(self, step: DenoiseStep, steps: int, ops: Ops) -> None:
        layers = tuple(ExpertLayerWeights(**weights) for weights in step.layers)
        self.noise = step.start
        self.expert = Expert(ops, ExpertWeights(step.into, layers, step.out))
        pieces: list[Tensor] = []
        for (attention, mlp), (gate1, gate2) in zip(step.folds, step.gates, strict=True):
            pieces += [attention.scale, attention.bias, gate1, mlp.scale, mlp.bias, gate2]
        first = torch.cat([*pieces, *step.final])
        rows = torch.stack([first * (1 - 0.01 * i) for i in range(steps)])
        views = tuple(constants_in(row, self.expert.weights) for row in rows)
        self.table = StepTable(rows, views)
        gains = step.gain[None].expand(steps, -1).contiguous()
        self.result = torch.empty_like(self.noise)
        scratch = step.actions, step.hidden
        self.flow = Flow(self.noise, self.result, *scratch, step.target, gains)
        keys = torch.stack([k for k, _ in step.buffers]).contiguous()
        values = torch.stack([v for _, v in step.buffers]).contiguous()
        each = list(zip(keys, values, strict=True))
        zero = torch.zeros_like(step.length)
        self.place = Place(each, step.length, *step.rope, zero, keys, values)

    def run(self, stack: ExpertStack | None = None) -> None:
        integrate(self.expert._replace(stack=stack), self.flow, self.table, self.place)

    def rerun(self, stack: ExpertStack | None = None) -> Tensor:
        self.run(stack)
        return self.result.clone()


def stack_for(chunk: Chunk, **macros: int) -> ExpertStack:
    weights, device = chunk.expert.weights, chunk.noise.device
    plan = planned(weights.layers[0].qkv.scale is not None, device)
    return ExpertStack(plan, weights.layers, weights.into, weights.out, device, **macros)


def planned(fp8: bool, device: torch.device) -> StackPlan:
    sizes = HORIZON, EXPERT_WIDTH, HEADS, HEAD_DIM, EXPERT_HIDDEN, LAYERS, ROWS, ACTIONS
    plan = stack_plan(*sizes, fp8, limits_of(device))
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


def replay_us(graphs: dict[str, torch.cuda.CUDAGraph], replays: int = 5, rounds: int = 15) -> Any:
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
    chunks = {steps: Chunk(step, steps, ops) for steps in (1, STEPS)}
    graphs = {f"single kernels, {n}": captured(chunk.run) for n, chunk in chunks.items()}
    entry: dict[str, Any] = {}
    kept, good = [], True  # graphs hold addresses alone
    for variant in variants:
        macros = {k: int(v) for k, v in (pair.split("=") for pair in variant.split(","))}
        stack = stack_for(chunks[1], **macros)
        entry[variant] = {f"{n} steps": compared(chunk, stack) for n, chunk in chunks.items()}
        entry[variant]["plan"] = vars(stack.plan).copy()
        good &= all(entry[variant][f"{n} steps"]["right"] for n in chunks)
        if not stack.failed:
            kept.append(stack)
            for n, chunk in chunks.items():
                graphs[f"{variant}, {n}"] = captured(partial(chunk.run, stack))
    times = entry["chunk_us"] = replay_us(graphs)
    entry["step_us"] = {
        name: round((times[f"{name}, {STEPS}"] - times[f"{name}, 1"]) / (STEPS - 1), 1)
        for name in ("single kernels", *variants)
        if f"{name}, 1" in times
    }
    entry["inside"] = inside(chunks[1])
    # Not only one length: the suffix lies behind it.
    step.length.fill_(301)
    entry["length_301"] = compared(chunks[STEPS], stack)
    return entry, good and entry["length_301"]["right"]


def compared(chunk: Chunk, stack: ExpertStack) -> dict[str, Any]:
    """Relative difference (norms) to the steps of single kernels; equality of 20 runs."""
    single, found = chunk.rerun(), chunk.rerun(stack)
    difference = relative(found - chunk.noise, single - chunk.noise)
    same = all(torch.equal(found, chunk.rerun(stack)) for _ in range(20))
    failed = stack.failed
    return {
        "flow_to_single_kernels": difference,
        "bit_equal_20_times": same,
        "failed": failed,
        "right": same and not failed and difference < 0.02,
    }


def inside(chunk: Chunk) -> dict[str, Any]:
    """Where a step's time goes. Cycles are turned into microseconds by the whole kernel's time."""
    timed = stack_for(chunk, CLOCKS=1)
    work = partial(chunk.run, timed)
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    us = replay_us({"step": captured(work)})["step"]
    clocks = timed.clocks
    cycles = float((clocks[-1, 5, 3] - clocks[0, 0, 0]).double().median())
    return {"with_clocks_us": us, **phases(timed, cycles / us)}


if __name__ == "__main__":
    sys.exit(main())
