"""What the options of `thor-policy libero` mean together."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from thor_policy_ros.evaluation.libero.settings import (
    MAX_STEPS,
    REPLAN,
    SEED,
    SETTLING_STEPS,
    Settings,
)

RAY = "ray"


def backends_of(arguments: argparse.Namespace) -> list[str]:
    """The reference first: the others are told of against it."""
    names = list(dict.fromkeys((*arguments.compare, arguments.backend)))
    if arguments.compare and len(names) < 2:
        raise ValueError(f"--compare wants another backend than {arguments.backend!r}")
    return names


def settings_of(arguments: argparse.Namespace) -> Settings:
    return Settings(
        suite=arguments.suite,
        max_steps=arguments.max_steps or MAX_STEPS[arguments.suite],
        seed=arguments.seed,
        replan=arguments.replan,
        num_steps=arguments.num_steps,
        settling_steps=arguments.settling_steps,
    )


def workers_of(arguments: argparse.Namespace) -> int | None:
    """Simulators at a time; None for Ray."""
    if arguments.workers == RAY:
        return None
    if not arguments.workers.isdecimal() or int(arguments.workers) < 1:
        raise ValueError(f"--workers wants a number of at least 1 or 'ray', got"
                         f" {arguments.workers!r}")  # fmt: skip
    return int(arguments.workers)


def journal_settings(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What results follow from; backends, tasks and trials are the episodes' own."""
    return {
        **asdict(settings),
        "checkpoint": str(arguments.checkpoint),
        "config": arguments.config,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "batch": arguments.batch,
    }


def deviations(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether these figures may be called LIBERO's: its suites, played as openpi plays them."""
    defaults = {
        "seed": SEED,
        "replan": REPLAN,
        "settling_steps": SETTLING_STEPS,
        "max_steps": MAX_STEPS[arguments.suite],
    }
    settings = settings_of(arguments)
    other = {n: getattr(settings, n) for n, v in defaults.items() if getattr(settings, n) != v}
    return {
        "benchmark": arguments.suite.startswith("libero_") and not other,
        "other_than_openpi": other,
    }
