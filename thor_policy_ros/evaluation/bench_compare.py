"""Backends beside other projects' pi0.5: the same weights, inputs, noise and run; ratios printed.

A peer is installed in an environment of its own and named by that environment's Python; it runs
in a process of its own and takes turns with our backends, frame by frame. Append a mode of
torch.compile to run it compiled, such as lerobot:reduce-overhead. Every frame goes from
preprocessed arrays in host memory to actions there, timed by who computes it. Actions are
compared with those of the first backend.

    thor-policy bench compare --against lerobot,lerobot:reduce-overhead --backend fused_freq1 \\
        --peer-python lerobot=/opt/lerobot/bin/python --config pi05_libero --random-weights
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.evaluation.bench_latency import speedup, stage_quantiles
from thor_policy_ros.evaluation.bench_subject import (
    Subject,
    add_subject_arguments,
    backend_names,
    device_and_dtype,
    opened_subject,
    positive,
)
from thor_policy_ros.evaluation.peer_client import (
    PeerError,
    PeerProcess,
    peer_names,
    write_inputs,
)
from thor_policy_ros.evaluation.result_files import (
    command_line,
    figure_table,
    machine_of,
    versions,
    write_json,
)
from thor_policy_ros.runtime.engine_difference import cosine
from thor_policy_ros.types import F32, Backend, ModelInputs

WARM_UP_ROUNDS = 3


class Entrant(Protocol):
    """Who takes a turn. name: as it was asked for. facts: plain JSON data."""

    name: str
    facts: dict[str, Any]

    def frame(self) -> tuple[float, F32]:
        """Its time in ms, and normalised actions f32[H,32]."""
        ...


class OurEntrant:
    """A backend, every frame of which is a full one."""

    def __init__(
        self, backend: Backend, inputs: ModelInputs, noise: F32, steps: int, ready_s: float
    ) -> None:
        self.name = backend.spec.name
        self.facts = {"kind": "backend", "ready_s": ready_s, "versions": versions()}
        self._backend, self._inputs, self._noise, self._steps = backend, inputs, noise, steps

    def frame(self) -> tuple[float, F32]:
        begun = time.perf_counter()
        prefix = self._backend.prefill(self._inputs, 0.0)
        actions = self._backend.denoise(prefix, self._noise, self._steps)
        return (time.perf_counter() - begun) * 1e3, actions


class PeerEntrant:
    """A peer that is loaded."""

    def __init__(self, name: str, peer: PeerProcess, inputs: Path, facts: dict[str, Any]) -> None:
        self.name, self.facts = name, facts
        self._peer, self._inputs = peer, inputs

    def frame(self) -> tuple[float, F32]:
        made = self._peer.frame(self._inputs)
        return made.frame_ms, made.actions


@dataclass(frozen=True)
class PeerChoice:
    """One of --against. mode: of torch.compile, '' for eager."""

    name: str
    mode: str
    python: str

    @property
    def label(self) -> str:
        return f"{self.name}:{self.mode}" if self.mode else self.name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy bench compare`."""
    add_subject_arguments(parser)
    parser.add_argument(
        "--against", required=True, metavar="PEER[:MODE][,...]",
        help=f"one or more of: {', '.join(peer_names())}; MODE: of torch.compile",
    )  # fmt: skip
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="PEER=PYTHON",
        help="the Python of the environment in which a peer is installed; once for each peer",
    )  # fmt: skip
    parser.add_argument("--frames", type=positive, default=30, help="of each (default: 30)")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write."""
    report = compare_report(arguments)
    if arguments.json != "-":
        Console().print(report_table(report))
        print("\n".join(ratio_lines(report)))
    write_json(report, arguments.json)
    return 0


def compare_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everyone's quantiles, ratios and agreement, as plain JSON data."""
    choices = peer_choices(arguments.against, arguments.peer_python)
    device, dtype = device_and_dtype(arguments)
    with opened_subject(arguments) as subject, ExitStack() as opened:
        entrants: list[Entrant] = [
            opened.enter_context(_backend(name, subject, arguments, device, dtype))
            for name in backend_names(arguments)
        ]
        entrants += [
            opened.enter_context(_peer(choice, subject, arguments, device, dtype))
            for choice in choices
        ]
        take_turns(entrants, WARM_UP_ROUNDS)
        frames, actions = take_turns(entrants, arguments.frames)
    ours = backend_names(arguments)
    return {
        "kind": "compare",
        "command": command_line(),
        "machine": machine_of(device),
        "versions": versions(),
        "settings": {
            "config": subject.config_name,
            "weights": subject.weights,
            "cameras": subject.cameras,
            "prompt_tokens": subject.prompt_tokens,
            "num_steps": arguments.num_steps,
            "frames": arguments.frames,
            "dtype": str(dtype).removeprefix("torch."),
        },
        "entrants": [
            {
                "name": entrant.name,
                **entrant.facts,
                "frame_ms": stage_quantiles(rows)["frame"],
                "actions_cosine": cosine(made, actions[0]),
                "actions_max_abs_error": float(np.abs(made - actions[0]).max()),
            }
            for entrant, rows, made in zip(entrants, frames, actions, strict=True)
        ],
        "times_faster": times_faster(entrants, frames, ours),
    }


def take_turns(
    entrants: Sequence[Entrant], rounds: int
) -> tuple[list[list[dict[str, float]]], list[F32]]:
    """Each one's frames in ms, as rows of `frame`, and its last actions; every other round goes
    backwards, so that nobody always follows the same one."""
    frames: list[list[dict[str, float]]] = [[] for _ in entrants]
    actions: dict[int, F32] = {}
    for number in track(range(rounds), "rounds", transient=True):
        order = range(len(entrants))
        for i in order if number % 2 == 0 else reversed(order):
            frame_ms, actions[i] = entrants[i].frame()
            frames[i].append({"frame": frame_ms})
    return frames, [actions[i] for i in range(len(entrants))]


def times_faster(
    entrants: Sequence[Entrant], frames: list[list[dict[str, float]]], ours: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """For each backend, for each other entrant: its time over the backend's, round by round."""
    rows = {entrant.name: row for entrant, row in zip(entrants, frames, strict=True)}
    return {
        name: {other: speedup(rows[other], rows[name], 1) for other in rows if other != name}
        for name in ours
    }


def peer_choices(against: str, pythons: Sequence[str]) -> list[PeerChoice]:
    """ValueError for a peer without an adapter or without a Python."""
    named = dict(item.partition("=")[::2] for item in pythons)
    choices = []
    for item in dict.fromkeys(part.strip() for part in against.split(",") if part.strip()):
        name, _, mode = item.partition(":")
        if name not in peer_names():
            raise ValueError(f"unknown peer {name!r}; choose one of: {', '.join(peer_names())}")
        if not named.get(name):
            raise ValueError(
                f"peer {name!r} runs in an environment of its own: name it with"
                f" --peer-python {name}=/path/to/bin/python"
            )
        choices.append(PeerChoice(name, mode, named[name]))
    if not choices:
        raise ValueError(f"--against wants one or more of: {', '.join(peer_names())}")
    return choices


@contextmanager
def _backend(
    name: str,
    subject: Subject,
    arguments: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[OurEntrant]:
    begun = time.perf_counter()
    backend = create_backend(name, subject.folder, subject.config, device, dtype)
    try:
        backend.warmup()
        frame = subject.inputs(0), subject.noise(0), arguments.num_steps
        backend.denoise(backend.prefill(frame[0], 0.0), *frame[1:])
        yield OurEntrant(backend, *frame, ready_s=time.perf_counter() - begun)
    finally:
        backend.close()


@contextmanager
def _peer(
    choice: PeerChoice,
    subject: Subject,
    arguments: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[PeerEntrant]:
    begun = time.perf_counter()
    settings = {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "compile": choice.mode,
        "num_steps": arguments.num_steps,
        "threads": torch.get_num_threads(),
    }
    with PeerProcess(choice.name, choice.python) as peer, _scratch() as folder:
        facts: dict[str, Any] = {"kind": "peer", "mode": choice.mode, "versions": peer.versions()}
        inputs = write_inputs(folder / "frame.npz", subject.inputs(0), subject.noise(0))
        facts["load_s"] = peer.load(subject.folder, subject.config, settings)
        first = peer.frame(inputs)
        if not np.isfinite(first.actions).all():
            raise PeerError(f"peer {choice.label!r} gave actions that are not finite")
        facts["ready_s"] = time.perf_counter() - begun
        yield PeerEntrant(choice.label, peer, inputs, facts)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="thor_policy_compare_") as folder:
        yield Path(folder)


def report_table(report: Mapping[str, Any]) -> Table:
    """Entrants as rows."""
    settings = report["settings"]
    table = figure_table(
        ("entrant",),
        ("p50 ms", "p99 ms", "ready s", "cosine", "largest error"),
        f"{settings['config']} on {report['machine']['device']}, {settings['dtype']}:"
        f" {settings['cameras']} cameras, {settings['prompt_tokens']} tokens,"
        f" {settings['num_steps']} steps, {settings['frames']} frames",
    )
    for entry in report["entrants"]:
        table.add_row(
            entry["name"],
            f"{entry['frame_ms']['p50']:.2f}",
            f"{entry['frame_ms']['p99']:.2f}",
            f"{entry['ready_s']:.1f}",
            f"{entry['actions_cosine']:.7f}",
            f"{entry['actions_max_abs_error']:.2g}",
        )
    return table


def ratio_lines(report: Mapping[str, Any]) -> list[str]:
    """How many times faster each backend is than everyone else, in words."""
    return [
        f"{ours} is {ratio['median']:.2f} times as fast as {other}"
        f" ({ratio['p05']:.2f} to {ratio['p95']:.2f} in the middle 90 % of rounds)"
        for ours, others in report["times_faster"].items()
        for other, ratio in others.items()
    ]
