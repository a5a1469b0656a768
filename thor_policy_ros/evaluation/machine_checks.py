"""Judges a machine for `thor-policy doctor`: facts in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from thor_policy_ros.evaluation.checks import Check, fine, note, wrong
from thor_policy_ros.evaluation.machine_facts import ClockFacts, MachineFacts

FP8_CAPABILITY = (8, 9)
PYTHONS = ((3, 10), (3, 13))
FULL_SIZE_GIB = 8.0  # 3.35 B parameters in bfloat16 are 6.3 GiB; activations and graphs besides
CLOCK_ERROR_US = 5_000
STARVED_GIB = 1.0


def check_machine(facts: MachineFacts, needs_gpu: bool) -> list[Check]:
    """needs_gpu: the backend that is wanted does not run without one."""
    return [
        *check_python(facts),
        *check_gpu(facts, needs_gpu),
        check_fp8(facts),
        check_tensorrt(facts),
        check_memory(facts),
        *check_clocks(facts),
        check_clock(facts.clock),
    ]


def check_python(facts: MachineFacts) -> list[Check]:
    version = tuple(int(part) for part in facts.python.split(".")[:2])
    says = f"{facts.python} on {facts.system}; torch {facts.torch}"
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        low, high = (".".join(map(str, bound)) for bound in PYTHONS)
        return [wrong("python", says, f"use Python {low} to {high}: PYTHON=python3.12 make setup")]
    return [fine("python", says)]


def check_gpu(facts: MachineFacts, needs_gpu: bool) -> list[Check]:
    """GPU, driver and CUDA: which of the three is missing says what to do."""
    if facts.gpus:
        names = "; ".join(
            f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]})" for gpu in facts.gpus
        )
        return [
            fine("gpu", names),
            fine("driver", facts.driver or "works; its version is not told"),
            fine("cuda", f"{facts.torch_cuda}, as torch was built"),
            *(_check_gpu_memory(gpu.name, gpu.free_gib, gpu.total_gib) for gpu in facts.gpus),
        ]
    judge = wrong if needs_gpu else note
    if facts.device_files and not facts.torch_cuda:
        return [
            judge(
                "gpu",
                f"{', '.join(facts.device_files)} present, but torch {facts.torch} is a CPU build",
                "install a CUDA build of torch: pip install torch --index-url "
                "https://download.pytorch.org/whl/cu130",
            )
        ]
    if facts.device_files:
        return [
            judge(
                "gpu",
                f"driver {facts.driver or 'of unknown version'} and torch's CUDA "
                f"{facts.torch_cuda} do not work together",
                "nvidia-smi (is the driver new enough for that CUDA? may this user open "
                "/dev/nvidia0?)",
            )
        ]
    return [
        judge(
            "gpu",
            "none: pi0.5 at full size takes seconds a frame on a CPU; the demo's policy runs",
            "in a container, start it with `--gpus all` (Jetson: `--runtime nvidia`)",
        )
    ]


def _check_gpu_memory(name: str, free_gib: float, total_gib: float) -> Check:
    says = f"{free_gib:.1f} of {total_gib:.1f} GiB free on {name}"
    if free_gib < FULL_SIZE_GIB:
        return note(
            "gpu memory",
            f"{says}; pi0.5 at full size wants about {FULL_SIZE_GIB:g}",
            "nvidia-smi (which process holds it?)",
        )
    return fine("gpu memory", says)


def check_fp8(facts: MachineFacts) -> Check:
    if not facts.gpus:
        return note("fp8", "no GPU to judge", "use a backend without fp8 in its name")
    able = [gpu.name for gpu in facts.gpus if gpu.capability >= FP8_CAPABILITY]
    if not able:
        return note("fp8", "this GPU has none (sm_89 or newer)", "use tensorrt, torch_trt or fused")
    return fine("fp8", "supported")


def check_tensorrt(facts: MachineFacts) -> Check:
    if not facts.flavours:
        return note(
            "tensorrt", "not installed", "pip install tensorrt (docs/tensorrt.md), or do without"
        )
    return fine("tensorrt", ", ".join(f"{k} {v}" for k, v in facts.flavours.items()))


def check_memory(facts: MachineFacts) -> Check:
    says = f"{facts.available_gib:.1f} of {facts.memory_gib:.1f} GiB available"
    if facts.available_gib < STARVED_GIB:
        return wrong("memory", says, "close other programs: ps aux --sort=-rss | head")
    if facts.available_gib < FULL_SIZE_GIB:
        return note("memory", f"{says}; loading pi0.5 at full size wants {FULL_SIZE_GIB:g}")
    return fine("memory", says)


def check_clocks(facts: MachineFacts) -> list[Check]:
    """Power mode and pinned clocks of a Jetson; frequency governors of any machine."""
    found = []
    if facts.jetson.release:
        found.append(_check_power_mode(facts.jetson.power_mode))
        found.append(_check_pinned(facts.jetson.pinned))
    slow = [name for name in facts.governors if name != "performance"]
    if slow:
        found.append(
            note(
                "cpu clocks",
                f"governor {', '.join(slow)}: a waking core is slow at first",
                "sudo cpupower frequency-set -g performance",
            )
        )
    else:
        says = "governor performance" if facts.governors else "set by the host, not visible here"
        found.append(fine("cpu clocks", says))
    return found


def _check_power_mode(mode: str) -> Check:
    if not mode:
        return note("power mode", "nvpmodel does not tell", "sudo nvpmodel -q")
    if not mode.startswith("MAXN"):
        return note("power mode", f"{mode}: slower than it could be", "sudo nvpmodel -m 0")
    return fine("power mode", mode)


def _check_pinned(pinned: bool | None) -> Check:
    if pinned is None:
        return note("gpu clocks", "not told", "sudo jetson_clocks --show")
    if not pinned:
        return note("gpu clocks", "follow the load: the first frames are slow",
                    "sudo jetson_clocks")  # fmt: skip
    return fine("gpu clocks", "held at the highest")


def check_clock(clock: ClockFacts) -> Check:
    """Whether stamps of other machines can be compared with this one's."""
    if clock.synchronised is None:
        return note("clock sync", "the kernel does not tell", "timedatectl")
    if not clock.synchronised:
        return note(
            "clock sync",
            "not synchronised as the kernel sees it: cameras on another computer may seem old "
            "or in the future",
            "sudo timedatectl set-ntp true, or chrony on every computer of the robot",
        )
    error_us = clock.error_us or 0
    if error_us > CLOCK_ERROR_US:
        return note(
            "clock sync", f"synchronised within {error_us / 1e3:.1f} ms", "chronyc tracking"
        )
    return fine("clock sync", f"synchronised within {error_us / 1e3:.2f} ms")


def check_backend(name: str, missing: Sequence[str], others: Iterable[str]) -> Check:
    """missing: what the backend lacks here. others: backends that can run."""
    if not missing:
        return fine("backend", f"{name} can run here")
    return wrong(
        "backend",
        f"{name} cannot run here; missing: {'; '.join(missing)}",
        f"install what is missing, or choose one of: {', '.join(others)}",
    )
