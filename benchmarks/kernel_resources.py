"""What the kernels take of each GPU generation, compiled here without a GPU.

    PYTHONPATH=. python3 benchmarks/kernel_resources.py --out kernel_resources.json

Every operation at pi0.5's sizes, with the tiles that follow from each target's limits: registers,
spills and shared memory from ptxas, and which matrix instructions the machine code holds. Exit
status 1 if a kernel does not compile, or takes more shared memory than the target has.

Thor (sm_110) wants the ptxas of CUDA 13: `--ptxas-blackwell PATH` (PyPI: nvidia-cuda-nvcc).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here, before Triton is imported

import kernel_cases
import torch
import triton
from kernel_cases import Case, all_cases
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from thor_policy_ros.backends.kernels.capability import DeviceLimits
from thor_policy_ros.backends.kernels.target import KernelTarget
from thor_policy_ros.backends.kernels.triton_ops import TritonOps

META = torch.device("meta")


@dataclass(frozen=True)
class Generation:
    """A target by compute capability. limits: of one device of it, from NVIDIA's tables."""

    arch: int
    example: str
    limits: DeviceLimits


GENERATIONS = (
    Generation(87, "Orin (no FP8)", DeviceLimits((8, 7), 163 * 1024, 16)),
    Generation(89, "RTX 4090", DeviceLimits((8, 9), 99 * 1024, 128)),
    Generation(90, "H200", DeviceLimits((9, 0), 227 * 1024, 132)),
    Generation(100, "B200", DeviceLimits((10, 0), 227 * 1024, 148)),
    Generation(110, "Thor", DeviceLimits((11, 0), 227 * 1024, 20)),
    Generation(120, "RTX 5090", DeviceLimits((12, 0), 99 * 1024, 170)),
)
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
TELLING = (
    *("HMMA", "HGMMA", "QGMMA", "QMMA", "UTCHMMA", "UTCQMMA", "OMMA"),  # matrix units
    *("LDGSTS", "UTMALDG", "LDG", "STG", "LDL", "STL"),  # copies, loads and stores, spills
)
DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: Mapping[str, Any]


def recorded(case: Case, limits: DeviceLimits, overlap: bool) -> list[Launch]:
    """The launches of one operation, with the tiles that follow from `limits`."""
    launches: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        launches.append(Launch(kernel, grid, args, options))

    case.call(TritonOps(META, KernelTarget(META, limits, record, overlap)), case.make(META))
    return launches


def compiled(launch: Launch, arch: int) -> Any:
    """As Triton specialises and compiles a launch: aligned pointers, and 1 and None known, but for
    what a kernel keeps open."""
    names = launch.kernel.arg_names
    open_names = {p.name for p in launch.kernel.params if p.do_not_specialize}
    arguments = dict(zip(names, launch.args, strict=False))
    arguments |= {k: v for k, v in launch.options.items() if k in names}
    constants = {p.name for p in launch.kernel.params if p.is_constexpr}
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(names):
        value = arguments[name]
        if name in open_names:
            signature[name] = _type_of(value)
            continue
        if name in constants or value is None or (type(value) is int and value == 1):
            signature[name], constexprs[name] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = DIVISIBLE
    source = ASTSource(launch.kernel, signature, constexprs, attributes)
    options = {k: v for k, v in launch.options.items() if k not in names}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"no Triton type for {value!r}")


def resources(kernel: Any, arch: int) -> dict[str, Any]:
    """From ptxas, and counts of telling instructions in the machine code."""
    nvidia = triton.knobs.nvidia
    ptxas = (nvidia.ptxas_blackwell if arch >= 100 else nvidia.ptxas).path
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(kernel.asm["ptx"])
        cubin.write_bytes(kernel.asm["cubin"])
        wanted = re.search(r"\.target\s+(\w+)", ptx.read_text()).group(1)  # type: ignore[union-attr]
        command = [ptxas, "-v", f"--gpu-name={wanted}", str(ptx), "-o", os.devnull]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        sass = _disassembled(cubin)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    assert spills is not None and registers is not None, log
    return {
        "registers": int(registers.group(1)),
        "spill_store_bytes": int(spills.group(1)),
        "spill_load_bytes": int(spills.group(2)),
        "shared_bytes": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "stages": kernel.metadata.num_stages,
        "instructions": sass,
    }


def _disassembled(cubin: Path) -> dict[str, int] | None:
    """How often telling instructions occur, None where the tool does not know the target."""
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-sass", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    found = re.findall(rf"\b({'|'.join(TELLING)})\b", done.stdout)
    return dict(sorted(Counter(found).items()))


def waits_first(kernel: Any) -> bool:
    """Whether an overlapping kernel writes memory only behind its wait. (What it reads before must
    not be what the kernel in front writes: machine code cannot tell.)"""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-sass", str(cubin)]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    writing = re.search(r"\b(ACQBULK|ST|STG|ATOM|ATOMG|RED)\b", sass)
    return writing is not None and writing.group(1) == "ACQBULK"


def examined(case: Case, generation: Generation, overlap: bool) -> list[dict[str, Any]]:
    """One record for each launch of an operation; a failure is recorded, not raised."""
    records = []
    for launch in recorded(case, generation.limits, overlap and generation.limits.can_overlap):
        record: dict[str, Any] = {
            "case": case.name,
            "kernel": launch.kernel.__name__,
            "arch": f"sm_{generation.arch}",
            "grid": list(launch.grid),
            "tiles": {k: v for k, v in launch.options.items() if k.isupper() and k != "EPS"},
        }
        try:
            kernel = compiled(launch, generation.arch)
            record |= resources(kernel, generation.arch)
            if launch.options.get("OVERLAP"):
                record["waits_first"] = waits_first(kernel)
            record["fits"] = record["shared_bytes"] <= generation.limits.shared_memory
        except Exception as error:  # noqa: BLE001 - any failure to compile belongs in the table
            record["error"] = f"{type(error).__name__}: {str(error).strip()[-300:]}"
        records.append(record)
    return records


def chosen_generations(archs: Sequence[int], ptxas: str | None) -> list[Generation]:
    """Those asked for; Thor only where a ptxas for it is given."""
    return [g for g in GENERATIONS if g.arch in archs and (g.arch != 110 or ptxas)]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """For people: one line a kernel and target."""
    lines = [f"{'case':26} {'arch':7} {'regs':>4} {'spill':>6} {'shared':>7}  instructions"]
    for r in records:
        start = f"{r['case']:26} {r['arch']:7}"
        if "error" in r:
            lines.append(f"{start} FAILED {r['error']}")
            continue
        spill = r["spill_store_bytes"] + r["spill_load_bytes"]
        counts = " ".join(f"{k}:{v}" for k, v in (r["instructions"] or {}).items())
        size = f"{r['registers']:4} {spill:6} {r['shared_bytes']:7}"
        lines.append(f"{start} {size}{'  ' if r['fits'] else ' !'}{counts}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arch", type=int, nargs="+", default=[g.arch for g in GENERATIONS])
    parser.add_argument("--case", nargs="+", help="operations whose names contain one of these")
    parser.add_argument("--horizon", type=int, default=kernel_cases.HORIZON, help="action rows")
    parser.add_argument("--overlap", action="store_true", help="with programmatic dependent launch")
    parser.add_argument("--ptxas-blackwell", help="ptxas of CUDA 13 or later, for sm_110")
    arguments = parser.parse_args()
    if arguments.ptxas_blackwell:
        os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = arguments.ptxas_blackwell
    kernel_cases.HORIZON = arguments.horizon
    cases = [
        c for c in all_cases() if not arguments.case or any(n in c.name for n in arguments.case)
    ]
    generations = chosen_generations(arguments.arch, arguments.ptxas_blackwell)
    records = [
        record
        for generation in generations
        for case in cases
        if not (case.fp8 and not generation.limits.has_fp8)
        for record in examined(case, generation, arguments.overlap)
    ]
    print(table(records))
    if arguments.out:
        result = {
            "command": "benchmarks/kernel_resources.py",
            "triton": triton.__version__,
            "horizon": arguments.horizon,
            "overlap": arguments.overlap,
            "examples": {f"sm_{g.arch}": g.example for g in generations},
            "kernels": records,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(record.get("fits") for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
