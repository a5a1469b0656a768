"""Everything that only a CUDA GPU can show of the backends, in one command of under 10 minutes.

    PYTHONPATH=. python3 benchmarks/gpu_checks.py --out gpu_checks.json

Wants torch with CUDA, numpy, safetensors, sentencepiece, pillow, pyyaml and rich; 8 GB of disk in
TMPDIR and 30 GB of GPU memory. Without pytest or mujoco their sections say so and are skipped.

demo: every engine that can run here against float32, on the demo checkpoint.
soak: 100 live switches among all backends while frames are made: memory, gaps, nothing unverified.
full: every engine against float32 at pi05_libero's size, random weights, FP8 calibrated.
exhausted: the GPU's memory used up: a second backend is refused, the first answers as before.
tests: `pytest -m gpu`.
success: every engine on the same simulated scenes, in pairs with `pytorch`.

Each section is processes of its own with a time limit; what fails, crashes or hangs is recorded,
and the next item begins. Results are written after every item. `--device cpu --toy` rehearses all
of it on a CPU: a test of this script, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gpu_sections

ROOT = Path(__file__).parents[1]
SAID_LAST = 2000
BUDGET_S = 580.0


class Section(NamedTuple):
    """limit_s: for all its items. by_engine: an item for each engine, else one of all."""

    name: str
    limit_s: float
    by_engine: bool
    work: Callable[..., Any]


SECTIONS = (
    Section("demo", 90, True, gpu_sections.demo),
    Section("soak", 100, False, gpu_sections.soak),
    Section("full", 130, True, gpu_sections.full),
    Section("exhausted", 150, False, gpu_sections.exhausted),
    Section("tests", 150, False, gpu_sections.tests),
    Section("success", 240, True, gpu_sections.success),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes and counts: a rehearsal")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds in all")
    parser.add_argument("--sections", default=",".join(s.name for s in SECTIONS))
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        return run_inner(json.loads(arguments.inner), arguments)
    with tempfile.TemporaryDirectory(prefix="thor_policy_gpu_") as work:
        return Run(arguments, Path(work)).all()


class Run:
    """One run of the sections. results: what --out holds, rewritten after every item."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self._arguments, self._work = arguments, work
        self._begun_s = time.monotonic()
        self.results: dict[str, Any] = {
            "toy": arguments.toy,
            "device": arguments.device,
            "sections": {},
        }

    def all(self) -> int:
        """0 where every item of every section is fine, or was skipped for a stated reason."""
        facts = self._section(Section("facts", 60, False, gpu_sections.facts), [])
        engines = facts.get("all", {}).get("engines", [])
        chosen = self._arguments.sections.split(",")
        for section in (section for section in SECTIONS if section.name in chosen):
            self._section(section, engines)
        self.results["faults"] = faults = self._faults()
        self.results["seconds"] = round(time.monotonic() - self._begun_s, 1)
        self._write()
        print("faults:", json.dumps(faults, indent=1) if faults else "none", flush=True)
        return 1 if faults else 0

    def _section(self, section: Section, engines: Sequence[str]) -> dict[str, Any]:
        begun_s = time.monotonic()
        left_s = self._arguments.budget - (begun_s - self._begun_s)
        until_s = begun_s + min(section.limit_s, left_s)
        found: dict[str, Any] = {}
        self.results["sections"][section.name] = found
        items = list(engines) if section.by_engine else ["all"]
        while items and time.monotonic() < until_s:
            done = self._process(section, items, until_s - time.monotonic())
            found.update(done)
            items = [item for item in items if item not in done]
            self._write()
        found.update({item: {"error": "no time was left for it"} for item in items})
        self._write()
        taken_s = time.monotonic() - begun_s
        wrong = [item for item, result in found.items() if "error" in result]
        print(f"{section.name}: {taken_s:.0f} s, failed: {wrong or 'nothing'}", flush=True)
        return found

    def _process(self, section: Section, items: Sequence[str], limit_s: float) -> dict[str, Any]:
        """Results of the items that one process came to; the one it ended in is an error."""
        results = self._work / f"{section.name}.jsonl"
        results.write_text("")
        inner = {
            "section": section.name,
            "items": list(items),
            "work": str(self._work),
            "results": str(results),
            "limit_s": limit_s,
        }
        command = [
            sys.executable, __file__, "--out", str(self._arguments.out),
            "--device", self._arguments.device, "--inner", json.dumps(inner),
        ]  # fmt: skip
        command += ["--toy"] if self._arguments.toy else []
        log = self._work / f"{section.name}.log"
        ended = _run(command, log, limit_s)
        found = dict(json.loads(line) for line in results.read_text().splitlines())
        missed = [item for item in items if item not in found]
        if missed:
            said = log.read_text(errors="replace")[-SAID_LAST:]
            found[missed[0]] = {"error": ended or "its process ended", "said": said.splitlines()}
        return found

    def _faults(self) -> list[str]:
        return [
            f"{name} {item}: {fault}"
            for name, found in self.results["sections"].items()
            for item, result in found.items()
            for fault in (result.get("faults") or []) + [result.get("error")]
            if fault
        ]

    def _write(self) -> None:
        self._arguments.out.write_text(json.dumps(self.results, indent=1) + "\n")


def _run(command: Sequence[str], log: Path, limit_s: float) -> str:
    """'' where the process ended well, else how it ended."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"out of time after {limit_s:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # its own children are of its group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"its process ended with status {status}" if status else ""


def run_inner(inner: dict[str, Any], arguments: argparse.Namespace) -> int:
    """One section's items, each result appended as it is there."""
    work = next(
        (s.work for s in SECTIONS if s.name == inner["section"]),
        gpu_sections.facts,
    )
    place = gpu_sections.Place(
        Path(inner["work"]), arguments.device, arguments.toy, inner["limit_s"]
    )
    with Path(inner["results"]).open("a") as out:
        for item, result in work(place, inner["items"]):
            out.write(json.dumps([item, result]) + "\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
