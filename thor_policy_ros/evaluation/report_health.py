"""What /diagnostics said during a recording: levels over time, troubles, safety, the machine."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LEVELS = ("fine", "warning", "error", "stale")
"""By the number that DiagnosticStatus has for each."""
SEVERITY = {"fine": 0, "warning": 1, "stale": 2, "error": 3}
SETTINGS = (
    ("backend", "requested"),
    ("reuse", "mode"),
    ("reuse", "reuse_every"),
    ("inference", "num_denoise_steps"),
    ("inference", "control_rate_hz"),
    ("motion", "chunk_blending"),
    ("injected latency", "inject_latency_ms"),
)
"""Values on /diagnostics that are settings: task and key."""
GAP_S = 2.5
"""A status that was not heard for so long was silent meanwhile; it is said once a second."""


@dataclass(frozen=True)
class Said:
    """One status at one time, since the recording began."""

    at_s: float
    level: str
    message: str
    values: Mapping[str, str]


@dataclass
class Health:
    """By the name of the status, as 'policy_node: inference'; each in the order of time."""

    said: dict[str, list[Said]] = field(default_factory=dict)
    hardware: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, diagnostics: Iterable[tuple[float, Any]], start_s: float) -> Health:
        """diagnostics: time in s and DiagnosticArray."""
        found = cls()
        for at_s, message in diagnostics:
            for status in message.status:
                level = LEVELS[min(_number(status.level), len(LEVELS) - 1)]
                values = {pair.key: pair.value for pair in status.values}
                said = Said(at_s - start_s, level, status.message, values)
                found.said.setdefault(status.name, []).append(said)
                if status.hardware_id:
                    found.hardware.add(status.hardware_id)
        return found

    def task(self, task: str) -> list[Said]:
        """Of the first node that has it: task is 'execution' of '...: execution'."""
        for name, said in self.said.items():
            if name.endswith(f": {task}"):
                return said
        return []

    def last_values(self, task: str) -> Mapping[str, str]:
        said = self.task(task)
        return said[-1].values if said else {}

    def strips(self, name: str, end_s: float) -> list[tuple[float, float, str, str]]:
        """Stretches of one level: begin and end in s, level, words. A silence is a hole."""
        found: list[tuple[float, float, str, str]] = []
        said = self.said[name]
        ends = [*(one.at_s for one in said[1:]), end_s]
        for one, next_s in zip(said, ends, strict=True):
            until = min(next_s, one.at_s + GAP_S)
            if found and found[-1][2:] == (one.level, one.message) and found[-1][1] >= one.at_s:
                found[-1] = (found[-1][0], until, one.level, one.message)
            else:
                found.append((one.at_s, until, one.level, one.message))
        return found

    def troubles(self) -> list[Trouble]:
        """Each that was told, the worst and most frequent first; numbers in words do not count."""
        found: dict[tuple[str, str, str], Trouble] = {}
        for name, said in self.said.items():
            for one in said:
                if one.level == "fine":
                    continue
                key = name, one.level, re.sub(r"[0-9.]+", "#", one.message)
                trouble = found.setdefault(key, Trouble(name, one.level, one.message, one.at_s))
                trouble.reports += 1
                trouble.of = len(said)
        return sorted(found.values(), key=lambda t: (-SEVERITY[t.level], -t.reports, t.first_s))

    def interventions(self) -> Counter[str]:
        """Of the safety layer, by name: how often during the recording."""
        return _grown(self.task("safety"), "interventions.")

    def clamps(self) -> Counter[str]:
        """Commands that the executor held to a limit, and what else it counts."""
        names = ("clamped_", "refusals", "clock_jumps", "chunks_accepted", "ticks")
        found: Counter[str] = Counter()
        for name in names:
            found += _grown(self.task("execution"), name, whole=True)
        return found

    def changes(self) -> list[tuple[float, str, str, str]]:
        """Settings that changed while it ran: time in s, name, before, after."""
        found = []
        for task, key in SETTINGS:
            said = [one for one in self.task(task) if one.values.get(key)]
            for before, after in itertools.pairwise(said):
                if before.values[key] != after.values[key]:
                    found.append(
                        (after.at_s, f"{task}: {key}", before.values[key], after.values[key])
                    )
        return sorted(found)

    def executor_states(self) -> Counter[str]:
        """Reports in each state."""
        said = self.task("execution")
        return Counter(one.values["state"] for one in said if one.values.get("state"))


@dataclass
class Trouble:
    """What a status said that was not fine. reports: how many said so, of so many."""

    name: str
    level: str
    message: str
    first_s: float
    reports: int = 0
    of: int = 0


def _number(level: Any) -> int:
    return level[0] if isinstance(level, (bytes, bytearray)) else int(level)


def _grown(said: Iterable[Said], prefix: str, *, whole: bool = False) -> Counter[str]:
    """By how much each counter grew, where it began anew by what it reached."""
    last: dict[str, int] = {}
    found: Counter[str] = Counter()
    first = True
    for one in said:
        for key, text in one.values.items():
            if not key.startswith(prefix) or not text.isdigit():
                continue
            name, value = key if whole else key[len(prefix) :], int(text)
            before = last.get(name, value if first else 0)
            found[name] += value - before if value >= before else value
            last[name] = value
        first = False
    return Counter({name: count for name, count in found.items() if count})
