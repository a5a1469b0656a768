"""Temperature, clocks and memory of a GPU, by NVML where there is one (package nvidia-ml-py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class GpuHealth:
    """Reads one GPU; made once, read once a second. `missing` says why nothing is read.

    uuid: of the device, 'GPU-...'; None for the first. nvml: the module pynvml, or one like it;
    None imports it.
    """

    def __init__(self, uuid: str | None, nvml: Any = None) -> None:
        self.missing = ""
        self._nvml = nvml
        self._handle: Any = None
        try:
            self._open(uuid)
        except ImportError:
            self.missing = "package nvidia-ml-py is not installed"
        except self._error() as error:
            self.missing = f"NVML: {error}"

    def _open(self, uuid: str | None) -> None:
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        self._nvml.nvmlInit()
        self._handle = (
            self._nvml.nvmlDeviceGetHandleByIndex(0)
            if uuid is None
            else self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        )

    def _error(self) -> type[Exception]:
        error: type[Exception] = getattr(self._nvml, "NVMLError", RuntimeError)
        return error

    def values(self) -> dict[str, float]:
        """Figures by name; those that this GPU does not tell are left out (a Jetson tells few)."""
        if self._handle is None:
            return {}
        nvml, handle = self._nvml, self._handle
        reads: dict[str, Callable[[], float]] = {
            "gpu_temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "gpu_power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "gpu_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu_memory_used_ratio": lambda: _used(nvml.nvmlDeviceGetMemoryInfo(handle)),
        }
        found: dict[str, float] = {}
        for name, read in reads.items():
            try:
                found[name] = float(read())
            except self._error():
                continue  # not told by this GPU
        return found


def _used(memory: Any) -> float:
    return float(memory.used / memory.total)


def uuid_of(device: Any) -> str | None:
    """NVML's name of a torch.device; None for one that is no CUDA device."""
    if getattr(device, "type", "cpu") != "cuda":
        return None
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
