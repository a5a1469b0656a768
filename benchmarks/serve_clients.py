"""Several clients of `thor-policy serve`, with and without sharing a pass: answers per second.

    PYTHONPATH=. python3 benchmarks/serve_clients.py --checkpoint checkpoints/demo --out FILE

Two servers, one with --batch 1 and one with --batch 8, are asked in turn by 1 to 8 clients that
each wait for their answer and ask again. Rounds alternate, so that a busy minute meets both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from websockets.sync.client import connect

from thor_policy_ros.evaluation.result_files import machine_of, versions
from thor_policy_ros.model.named_configs import load_policy_config
from thor_policy_ros.serving.observation_keys import keys_of, message_of
from thor_policy_ros.serving.wire import decode, encode
from thor_policy_ros.types import Observation

CLIENTS = (1, 2, 4, 8)
BATCHES = (1, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--backend", default="pytorch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    question = question_for(arguments.checkpoint)
    servers = {batch: Server(arguments, batch) for batch in BATCHES}
    try:
        rows = [
            {"clients": clients, "batch": batch, "round": turn + 1}
            | measure(servers[batch].port, clients, question, arguments.seconds)
            for turn in range(arguments.rounds)
            for clients in CLIENTS
            for batch in BATCHES
        ]
    finally:
        for server in servers.values():
            server.end()
    result = {
        "machine": machine_of(torch.device(arguments.device)) | versions(),
        "checkpoint": arguments.checkpoint.name,
        "backend": arguments.backend,
        "summary": summary(rows),
        "rounds": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["summary"], indent=2))
    return 0


class Server:
    """`thor-policy serve` on a free port, once it is ready."""

    def __init__(self, arguments: argparse.Namespace, batch: int) -> None:
        command = [sys.executable, "-m", "thor_policy_ros.evaluation", "serve", "--json"]
        command += ["--checkpoint", str(arguments.checkpoint), "--backend", arguments.backend]
        command += ["--device", arguments.device, "--port", "0", "--batch", str(batch)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        events = (json.loads(line) for line in self._process.stdout)
        self.port = next(int(e["port"]) for e in events if e["event"] == "serving")

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)


def question_for(checkpoint: Path) -> bytes:
    config = load_policy_config(checkpoint)
    size = config.model.vision.image_size
    random = np.random.default_rng(0)
    images = {s: random.integers(0, 256, (size, size, 3), np.uint8) for s in config.camera_slots}
    state = np.zeros(config.state_dim, np.float32)
    seen = Observation(images, state, "pick up the red cube", 0.0)
    return encode(message_of(seen, keys_of(config), size))


def measure(port: int, clients: int, question: bytes, seconds: float) -> dict[str, Any]:
    """Every client asks until the time is over; what came in it counts."""
    latencies: list[float] = []
    sizes: list[int] = []
    begin = threading.Barrier(clients + 1)
    end_s = [0.0]

    def client() -> None:
        with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
            connection.recv()
            connection.send(question)
            connection.recv()
            begin.wait()
            while time.perf_counter() < end_s[0]:
                begun_s = time.perf_counter()
                connection.send(question)
                answer = connection.recv()
                assert isinstance(answer, bytes), answer
                latencies.append((time.perf_counter() - begun_s) * 1e3)
                sizes.append(decode(answer)["server_timing"]["batch"])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    end_s[0] = time.perf_counter() + seconds + 0.1
    begin.wait()
    begun_s = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - begun_s
    return {
        "answers_per_s": len(latencies) / elapsed_s,
        "latency_p50_ms": float(np.quantile(latencies, 0.5)),
        "latency_p95_ms": float(np.quantile(latencies, 0.95)),
        "mean_batch": statistics.fmean(sizes),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds, and how many times the answers of the server that shares none."""
    found = []
    for clients in CLIENTS:
        medians = {}
        for batch in BATCHES:
            mine = [r for r in rows if (r["clients"], r["batch"]) == (clients, batch)]
            names = ("answers_per_s", "latency_p50_ms", "latency_p95_ms", "mean_batch")
            medians[batch] = {n: round(statistics.median(r[n] for r in mine), 2) for n in names}
        gain = medians[BATCHES[1]]["answers_per_s"] / medians[BATCHES[0]]["answers_per_s"]
        found.append(
            {
                "clients": clients,
                "one_at_a_time": medians[BATCHES[0]],
                "sharing_a_pass": medians[BATCHES[1]],
                "gain": round(gain, 2),
            }
        )
    return found


if __name__ == "__main__":
    raise SystemExit(main())
