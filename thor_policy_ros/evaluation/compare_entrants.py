"""Who takes turns in `bench compare`: our backends in this process, each peer in one of its own.

All peers load and compile at once, beside our backends: compiling takes a peer minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.evaluation.bench_subject import (
    REFERENCE,
    Subject,
    backend_names,
    device_and_dtype,
)
from thor_policy_ros.evaluation.peer_client import (
    PeerError,
    PeerProcess,
    peer_names,
    write_inputs,
)
from thor_policy_ros.evaluation.result_files import versions
from thor_policy_ros.types import F32, Backend, ModelInputs

FIRST_FRAMES = 3
"""A mode that captures CUDA graphs compiles in a peer's first frame and captures in its second."""


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
def opened_entrants(
    choices: Sequence[PeerChoice], subject: Subject, arguments: argparse.Namespace
) -> Iterator[list[Entrant]]:
    """Our backends, then the peers, all of them ready."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="thor_compare_")))
        inputs = write_inputs(folder / "frame.npz", subject.inputs(0), subject.noise(0))
        threads = opened.enter_context(ThreadPoolExecutor(len(choices)))
        # Ended before the threads are waited for: what goes wrong here must not wait for a peer.
        peers = [opened.enter_context(PeerProcess(c.name, c.python)) for c in choices]
        made_of = [peer.versions() for peer in peers]
        preparing = [
            threads.submit(_ready_peer, choice, peer, made, inputs, subject, arguments)
            for choice, peer, made in zip(choices, peers, made_of, strict=True)
        ]
        ours = [
            opened.enter_context(_backend(name, subject, arguments))
            for name in backend_names(arguments)
        ]
        yield [*ours, *(future.result() for future in preparing)]


def float32_actions(subject: Subject, arguments: argparse.Namespace) -> F32:
    """The same frame by eager PyTorch in float32, which everyone is held against."""
    device, _ = device_and_dtype(arguments)
    config, steps = subject.config, arguments.num_steps
    with closing(create_backend(REFERENCE, subject.folder, config, device, "float32")) as backend:
        actions = backend.denoise(backend.prefill(subject.inputs(0), 0.0), subject.noise(0), steps)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return actions


@contextmanager
def _backend(name: str, subject: Subject, arguments: argparse.Namespace) -> Iterator[OurEntrant]:
    begun = time.perf_counter()
    device, dtype = device_and_dtype(arguments)
    backend = create_backend(name, subject.folder, subject.config, device, dtype)
    try:
        backend.warmup()
        frame = subject.inputs(0), subject.noise(0), arguments.num_steps
        backend.denoise(backend.prefill(frame[0], 0.0), *frame[1:])
        yield OurEntrant(backend, *frame, ready_s=time.perf_counter() - begun)
    finally:
        backend.close()


def _ready_peer(
    choice: PeerChoice,
    peer: PeerProcess,
    made_of: dict[str, str],
    inputs: Path,
    subject: Subject,
    arguments: argparse.Namespace,
) -> PeerEntrant:
    """In a thread of its own, which reads the peer's answers while it loads and compiles."""
    begun = time.perf_counter()
    device, dtype = device_and_dtype(arguments)
    settings = {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "compile": choice.mode,
        "num_steps": arguments.num_steps,
        "threads": torch.get_num_threads(),
    }
    facts: dict[str, Any] = {"kind": "peer", "mode": choice.mode, "versions": made_of}
    facts["load_s"] = peer.load(subject.folder, subject.config, settings)
    first = [peer.frame(inputs) for _ in range(FIRST_FRAMES)]
    if not all(np.isfinite(frame.actions).all() for frame in first):
        raise PeerError(f"peer {choice.label!r} gave actions that are not finite")
    facts["first_frames_s"] = [frame.frame_ms / 1e3 for frame in first]
    facts["ready_s"] = time.perf_counter() - begun
    return PeerEntrant(choice.label, peer, inputs, facts)
