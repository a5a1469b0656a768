"""Measure backends: latency by stage, precision, and the modules they are made of.

`thor-policy bench KIND --help` says more about each.
"""

from __future__ import annotations

import argparse
from importlib import import_module

KINDS = {
    "compare": "frames beside other projects' pi0.5 in the same run, with ratios",
    "latency": "stages and frames of backends beside eager PyTorch, taking turns",
    "regress": "fail where a backend lost speed against a stored latency result",
    "precision": "cosine and error of K, V and actions against float32, the worst of N",
    "modules": "GEMM, MLP, fusions and the prefix on this GPU, dense and in FP8",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand for each kind."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, summary in KINDS.items():
        module = _module(name)
        kind = kinds.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(kind)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen kind."""
    return int(_module(arguments.kind).run(arguments))


def _module(kind: str):  # type: ignore[no-untyped-def]
    return import_module(f"thor_policy_ros.evaluation.bench_{kind}")
