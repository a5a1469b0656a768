"""Who may stop the robot beside the motion itself: the operator, and watchdogs.

The emergency stop is latched. It is left by `reset_estop`, after which the robot stays disabled
until it is enabled: two acts of will. This is a software stop, which brakes within the limits; it
does not replace the one that cuts the power.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

ESTOPPED = "emergency stop: call ~/reset_estop, then ~/enable with true"
DISABLED = "disabled: call ~/enable with true"


@dataclass
class HeartbeatWatch:
    """Silence of a node that was heard. Times are of one steady clock.

    Armed by the first beat: a policy that has none is not held to it.
    """

    timeout_s: float = 1.0
    heard_at_s: float = math.nan

    def beat(self, now_s: float) -> None:
        self.heard_at_s = now_s

    def fault(self, now_s: float) -> str:
        """Why the node must be taken for dead, or ''."""
        silent_s = now_s - self.heard_at_s
        if math.isnan(silent_s) or silent_s <= self.timeout_s:
            return ""
        return (
            f"no heartbeat of the policy for {silent_s:.1f} s (at most {self.timeout_s:g} s); "
            "its process or the network to it is gone"
        )


@dataclass
class MotionGuard:
    """What the executor asks before it moves the robot. One thread owns it.

    interventions: how often each named one began, over the life of the process. A reset of the
    motion does not clear them.
    """

    enabled: bool = True
    estopped: bool = False
    watchdog_fault: str = ""
    interventions: Counter[str] = field(default_factory=Counter)
    _lasting: set[str] = field(default_factory=set)

    def estop(self) -> None:
        if not self.estopped:
            self.interventions["emergency_stop"] += 1
        self.estopped, self.enabled = True, False

    def reset_estop(self) -> str:
        """'' or why there is nothing to reset. The robot stays disabled."""
        if not self.estopped:
            return "no emergency stop is latched"
        self.estopped = False
        return ""

    def enable(self, wanted: bool) -> str:
        """'' or why the robot is not enabled."""
        if wanted and self.estopped:
            return "an emergency stop is latched; call ~/reset_estop first"
        if self.enabled and not wanted:
            self.interventions["disabled"] += 1
        self.enabled = wanted
        return ""

    @property
    def halt(self) -> str:
        """Why the robot must stop, or ''."""
        if self.estopped:
            return ESTOPPED
        if not self.enabled:
            return DISABLED
        return self.watchdog_fault

    def note(self, name: str, happening: bool) -> None:
        """Counts the beginning of an intervention that may last many ticks."""
        if happening and name not in self._lasting:
            self.interventions[name] += 1
        (self._lasting.add if happening else self._lasting.discard)(name)

    @property
    def lasting(self) -> tuple[str, ...]:
        """Those that are going on."""
        return tuple(sorted(self._lasting))
