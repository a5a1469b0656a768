"""What the policy's process takes of host and GPU memory, for diagnostics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MB = 1e6


def memory_values(device: Any) -> dict[str, object]:
    """Megabytes by name: of the host where the system tells (Linux), and of the device, a
    torch.device or None, where it is a CUDA one.

    gpu_allocated_mb: torch's tensors; gpu_reserved_mb: what torch keeps for them; gpu_used_mb:
    on the whole GPU, by every process and by engines outside of torch.
    """
    values: dict[str, object] = {}
    rss = rss_bytes(os.getpid())
    if rss is not None:
        values["host_rss_mb"] = rss / MB
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        values["gpu_allocated_mb"] = torch.cuda.memory_allocated(device) / MB
        values["gpu_reserved_mb"] = torch.cuda.memory_reserved(device) / MB
        values["gpu_used_mb"] = (total - free) / MB
    return values


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where there is no Linux /proc."""
    path = Path(f"/proc/{pid}/statm")
    if not path.is_file():
        return None
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def nvml_process_bytes(pid: int) -> int | None:
    """GPU memory of a process as the driver counts it, engines outside of torch included.

    None without the package nvidia-ml-py, without its driver, or where the driver does not see
    the process (in most containers).
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _process_bytes(pynvml, pid)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _process_bytes(pynvml: Any, pid: int) -> int | None:
    used = [
        process.usedGpuMemory
        for index in range(pynvml.nvmlDeviceGetCount())
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(
            pynvml.nvmlDeviceGetHandleByIndex(index)
        )
        if process.pid == pid and process.usedGpuMemory is not None
    ]
    return sum(used) if used else None
