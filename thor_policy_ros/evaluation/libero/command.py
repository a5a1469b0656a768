"""Success of a policy on LIBERO, as openpi's evaluation measures it, for any backend.

Every episode's result is on the disk before the next one begins: the same command, given again
after an interruption, goes on where it was. With --compare each backend plays the same beginnings
with the same noise and is judged in pairs. The simulator runs in processes and an environment of
its own (--make-environment). docs/libero.md says how, and what was run.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console

from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.libero.settings import (
    MAX_STEPS,
    REPLAN,
    SEED,
    SETTLING_STEPS,
    TRIALS,
)
from thor_policy_ros.types import VerificationFailedError

ENVIRONMENT_VARIABLE = "THOR_POLICY_SIMULATOR"
DEFAULT_ENVIRONMENT = "~/.cache/thor_policy_ros/simulator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy libero`."""
    parser.add_argument("--suite", choices=list(MAX_STEPS), metavar="NAME",
                        default="libero_spatial", help=", ".join(MAX_STEPS))  # fmt: skip
    parser.add_argument("--backend", default="pytorch", choices=sorted(BACKENDS), metavar="NAME")
    parser.add_argument(
        "--compare", nargs="+", default=[], choices=sorted(BACKENDS), metavar="NAME",
        help="play the same beginnings with these too; the first one is the reference",
    )  # fmt: skip
    parser.add_argument("--episodes", type=_at_least(1), default=TRIALS, metavar="N",
                        help=f"of each task; default {TRIALS}")  # fmt: skip
    parser.add_argument("--tasks", type=_at_least(0), nargs="+", metavar="N",
                        help="their numbers; default: all of the suite")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="results, films, logs; default: out/libero/SUITE")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the summary there too; - for stdout")
    parser.add_argument("--films", choices=("failures", "all", "none"), default="failures")
    parser.add_argument("--retry-lost", action="store_true",
                        help="play episodes again whose simulator was lost")  # fmt: skip
    _add_policy_arguments(parser)
    _add_protocol_arguments(parser)
    _add_simulator_arguments(parser)


def _add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="folder of weights; needed to play")
    parser.add_argument("--config", help="named policy, where the checkpoint does not say")
    parser.add_argument("--tokenizer", type=Path, help="where the checkpoint has none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as the device")
    parser.add_argument("--threads", type=_at_least(1), default=1, metavar="N",
                        help="of torch on a CPU; results follow from it in the last bits;"
                        " default 1")  # fmt: skip
    parser.add_argument("--no-verify", action="store_true",
                        help="do not compare the backend with the reference before")  # fmt: skip


def _add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("protocol (the defaults are openpi's)")
    group.add_argument("--seed", type=_at_least(0), default=SEED, help=f"default {SEED}")
    group.add_argument("--replan", type=_at_least(1), default=REPLAN, metavar="N",
                       help=f"actions executed of each chunk; default {REPLAN}")  # fmt: skip
    group.add_argument("--num-steps", type=_at_least(1), default=10, metavar="N",
                       help="denoise steps; default 10")  # fmt: skip
    group.add_argument("--max-steps", type=_at_least(1), metavar="N",
                       help="control steps of an episode; default: by suite")  # fmt: skip
    group.add_argument("--settling-steps", type=_at_least(0), default=SETTLING_STEPS, metavar="N",
                       help=f"default {SETTLING_STEPS}")  # fmt: skip


def _add_simulator_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--make-environment", type=Path, metavar="DIR",
        help="make the simulator's environment there (1.4 GB), and play nothing",
    )  # fmt: skip
    parser.add_argument(
        "--environment", type=Path, metavar="DIR",
        default=os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT_ENVIRONMENT),
        help=f"where it is; default: ${ENVIRONMENT_VARIABLE}, or {DEFAULT_ENVIRONMENT}",
    )  # fmt: skip
    parser.add_argument("--timeout", type=_at_least(1), default=60, metavar="S",
                        help="a simulator that takes longer for a step is lost;"
                        " default 60")  # fmt: skip
    parser.add_argument("--workers", default="1", metavar="N",
                        help="simulators at a time, or 'ray': on a Ray cluster")  # fmt: skip
    parser.add_argument("--batch", type=_at_least(1), default=1, metavar="N",
                        help="observations that may share one pass, where the engine can: faster,"
                        " and rounded otherwise; default 1")  # fmt: skip
    group = parser.add_argument_group("with --workers ray")
    group.add_argument("--ray-address", metavar="ADDRESS",
                       help="of a cluster, or auto; default: one is started here")  # fmt: skip
    group.add_argument("--actors", type=_at_least(1), metavar="N",
                       help="policies; default: one for each GPU of the cluster, or 1")  # fmt: skip
    group.add_argument("--environments", type=_at_least(1), default=4, metavar="N",
                       help="simulators beside each policy; default 4")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """0; 1 for a backend that is not the policy, or a simulator that is lost again and again."""
    if arguments.make_environment is not None:
        from thor_policy_ros.evaluation.libero.simulator_environment import make_environment

        print(f"made {make_environment(arguments.make_environment)}")
        return 0
    from thor_policy_ros.evaluation.libero.evaluation import evaluate
    from thor_policy_ros.evaluation.libero.ray_crew import ActorsLostError
    from thor_policy_ros.evaluation.libero.report import pair_lines, summary_table
    from thor_policy_ros.evaluation.libero.simulator_process import SimulatorLostError
    from thor_policy_ros.evaluation.result_files import write_json

    with redirect_stdout(sys.stderr if arguments.json == "-" else sys.stdout):
        console = Console()
        try:
            summary = evaluate(arguments, console)
        except (VerificationFailedError, SimulatorLostError, ActorsLostError) as error:
            print(f"thor-policy libero: stopped: {error}", file=sys.stderr)
            return 1
        console.print(summary_table(summary, f"{arguments.suite}: {arguments.checkpoint}"))
        for line in pair_lines(summary):
            console.print(line, markup=False)
        if not summary["protocol"]["benchmark"]:
            console.print("wiring, no figures of LIBERO: another suite or protocol than openpi's")
    write_json(summary, arguments.json)
    return 0


def _at_least(low: int) -> Any:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"wanted at least {low}, got {text!r}")
        return value

    return number
