"""The Triton kernels on a CUDA device: right against float64, fast against torch and the roofline.

    PYTHONPATH=. python3 benchmarks/kernels_on_cuda.py --out kernels.json

In one call of less than 5 minutes: every operation at pi0.5's sizes (error, time in a CUDA graph
over inputs larger than the L2 cache, GB/s, TFLOP/s, share of the device's own ceilings, and plain
torch beside it); whole denoise steps, also with overlapping kernels; better tiles, in limited time.
The JSON is written as results come; an error is recorded in its section and makes exit status 1.

`--only correctness` is short enough for compute-sanitizer. `--rehearse` runs the same steps with
the torch reference on a CPU, with a few small operations: a test of this script.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernel_cases import Case, Inputs, all_cases, exact
from kernel_step import DenoiseStep
from kernel_sweep import Descent, axes_of, descend
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels import Ops, Scaled, create_ops
from thor_policy_ros.evaluation.cuda_timing import TimedCalls

SECTIONS = ("device", "correctness", "speed", "step", "sweep")
REHEARSED = ("ada_rms_norm", "embed_actions", "euler_step", "gated_linear_o")
L2_MULTIPLE, MOST_SETS = 3, 48
REPEATS = 7
STEP_TOLERANCE = 0.05
"""Of the change that a step makes, after 18 layers in bfloat16, summed in another order."""


class Run:
    """One run: device, operations, and results that are written as they come."""

    def __init__(self, rehearse: bool, out: Path | None, sweep_seconds: float) -> None:
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.rehearse = rehearse
        self.sweep_seconds = sweep_seconds
        self.ops = self.make_ops()
        self.results: dict[str, Any] = {"command": " ".join(sys.argv), "rehearsal": rehearse}
        self._out = out

    @property
    def cases(self) -> tuple[Case, ...]:
        wanted = all_cases()
        if self.rehearse:
            return tuple(c for c in wanted if c.name in REHEARSED)
        if torch.cuda.get_device_capability() < (8, 9):
            return tuple(c for c in wanted if not c.fp8)
        return wanted

    def make_ops(self, overlap: bool = False) -> Ops:
        return create_ops("reference" if self.rehearse else "triton", self.device, overlap)

    def section(self, name: str, measure: Callable[[], Any]) -> None:
        """Results of a section, or the error that ended it."""
        begun = time.perf_counter()
        try:
            self.results[name] = measure()
        except Exception:  # noqa: BLE001 - recorded; the other sections still run
            self.results[name] = {"error": traceback.format_exc(limit=6)}
        self.results.setdefault("seconds", {})[name] = round(time.perf_counter() - begun, 1)
        print(f"{name}: {self.results['seconds'][name]} s", flush=True)
        self.write()

    def write(self) -> None:
        """What there is so far."""
        if self._out:
            self._out.write_text(json.dumps(self.results, indent=1) + "\n")

    def each(self, measure: Callable[[Case], Any]) -> dict[str, Any]:
        """Of every case; one that fails does not stop the rest."""
        figures: dict[str, Any] = {}
        for case in self.cases:
            try:
                figures[case.name] = measure(case)
            except Exception as error:  # noqa: BLE001 - recorded in its place
                figures[case.name] = {"error": f"{type(error).__name__}: {str(error)[-400:]}"}
        return figures

    def time_ms(self, calls: Sequence[Callable[[], object]]) -> dict[str, float]:
        """Median and spread of one call among `calls`, in a CUDA graph; by the clock on a CPU."""
        if self.rehearse:
            begun = time.perf_counter()
            for call in calls:
                call()
            return {"ms": (time.perf_counter() - begun) * 1e3 / len(calls), "spread": 0.0}
        timed = TimedCalls(calls)
        taken = sorted(timed.graph_ms() for _ in range(REPEATS))
        median = statistics.median(taken)
        return {"ms": median, "spread": (taken[-2] - taken[1]) / median}


# --- device


def device_figures(run: Run) -> dict[str, Any]:
    """Names, versions, and two ceilings measured here: copies, and large products."""
    figures: dict[str, Any] = {"torch": torch.__version__}
    if run.rehearse:
        return {**figures, "name": "cpu", "copy_gb_s": 10.0, "tflops": {"bf16": 0.1, "fp8": 0.1}}
    import triton

    properties = torch.cuda.get_device_properties(0)
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy = run.time_ms([lambda: target.copy_(source)] * 4)["ms"]
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    tflops = {"bf16": 2 * 8192**3 / run.time_ms([lambda: a @ b] * 4)["ms"] / 1e9}
    if torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device="cuda")
        x, y = a.to(E4M3), b.t().contiguous().t().to(E4M3)
        product = partial(
            torch._scaled_mm, x, y, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        tflops["fp8"] = 2 * 8192**3 / run.time_ms([product] * 4)["ms"] / 1e9
    return {
        **figures,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "limits": dataclasses.asdict(run.ops.target.limits),  # type: ignore[attr-defined]
        "copy_gb_s": 2 * source.nbytes / copy / 1e6,
        "tflops": tflops,
    }


# --- correctness


def correctness(run: Run, case: Case) -> dict[str, Any]:
    """Relative error to float64, and whether two runs agree to the bit."""
    inputs = case.make(run.device)
    if "out" in inputs:
        inputs["out"].fill_(torch.nan if inputs["out"].is_floating_point() else 77)
    reference = create_ops("reference", "cpu")
    wanted = outputs(case, reference, {name: exact(value) for name, value in inputs.items()})
    again = {name: copied(value) for name, value in inputs.items()}
    got, second = outputs(case, run.ops, inputs), outputs(case, run.ops, again)
    errors = [relative(a, b) for a, b in zip(got, wanted, strict=True)]
    return {
        "relative_error": max(errors),
        "tolerance": case.tolerance,
        "ok": all(error <= case.tolerance for error in errors),
        "repeats_to_the_bit": all(map(torch.equal, map(bits, got), map(bits, second))),
    }


def outputs(case: Case, ops: Ops, inputs: Inputs) -> list[Tensor]:
    """What the call gives back, and the inputs that it changes."""
    made = case.call(ops, inputs)
    changed = [inputs[name] for name in case.changed]
    if isinstance(made, Scaled):
        return [made.h, made.squares.sum(0), *changed]
    return [made, *changed] if isinstance(made, Tensor) else changed


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def relative(got: Tensor, wanted: Tensor) -> float:
    exact_values = wanted.cpu().double()
    return float((got.cpu().double() - exact_values).norm() / exact_values.norm())


# --- speed


def speed(run: Run, case: Case) -> dict[str, Any]:
    """Time, rates, and what share of them the device's ceilings would allow."""
    sets = input_sets(run, case)
    timed = run.time_ms([partial(case.call, run.ops, i) for i in sets])
    device = run.results["device"]
    rate = device["tflops"].get("fp8" if case.fp8 else "bf16", device["tflops"]["bf16"])
    floor = max(case.bytes / device["copy_gb_s"] / 1e6, case.flops / rate / 1e9)
    figures = {
        **timed,
        "floor_ms": floor,
        "of_roofline": floor / timed["ms"],
        "gb_s": case.bytes / timed["ms"] / 1e6,
        "tflop_s": case.flops / timed["ms"] / 1e9,
        "input_sets": len(sets),
    }
    if case.plain is not None:
        figures["torch_ms"] = run.time_ms([partial(case.plain, i) for i in sets])["ms"]
        figures["torch_over_ours"] = figures["torch_ms"] / timed["ms"]
    return figures


def input_sets(run: Run, case: Case) -> list[Inputs]:
    """As many as exceed the L2 cache: a layer never finds its weights there."""
    l2 = run.results["device"].get("l2_bytes", 0)
    wanted = 1 + int(L2_MULTIPLE * l2 / case.bytes)
    return [case.make(run.device) for _ in range(min(MOST_SETS, max(2, wanted)))]


# --- whole denoise steps


def steps(run: Run) -> dict[str, Any]:
    """One Euler step of the whole expert: dense and FP8, in turn and overlapping."""
    figures: dict[str, Any] = {}
    for fp8 in (False, True):
        made = DenoiseStep(run.device, fp8, layers=2 if run.rehearse else 18)
        plain = run.make_ops()
        made.run(plain)
        wanted = made.actions.clone()
        reference = made.rerun(create_ops("reference", run.device))
        name = "fp8" if fp8 else "bf16"
        difference = relative(wanted - made.start, reference - made.start)
        figures[name] = {
            **run.time_ms([partial(made.run, plain)] * 4),
            "weight_bytes": made.weight_bytes,
            "floor_ms": made.weight_bytes / run.results["device"]["copy_gb_s"] / 1e6,
            "relative_difference_to_reference": difference,
            "ok": difference <= STEP_TOLERANCE,
        }
        if not run.rehearse and run.ops.target.limits.can_overlap:  # type: ignore[attr-defined]
            figures[name]["overlapping"] = overlapping(run, made, wanted)
    return figures


def overlapping(run: Run, made: DenoiseStep, wanted: Tensor) -> dict[str, Any]:
    """The same with programmatic dependent launch; a difference is a race."""
    ops = run.make_ops(overlap=True)
    equal = all(torch.equal(made.rerun(ops), wanted) for _ in range(20))
    return {**run.time_ms([partial(made.run, ops)] * 4), "equals_the_plain_step_20_times": equal}


# --- better tiles


def sweep(run: Run) -> dict[str, Any]:
    """Of each operation with tiles, the best found and all that was tried."""
    if run.rehearse:
        return {}
    found: dict[str, Any] = {}
    run.results["sweep"] = found
    subjects = [c for c in run.cases if c.name in TILED or c.name.removesuffix("_fp8") in TILED]
    for case in subjects:
        share = run.sweep_seconds / len(subjects)
        try:
            result = swept(run, case, share)
            found[case.name] = {
                "best": result.best,
                "best_ms": result.best_ms,
                "suggested": result.tried[0],
                "ran_out_of_time": result.ran_out_of_time,
                "tried": result.tried,
            }
        except Exception as error:  # noqa: BLE001 - recorded in its place
            found[case.name] = {"error": f"{type(error).__name__}: {str(error)[-400:]}"}
        run.write()
    return found


TILED = (
    *("expert_qkv", "gated_linear_o", "expert_geglu", "gated_linear_down"),
    *("suffix_attention", "prefix_attention", "vision_attention"),
)


def swept(run: Run, case: Case, seconds: float) -> Descent:
    """Every candidate is compared with float64 before it is timed."""
    from kernel_tiled import suggested, tiled_call

    sets = input_sets(run, case)
    reference = create_ops("reference", "cpu")
    unchanged = {name: copied(value) for name, value in sets[0].items()}
    wanted_of = {name: exact(value) for name, value in unchanged.items()}
    wanted = outputs(case, reference, wanted_of)

    def time_ms(tiles: Any) -> float:
        call = tiled_call(case.name, run.ops.target, tiles)  # type: ignore[attr-defined]
        candidate = dataclasses.replace(case, call=lambda _, i: call(i))
        fresh = {name: copied(value) for name, value in unchanged.items()}
        got = outputs(candidate, run.ops, fresh)
        error = max(relative(a, b) for a, b in zip(got, wanted, strict=True))
        if not error <= case.tolerance:
            raise ArithmeticError(f"relative error {error}")
        return run.time_ms([partial(call, i) for i in sets])["ms"]

    axes = axes_of(case.name)
    start = suggested(case.name, run.ops.target, sets[0])  # type: ignore[attr-defined]
    return descend(start, axes, time_ms, seconds)


# --- report


def table(results: dict[str, Any]) -> str:
    lines = [f"{'operation':26} {'error':>9} {'us':>8} {'floor':>7} {'share':>6} {'torch':>8}"]
    for name, figure in results.get("speed", {}).items():
        if not isinstance(figure, dict) or "ms" not in figure:
            lines.append(f"{name:26} FAILED {figure}")
            continue
        error = results.get("correctness", {}).get(name, {}).get("relative_error", float("nan"))
        us, floor = figure["ms"] * 1e3, figure["floor_ms"] * 1e3
        torch_us = figure.get("torch_ms", float("nan")) * 1e3
        share = figure["of_roofline"]
        lines.append(f"{name:26} {error:9.2e} {us:8.2f} {floor:7.2f} {share:6.2f} {torch_us:8.2f}")
    for name, figure in results.get("step", {}).items():
        if isinstance(figure, dict) and "ms" in figure:
            beside = figure.get("overlapping", {}).get("ms")
            lines.append(f"denoise step {name}: {figure['ms']:.4f} ms, overlapping {beside}")
    return "\n".join(lines)


def passes(results: dict[str, Any]) -> bool:
    """No error anywhere, every operation right and repeatable."""
    checks = results.get("correctness", {}).values()
    right = all(isinstance(c, dict) and c.get("ok") and c.get("repeats_to_the_bit") for c in checks)
    steps_made = [s for s in results.get("step", {}).values() if isinstance(s, dict)]
    right &= all(
        s["ok"] and s.get("overlapping", {}).get("equals_the_plain_step_20_times", True)
        for s in steps_made
    )
    return right and '"error"' not in json.dumps({k: v for k, v in results.items() if k != "sweep"})


def chosen(only: Iterable[str]) -> tuple[str, ...]:
    """The sections asked for, all if none; the device's figures are always there."""
    wanted = tuple(only) or SECTIONS
    return tuple(name for name in SECTIONS if name in wanted or name == "device")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=[])
    parser.add_argument("--sweep-seconds", type=float, default=120.0)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU: a test of this script")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    run = Run(arguments.rehearse, arguments.out, arguments.sweep_seconds)
    measures: dict[str, Callable[[], Any]] = {
        "device": lambda: device_figures(run),
        "correctness": lambda: run.each(partial(correctness, run)),
        "speed": lambda: run.each(partial(speed, run)),
        "step": lambda: steps(run),
        "sweep": lambda: sweep(run),
    }
    with torch.inference_mode():
        for name in chosen(arguments.only):
            run.section(name, measures[name])
    print(table(run.results))
    return 0 if passes(run.results) else 1


if __name__ == "__main__":
    sys.exit(main())
