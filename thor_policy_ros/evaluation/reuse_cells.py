"""The cells of the reuse study: which ways of using the time are compared, and where."""

from __future__ import annotations

from dataclasses import dataclass

from thor_policy_ros.evaluation.simulated_device import DeviceProfile
from thor_policy_ros.runtime.reuse import ReuseRules

DEADLINE_MS = 100.0  # one control period of the demo
SPEEDS_M_S = (0.0, 0.08, 0.12)

# A full frame of two cameras and three steps takes as long as pi0.5 with ten steps does on a
# Jetson Thor: 94 ms with TensorRT in FP8, 170 ms with PyTorch. Shares as of a large GPU. In no
# time at all, to see what reuse does to the motion apart from its latency.
DEVICES = {
    "94 ms": DeviceProfile(vision_ms=9.0, prefill_ms=43.0, step_ms=11.0),
    "170 ms": DeviceProfile(vision_ms=16.0, prefill_ms=78.0, step_ms=20.0),
    "0 ms": DeviceProfile(vision_ms=0.0, prefill_ms=0.0, step_ms=0.0),
}


@dataclass(frozen=True)
class Way:
    """How the time between two refills is used; one row of the tables.

    every: refill every so many ticks, or at least, by mode. by_state: refill also when the
    state's tokens change, which they do whenever the arm moves.
    """

    name: str
    mode: str
    every: int
    indexing: str = "aligned"
    by_state: bool = False

    @property
    def rules(self) -> ReuseRules:
        return ReuseRules(mode=self.mode, refresh_on_state=self.by_state, deadline_ms=DEADLINE_MS)


@dataclass(frozen=True)
class Cell:
    """What is measured: a way, on a device, with targets of a speed; or the reaction to a
    target that is moved at once ('reaction', speed 0)."""

    way: Way
    device: str
    kind: str
    speed_m_s: float

    @property
    def name(self) -> str:
        where = "reaction" if self.kind == "reaction" else f"{self.speed_m_s:g} m/s"
        return f"{self.way.name} | {self.device} | {where}"


REFERENCE = Way("refill every tick", "fixed", 1)
NAIVE = tuple(
    Way(f"reuse, every {n}, naive" if n > 1 else "refill every tick, naive", "fixed", n, "naive")
    for n in (1, 2, 3, 5)
)
REUSE = tuple(Way(f"reuse, every {n}", "fixed", n) for n in (2, 3, 5))
CONTINUE = tuple(Way(f"continue, every {n}", "continue", n) for n in (2, 3, 5))
BY_STATE = Way("reuse, every 3, refill by state", "fixed", 3, by_state=True)
ADAPTIVE = Way("adaptive, at least every 5", "adaptive", 5)
DEADLINE = Way("deadline, at least every 5", "deadline", 5)
WAYS = (REFERENCE, *REUSE, *CONTINUE, ADAPTIVE, DEADLINE, BY_STATE, *NAIVE)
SLOW_WAYS = (REFERENCE, *REUSE[:2], *CONTINUE[:2], DEADLINE)
INSTANT_WAYS = (REFERENCE, *REUSE, *CONTINUE, *NAIVE[1:])


def cells() -> list[Cell]:
    """Every way on the device that keeps up, with the reactions; some on the others."""
    fast, slow, instant = DEVICES
    aligned = [way for way in WAYS if way.indexing == "aligned"]
    return [
        *(Cell(way, fast, "task", speed) for speed in SPEEDS_M_S for way in WAYS),
        *(Cell(way, fast, "reaction", 0.0) for way in aligned),
        *(Cell(way, slow, "task", speed) for speed in SPEEDS_M_S for way in SLOW_WAYS),
        *(Cell(way, instant, "task", speed) for speed in SPEEDS_M_S for way in INSTANT_WAYS),
    ]
