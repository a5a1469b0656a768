"""GPU memory during a soak: whether a backend takes more each time it comes round. No ROS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("gpu_allocated_mb", "gpu_reserved_mb", "gpu_used_mb", "gpu_process_mb")
"""torch's tensors, torch's reserve, the whole GPU, and the process as NVML counts it."""
GROWTH_LIMIT = 0.05
LEAST_MB = 64.0
"""Growth below this is a library's workspace: a leak is an engine, or grows with every switch."""


@dataclass
class GpuMemory:
    """Samples by backend, in the order they came; empty without a GPU."""

    samples: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)

    def add(self, backend: str, values: Mapping[str, float | None]) -> None:
        """While `backend` runs and nothing loads. What is not known is left out."""
        known = {kind: float(mb) for kind, mb in values.items() if kind in KINDS and mb is not None}
        if known:
            self.samples.setdefault(backend, []).append(known)

    def growth_mb(self, kind: str) -> dict[str, tuple[float, float]]:
        """By backend, the least of the earlier and of the later samples: what an engine that was
        just replaced still held is in neither. Of backends seen four times at least, the first
        time, in which libraries load, left out.
        """
        found = {}
        for backend, samples in self.samples.items():
            seen = [sample[kind] for sample in samples[1:] if kind in sample]
            if len(seen) >= 3:
                half = len(seen) // 2
                found[backend] = min(seen[:half]), min(seen[half:])
        return found

    def faults(self) -> list[str]:
        """The worst backend of each kind that grew."""
        said = []
        for kind in KINDS:
            growth = self.growth_mb(kind)
            worst = max(growth, key=lambda name: growth[name][1] - growth[name][0], default="")
            if not worst:
                continue
            early, late = growth[worst]
            if late - early > max(LEAST_MB, GROWTH_LIMIT * early):
                said.append(f"{kind} of {worst} grew from {early:.0f} to {late:.0f}")
        return said

    def summary(self) -> dict[str, Any]:
        return {
            kind: {
                "max": max(seen),
                "earlier_and_later": {
                    name: [round(early, 1), round(late, 1)]
                    for name, (early, late) in self.growth_mb(kind).items()
                },
            }
            for kind in KINDS
            if (seen := [s[kind] for many in self.samples.values() for s in many if kind in s])
        }
