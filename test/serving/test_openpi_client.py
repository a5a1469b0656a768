"""openpi's own client, from PyPI and unmodified, with `thor-policy serve` in its own process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpi_client import image_tools, msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from support.toy_checkpoint import toy_observation, write_toy_checkpoint
from websockets.exceptions import InvalidStatus

from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

ROOT = Path(__file__).resolve().parents[2]
# openpi-client opens its connection in the way that websockets 17 announces to drop.
pytestmark = [pytest.mark.node, pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")]


class Server:
    """`thor-policy serve ... --json`, from its first event on."""

    def __init__(self, checkpoint: Path, *options: str, **environ: str) -> None:
        command = [sys.executable, "-m", "thor_policy_ros.evaluation", "serve", "--json"]
        self.process = subprocess.Popen(
            [*command, "--checkpoint", str(checkpoint), "--port", "0", *options],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def event(self, name: str) -> dict[str, Any]:
        """The next event of this name; fails the test when the server ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        assert self.process.stderr is not None
        raise AssertionError(f"no event {name!r}: {self.process.stderr.read()}")

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        self.process.communicate(timeout=20)
        return self.process.returncode


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    started = Server(checkpoint, "--device", "cpu")
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end()


@pytest.fixture(scope="module")
def port(server: Server) -> int:
    assert server.event("verified")["precision"] == "float32"
    return int(server.event("serving")["port"])


def message(seed: int = 0, **more: Any) -> dict[str, Any]:
    seen = toy_observation(seed=seed)
    images = {
        f"observation/{slot}": image_tools.convert_to_uint8(
            image_tools.resize_with_pad(image, 28, 28)
        )
        for slot, image in seen.images.items()
    }
    return {**images, "observation/state": seen.state, "prompt": seen.prompt, **more}


def test_it_gets_what_the_policy_computes_here(port: int, checkpoint: Path) -> None:
    noise = np.random.default_rng(1).standard_normal((6, 32), np.float32)
    client = WebsocketClientPolicy("127.0.0.1", port)
    metadata = client.get_server_metadata()
    assert (metadata["config"], metadata["action_horizon"], metadata["action_dim"]) == (
        "tiny",
        6,
        3,
    )
    given = {"thor/noise": noise, "thor/num_steps": 4}
    answers = [client.infer(message(seed, **given))["actions"] for seed in (0, 1)]
    with UnifiedPolicy(checkpoint, device="cpu") as policy:
        for seed, actions in enumerate(answers):
            here = policy.infer(toy_observation(seed=seed), num_steps=4, noise=noise)
            assert np.abs(actions - here.actions).max() < 1e-5
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_its_timings_and_its_errors_are_openpis(port: int) -> None:
    client = WebsocketClientPolicy("127.0.0.1", port)
    client.infer(message())
    timing = client.infer(message())["server_timing"]
    assert timing["prev_total_ms"] > timing["infer_ms"] * 0.1 > 0
    with pytest.raises(RuntimeError, match=r"Error in inference server:\nValueError: .* missing"):
        client.infer({"observation/state": np.zeros(4)})
    assert client.infer(message())["actions"].shape == (6, 3)


def test_several_at_once_get_each_their_own(port: int) -> None:
    """With fixed noise an answer depends on its observation alone, whoever shares the pass."""
    noise = np.zeros((6, 32), np.float32)
    given = [message(seed, **{"thor/noise": noise}) for seed in range(4)]
    alone = WebsocketClientPolicy("127.0.0.1", port)
    expected = [alone.infer(one)["actions"] for one in given]
    clients = [WebsocketClientPolicy("127.0.0.1", port) for _ in given]
    for _ in range(3):
        for client, one in zip(clients, given, strict=True):
            client._ws.send(client._packer.pack(one))
        for client, actions in zip(clients, expected, strict=True):
            got = msgpack_numpy.unpackb(client._ws.recv(timeout=10))
            assert np.abs(got["actions"] - actions).max() < 1e-5


def test_the_server_ends_in_good_order(server: Server, port: int) -> None:
    """Last of those that share it: a client is still connected."""
    client = WebsocketClientPolicy("127.0.0.1", port)
    client.infer(message())
    assert server.end() == 0


def test_a_token_is_its_api_key(checkpoint: Path, tmp_path: Path) -> None:
    server = Server(checkpoint, "--no-verify", "--device", "cpu", THOR_POLICY_TOKEN="secret")
    try:
        port = int(server.event("serving")["port"])
        with pytest.raises(InvalidStatus):
            WebsocketClientPolicy("127.0.0.1", port)
        client = WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
        assert client.infer(message())["actions"].shape == (6, 3)
    finally:
        assert server.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keys", "pi05_aloha"), "observation keys 'pi05_aloha' feed .* a state of 14"),
        (("--token-file", "/dev/null"), "wanted the token in the first line"),
        (("--checkpoint", "/nowhere"), "no such folder"),
        (("--port", "70000"), "wanted 0 to 65535"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_message(
    checkpoint: Path, options: tuple[str, ...], said: str
) -> None:
    server = Server(checkpoint, "--no-verify", "--device", "cpu", *options)
    _, error = server.process.communicate(timeout=60)
    assert server.process.returncode == 2
    assert re.search(said, error) and "Traceback" not in error
