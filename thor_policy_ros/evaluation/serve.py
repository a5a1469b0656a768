"""Serve a policy to openpi's clients: websockets and msgpack, as openpi's own server does.

A client written with `openpi-client` works unchanged. The backend is verified against the float32
reference before the port opens. By default only this machine can connect; with --host, give a
token too: clients then pass it as `api_key`. SIGINT and SIGTERM end it in good order: answers under
way are still sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import thor_policy_ros
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.verified_policy import PolicyChoice, open_policy, open_verified
from thor_policy_ros.serving.inference_worker import InferenceWorker
from thor_policy_ros.serving.observation_keys import KEYS, keys_of
from thor_policy_ros.serving.policy_server import PolicyServer, ServerSettings
from thor_policy_ros.serving.requests import RequestForm
from thor_policy_ros.serving.served_policy import MAX_STEPS, LocalPolicy
from thor_policy_ros.types import VerificationFailedError

TOKEN_VARIABLE = "THOR_POLICY_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy serve`."""
    parser.add_argument("--backend", default="pytorch", choices=sorted(BACKENDS), metavar="NAME")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--config", help="named policy, where the checkpoint does not say")
    parser.add_argument("--tokenizer", type=Path, help="where the checkpoint has none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as the device")
    parser.add_argument("--no-verify", action="store_true", help="open the port without comparing")
    parser.add_argument(
        "--steps", type=_number_in(1, MAX_STEPS), default=10, help="denoise steps; default 10"
    )
    parser.add_argument("--seed", type=int, help="of the noise; default: not repeatable")
    parser.add_argument(
        "--batch",
        type=_number_in(1, 64),
        default=8,
        metavar="N",
        help="most clients whose requests share a pass, where the engine can; default 8",
    )
    _add_network_arguments(parser)


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument("--port", type=_number_in(0, 65535), default=8000, help="0: a free one")
    parser.add_argument(
        "--token-file",
        type=Path,
        help=f"file whose first line clients must name; default: ${TOKEN_VARIABLE}, or no token",
    )
    parser.add_argument("--keys", choices=sorted(KEYS), help="names of observations, where the"
                        " config's own name does not say")  # fmt: skip
    parser.add_argument("--default-prompt", default="", help="for clients that send none")
    parser.add_argument("--max-clients", type=_number_in(1, 1024), default=16, metavar="N")
    parser.add_argument("--max-message-mb", type=_number_in(1, 1024), default=32, metavar="MB")
    parser.add_argument("--json", action="store_true", help="print each event as a line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """Load, verify, serve until a signal; 0, or 1 for a backend that is not the policy."""
    tell = _teller(arguments.json)
    token = _token(arguments.token_file)
    if arguments.host not in LOOPBACK and not token:
        tell("warning", text=f"anybody who reaches {arguments.host} can command this policy;"
             " give a token")  # fmt: skip
    worker = InferenceWorker(
        lambda: _open(arguments, tell), arguments.max_clients, time.perf_counter
    )
    try:
        policy = worker.opened.result()
        keys = keys_of(policy.config, arguments.keys or "")
        form = RequestForm(policy.config, keys, arguments.steps, arguments.default_prompt)
        server = PolicyServer(
            worker,
            form,
            metadata={"server": f"thor_policy_ros {thor_policy_ros.__version__}"}
            | dict(policy.facts())
            | form.facts(),
            settings=_settings(arguments, token),
            tell=lambda line: tell("client", text=line),
        )
        asyncio.run(_serve(server, arguments.host, tell))
    except VerificationFailedError as error:
        print(f"thor-policy serve: refused: {error}", file=sys.stderr)
        return 1
    finally:
        worker.end(timeout_s=30.0)
    tell("ended")
    return 0


async def _serve(server: PolicyServer, host: str, tell: Callable[..., None]) -> None:
    """Until the first SIGINT or SIGTERM; a second one ends at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        tell("stopping")
        stop.set()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, on_signal)
    await server.run(stop, lambda port: tell("serving", host=host, port=port))


def _open(arguments: argparse.Namespace, tell: Callable[..., None]) -> LocalPolicy:
    """In the worker's thread. VerificationFailedError for an engine that is not the policy."""
    begun_s = time.perf_counter()
    choice = PolicyChoice(
        arguments.checkpoint,
        arguments.backend,
        arguments.config,
        arguments.tokenizer,
        arguments.device,
        arguments.dtype,
    )
    if arguments.no_verify:
        policy = open_policy(choice)
    else:
        policy, found = open_verified(choice)
        tell("verified", cosine=found.cosine, precision=found.precision)
    tell("loaded", backend=arguments.backend, seconds=round(time.perf_counter() - begun_s, 2))
    return LocalPolicy(policy, arguments.batch, arguments.seed)


def _settings(arguments: argparse.Namespace, token: str) -> ServerSettings:
    return ServerSettings(
        host=arguments.host,
        port=arguments.port,
        token=token,
        max_clients=arguments.max_clients,
        max_message_bytes=arguments.max_message_mb << 20,
    )


def _token(file: Path | None) -> str:
    """ValueError for a file without one: an empty token would let everybody in."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    lines = file.read_text().splitlines()
    if not lines or not lines[0].strip():
        raise ValueError(f"--token-file {file}: wanted the token in the first line, got none")
    return lines[0].strip()


def _number_in(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"wanted {low} to {high}, got {text!r}")
        return value

    return number


def _teller(as_json: bool) -> Callable[..., None]:
    """Prints what happens, at once: somebody may be waiting for the line."""

    def tell(event: str, **facts: Any) -> None:
        if as_json:
            print(json.dumps({"event": event, **facts}), flush=True)
        elif event == "serving":
            print(f"serving on ws://{facts['host']}:{facts['port']}", flush=True)
        else:
            said = facts.pop("text", "") or ", ".join(f"{k} {v}" for k, v in facts.items())
            print(f"{event}: {said}" if said else event, flush=True)

    return tell
