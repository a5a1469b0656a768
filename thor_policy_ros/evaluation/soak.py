"""Run the demo for an hour while its backend and live parameters change at random.

Backends are those that run here, parameters those of the policy node and the executor that may
change while they run, within working ranges; wrong values are tried too and have to be refused.
Watched are the memory of each process, the executor's watchdogs, every command and every episode.
Success is compared with quiet minutes between, without changes. Exit status 0 only if memory is
flat, no watchdog tripped without reason, none stayed silent, no limit was exceeded, and the success
is not significantly lower than in the quiet minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thor_policy_ros.evaluation.intervals import fisher_exact, wilson_interval
from thor_policy_ros.evaluation.result_files import command_line, versions, write_json

MODULE = "thor_policy_ros.ros.long_soak"
SIGNIFICANT = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=60.0, help="with changes (default 60)")
    parser.add_argument(
        "--quiet", type=float, default=6.0, help="minutes between, without changes (default 6)"
    )
    parser.add_argument(
        "--every", type=float, default=1.0, help="mean time between changes, s (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default 0)")
    parser.add_argument("--backends", nargs="+", help="default: all that can run here")
    parser.add_argument("--device", default="cpu", help="default: cpu, as the demo")
    parser.add_argument(
        "--speed", type=float, default=0.08, help="drift of the objects, m/s (default 0.08)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="folder for logs")
    parser.add_argument("--json", help="write the figures to this file; - for stdout")
    parser.add_argument("--note", default="", help="kept with the figures: what else was running")


def run(arguments: argparse.Namespace) -> int:
    """0 if nothing was found; 1 otherwise."""
    if find_spec("rclpy") is None:
        raise ValueError("soak wants ROS 2: source its setup file, or run `make setup`")
    if arguments.minutes <= 0 or arguments.quiet < 0 or arguments.every <= 0:
        raise ValueError("soak wants positive --minutes and --every, and --quiet of at least 0")
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        argv = [sys.executable, "-m", MODULE, "--json", str(facts)]
        for name in ("minutes", "quiet", "every", "seed", "device", "speed", "out"):
            argv += [f"--{name}", str(getattr(arguments, name))]
        if arguments.backends:
            argv += ["--backends", *arguments.backends]
        subprocess.run(argv, check=False)
        if not facts.is_file():
            raise ValueError(f"the soak left no figures; see its messages and {arguments.out}/logs")
        result = judged(json.loads(facts.read_text()))
    heading = {"command": command_line(), "note": arguments.note, "versions": versions()}
    write_json({**heading, **result}, arguments.json)
    print(words(result), file=sys.stderr)
    return 1 if result["faults"] else 0


def judged(facts: Mapping[str, Any]) -> dict[str, Any]:
    """With the success of both parts, its interval, and whether they differ."""
    result, faults = dict(facts), list(facts["faults"])
    parts = {
        name: (facts[name]["solved"], facts[name]["episodes"]) for name in ("quiet", "changing")
    }
    success: dict[str, Any] = {
        name: {
            "solved": solved,
            "episodes": episodes,
            "wilson_95": [round(x, 4) for x in wilson_interval(solved, episodes)],
        }
        for name, (solved, episodes) in parts.items()
    }
    if not facts["finished"]:
        faults.append("the soak ended early")
    if not parts["changing"][1]:
        faults.append("no episode ended")
    elif parts["quiet"][1]:
        p = fisher_exact(parts["quiet"], parts["changing"])
        success["fisher_p"] = round(p, 4)
        rates = {name: solved / episodes for name, (solved, episodes) in parts.items()}
        if p < SIGNIFICANT and rates["changing"] < rates["quiet"]:
            faults.append(f"success fell from {rates['quiet']:.1%} to {rates['changing']:.1%}")
    result["success"], result["faults"] = success, faults
    return result


def words(result: Mapping[str, Any]) -> str:
    """What a person wants to know of it."""
    success, motion, changes = result["success"], result["motion"], result["changes"]
    lines = [
        f"{result['changing']['seconds'] / 60:.1f} min, {changes['made']} changes, "
        f"{changes['refused_as_they_must']} refused",
        *(
            f"{name}: {part['solved']}/{part['episodes']} episodes "
            f"({part['wilson_95'][0]:.1%} to {part['wilson_95'][1]:.1%})"
            for name, part in success.items()
            if name != "fisher_p"
        ),
        *(
            f"memory of {name}: {m['first_fifth_mb']} to {m['last_fifth_mb']} MB, "
            f"{m['slope_mb_per_hour']:+} MB/h"
            for name, m in result["memory"].items()
            if "growth" in m
        ),
        f"peak velocity {motion['peak_velocity']:.3f} rad/s, acceleration "
        f"{motion['peak_acceleration']:.2f} rad/s^2, longest gap {motion['longest_gap_s']:.3f} s",
        f"interventions {result['interventions']}, watchdog {result['watchdog']}",
        *(f"FAULT: {fault}" for fault in result["faults"]),
    ]
    return "\n".join(lines)
