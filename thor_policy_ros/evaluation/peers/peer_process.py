"""Runs a peer: `PYTHON peer_process.py NAME`, in whose environment NAME is installed.

Imports nothing of this package. Requests are JSON lines on stdin, answers JSON lines on stdout;
what a peer prints goes to stderr. An exception ends the process, its traceback on stderr.

{"op": "probe"} -> {"missing": [package], "versions": {package: version}}
{"op": "load", checkpoint, sizes, device, dtype, compile, num_steps, threads} -> {"load_s"}
{"op": "frame", "inputs": a .npz of images, image_mask, tokens, token_mask and noise, without
batch axis} -> {"frame_ms", "actions": [[...]]}: from arrays in host memory to actions there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from typing import Any

Loaded = Any
"""An adapter's `load` gives an object with `actions(inputs) -> f32[H,A] on the host`."""


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    adapter = importlib.import_module(f"{sys.argv[1]}_peer")
    peer = Peer(adapter)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(peer, request.pop("op"))(**request)
        answers.write(json.dumps(answer) + "\n")
    return 0


class Peer:
    """One method for each request."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self._loaded: Loaded = None
        self._inputs: dict[str, dict[str, Any]] = {}

    def probe(self) -> dict[str, Any]:
        """Which of the adapter's PACKAGES (import names) are not there; imports none of them."""
        wanted = self._adapter.PACKAGES
        missing = [name for name in wanted if importlib.util.find_spec(name) is None]
        return {"missing": missing, "versions": {name: _version(name) for name in wanted}}

    def load(self, **settings: Any) -> dict[str, Any]:
        import torch

        torch.set_num_threads(settings.pop("threads"))
        begun = time.perf_counter()
        self._loaded = self._adapter.load(**settings)
        return {"load_s": time.perf_counter() - begun}

    def frame(self, inputs: str) -> dict[str, Any]:
        import numpy as np

        if inputs not in self._inputs:
            with np.load(inputs) as file:
                self._inputs[inputs] = dict(file)
        arrays = self._inputs[inputs]
        begun = time.perf_counter()
        actions = self._loaded.actions(arrays)
        frame_ms = (time.perf_counter() - begun) * 1e3
        return {"frame_ms": frame_ms, "actions": actions.tolist()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
