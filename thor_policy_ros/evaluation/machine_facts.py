"""Reads what `thor-policy doctor` judges of a machine; no judgement here."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

GIB = 1 << 30
COMMAND_TIMEOUT_S = 10.0
TENSORRT_FLAVOURS = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "torch_tensorrt")
STA_UNSYNC = 0x0040  # <sys/timex.h>
TIMEX_BYTES, ESTERROR_AT, STATUS_AT = 512, 32, 40  # struct timex on a 64-bit Linux


@dataclass(frozen=True)
class GpuFacts:
    """One CUDA device as torch sees it."""

    name: str
    capability: tuple[int, int]
    total_gib: float
    free_gib: float


@dataclass(frozen=True)
class ClockFacts:
    """The kernel's word on its clock. error_us: estimated; None where it does not tell."""

    synchronised: bool | None
    error_us: int | None


@dataclass(frozen=True)
class JetsonFacts:
    """release: of L4T, '' on no Jetson. power_mode: as nvpmodel names it, '' where unknown.
    pinned: whether jetson_clocks holds the GPU's frequency at its highest, None where unknown."""

    release: str = ""
    power_mode: str = ""
    pinned: bool | None = None


@dataclass(frozen=True)
class MachineFacts:
    """device_files: of NVIDIA's driver. flavours: version by installed TensorRT package."""

    system: str
    python: str
    memory_gib: float
    available_gib: float
    torch: str
    torch_cuda: str
    driver: str
    device_files: tuple[str, ...]
    gpus: tuple[GpuFacts, ...]
    flavours: dict[str, str] = field(default_factory=dict)
    governors: tuple[str, ...] = ()
    jetson: JetsonFacts = JetsonFacts()
    clock: ClockFacts = ClockFacts(None, None)


def read_machine() -> MachineFacts:
    """Takes the seconds of importing torch."""
    import torch

    memory = parse_meminfo(_text("/proc/meminfo"))
    return MachineFacts(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        python=platform.python_version(),
        memory_gib=memory.get("MemTotal", 0.0),
        available_gib=memory.get("MemAvailable", 0.0),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda or "",
        driver=parse_driver(_text("/proc/driver/nvidia/version")),
        device_files=tuple(sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))),
        gpus=read_gpus(),
        flavours=read_flavours(),
        governors=read_governors(Path("/sys/devices/system/cpu")),
        jetson=read_jetson(Path("/")),
        clock=read_clock(),
    )


def read_gpus() -> tuple[GpuFacts, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        capability = torch.cuda.get_device_capability(index)
        found.append(GpuFacts(name, capability, total / GIB, free / GIB))
    return tuple(found)


def read_flavours() -> dict[str, str]:
    """Version of each TensorRT package that can be imported; nothing is imported."""
    return {name: _version(name) for name in TENSORRT_FLAVOURS if find_spec(name) is not None}


def _version(module: str) -> str:
    for package in metadata.packages_distributions().get(module, ()):
        return metadata.version(package)
    return "of unknown version"


def read_governors(cpus: Path) -> tuple[str, ...]:
    """The kinds of frequency governor in use, each once; () where the kernel does not tell."""
    files = cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")
    return tuple(sorted({file.read_text().strip() for file in files}))


def read_jetson(root: Path) -> JetsonFacts:
    release = root / "etc/nv_tegra_release"
    if not release.is_file():
        return JetsonFacts()
    mode = parse_power_mode(_output("nvpmodel", "-q"))
    return JetsonFacts(release.read_text().strip(), mode, read_gpu_pinned(root))


def read_gpu_pinned(root: Path) -> bool | None:
    """Whether every GPU's lowest allowed frequency is its highest; None where none is listed."""
    folders = [f for f in (root / "sys/class/devfreq").glob("*") if "gpu" in f.name.lower()]
    bounds = [
        ((folder / "min_freq").read_text().strip(), (folder / "max_freq").read_text().strip())
        for folder in folders
    ]
    return all(low == high for low, high in bounds) if bounds else None


def read_clock() -> ClockFacts:
    """By adjtimex(2), which changes nothing when asked for no mode."""
    if platform.system() != "Linux" or ctypes.sizeof(ctypes.c_long) != 8:
        return ClockFacts(None, None)
    buffer = ctypes.create_string_buffer(TIMEX_BYTES)
    if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
        return ClockFacts(None, None)
    status = ctypes.c_int.from_buffer(buffer, STATUS_AT).value
    error_us = ctypes.c_long.from_buffer(buffer, ESTERROR_AT).value
    return ClockFacts(not status & STA_UNSYNC, error_us)


def parse_meminfo(text: str) -> dict[str, float]:
    """GiB by field."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kib) / (1 << 20) for name, kib in found}


def parse_driver(text: str) -> str:
    """'580.95.05' of /proc/driver/nvidia/version; '' where there is none."""
    found = re.search(r"Module\D*?\s(?:for \S+\s+)?(\d+\.\d+(?:\.\d+)?)", text)
    return found.group(1) if found else ""


def parse_power_mode(text: str) -> str:
    """'MAXN' of `nvpmodel -q`."""
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    return found.group(1) if found else ""


def _text(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.is_file() and os.access(file, os.R_OK) else ""


def _output(*command: str) -> str:
    """What a program prints; '' where it is not installed or does not answer."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        return done.stdout
    return ""
