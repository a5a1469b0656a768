"""A peer in a process of its own, started with the Python of the environment that it is in."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.types import F32, Closing, ModelInputs

PEERS = Path(__file__).parent / "peers"
STDERR_KEPT = 2000


class PeerError(ValueError):
    """A peer cannot run; the message says what its environment lacks, or what it said last."""


@dataclass(frozen=True)
class PeerFrame:
    """frame_ms: by the peer's clock, host memory to host memory. actions: f32[H,A], normalised."""

    frame_ms: float
    actions: F32


def peer_names() -> list[str]:
    """Those with an adapter."""
    return sorted(path.name[: -len("_peer.py")] for path in PEERS.glob("*_peer.py"))


class PeerProcess(Closing):
    """Speaks with `peers/peer_process.py`. Close it, or use it as a context manager."""

    def __init__(self, name: str, python: str, folder: Path | None = None) -> None:
        self.name = name
        self._python = python
        # To a file: a peer that fills a pipe nobody reads would stop.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        command = [python, "-u", str((folder or PEERS) / "peer_process.py"), name]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
            )
        except OSError as error:
            self._said.close()
            raise PeerError(f"peer {name!r}: cannot start {python}: {error}") from error

    def versions(self) -> dict[str, str]:
        """Of what it is made of; PeerError names the packages that its environment lacks."""
        answer = self._ask(op="probe")
        if answer["missing"]:
            raise PeerError(
                f"peer {self.name!r}: the environment of {self._python} lacks"
                f" {', '.join(answer['missing'])}; install it there, or name another with"
                f" --peer-python {self.name}=PATH"
            )
        versions: dict[str, str] = answer["versions"]
        return versions

    def load(self, checkpoint: Path, config: Pi05Config, settings: Mapping[str, Any]) -> float:
        """Seconds it took. settings: device, dtype, compile, num_steps, threads."""
        where = str(Path(checkpoint).resolve())
        answer = self._ask(op="load", checkpoint=where, sizes=asdict(config), **settings)
        return float(answer["load_s"])

    def frame(self, inputs: Path) -> PeerFrame:
        """One frame of a file that `write_inputs` made."""
        answer = self._ask(op="frame", inputs=str(inputs))
        return PeerFrame(answer["frame_ms"], np.array(answer["actions"], np.float32))

    def close(self) -> None:
        """End it; its memory is free when this returns."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> PeerError:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read()[-STDERR_KEPT:].strip()
        return PeerError(f"peer {self.name!r} ended with status {code}; it said:\n{said}")


def write_inputs(path: Path, inputs: ModelInputs, noise: F32) -> Path:
    """One frame, as `peer_process` reads it."""
    arrays = {name: getattr(inputs, name) for name in ("image_mask", "tokens", "token_mask")}
    np.savez(path, images=in_model_range(inputs.images), noise=noise, **arrays)
    return path
