"""`thor-policy bench`: whose turn it is, what the figures mean, and what the files say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.bench_latency import (
    Contender,
    measure,
    speedup,
    stage_quantiles,
)
from thor_policy_ros.evaluation.bench_plot import plot_latency
from thor_policy_ros.evaluation.bench_precision import Outputs, worst_difference
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.types import F32, BackendSpec, Guidance, ModelInputs, PrefixKV

SPEC = BACKENDS["pytorch"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_toy_checkpoint(tmp_path_factory.mktemp("bench") / "tiny"))


class ScriptedBackend:
    """Notes its calls in a common list, and moves the clock on by its own duration."""

    def __init__(self, spec: BackendSpec, calls: list[str], clock: FakeClock, ms: float) -> None:
        self.spec, self._calls, self._clock, self._ms = spec, calls, clock, ms
        self._made = 0

    def warmup(self) -> None: ...

    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        self._made += 1
        self._calls.append(f"{self.spec.name} prefill {self._made}")
        self._clock.now_s += self._ms / 1e3
        return PrefixKV(None, None, None, observed_at_s, self._made)

    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        self._calls.append(f"{self.spec.name} denoise {prefix.generation}")
        self._clock.now_s += self._ms / 1e3
        return noise

    def stage_times_ms(self) -> dict[str, float]:
        return {"vision": self._ms / 2, "prefill": self._ms / 2, "denoise": self._ms}

    def close(self) -> None: ...


class FakeClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def contenders(calls: list[str], clock: FakeClock, *specs: tuple[str, dict[str, Any], float]):  # type: ignore[no-untyped-def]
    noise = np.zeros((1, 1), np.float32)
    inputs = ModelInputs(noise, noise > 0, noise.astype(np.int32), noise > 0)
    return [
        Contender(
            ScriptedBackend(replace(SPEC, name=name, **fields), calls, clock, ms), inputs, noise, 1
        )
        for name, fields, ms in specs
    ]


def test_backends_take_turns_and_change_order() -> None:
    calls: list[str] = []
    clock = FakeClock()
    frames = measure(contenders(calls, clock, ("a", {}, 5.0), ("b", {}, 2.0)), 2, clock)
    assert [c for c in calls if "denoise" in c] == [
        "a denoise 1", "b denoise 1", "b denoise 2", "a denoise 2",
    ]  # fmt: skip
    assert frames[0][0] == pytest.approx(
        {"vision": 2.5, "prefill": 2.5, "denoise": 5.0, "frame": 10.0}
    )
    assert speedup(frames[0], frames[1], 1)["median"] == pytest.approx(2.5)


def test_a_backend_with_reuse_is_measured_with_it() -> None:
    calls: list[str] = []
    clock = FakeClock()
    specs = (("a", {}, 4.0), ("b", {"reuse_every": 2}, 4.0))
    frames = measure(contenders(calls, clock, *specs), 4, clock)
    assert sum(c.startswith("b prefill") for c in calls) == 2
    assert [sorted(f) for f in frames[1]][:2] == [
        ["denoise", "frame", "prefill", "vision"],
        ["denoise", "frame"],
    ]
    quantiles = stage_quantiles(frames[1])
    assert quantiles["prefill"]["count"] == 2 and quantiles["frame"]["count"] == 4
    assert speedup(frames[0], frames[1], 2)["median"] == pytest.approx(16 / 12)


def test_a_pipelined_backend_is_driven_one_prefix_ahead() -> None:
    calls: list[str] = []
    clock = FakeClock()
    measure(contenders(calls, clock, ("a", {"pipelined": True}, 1.0)), 3, clock)
    assert calls == [
        "a prefill 1", "a denoise 1", "a prefill 2", "a denoise 1", "a prefill 3", "a denoise 2",
    ]  # fmt: skip


def test_one_slow_moment_changes_no_speedup() -> None:
    reference = [{"frame": 10.0}] * 20
    frames = [{"frame": 5.0}] * 19 + [{"frame": 500.0}]
    assert speedup(reference, frames, 1)["median"] == pytest.approx(2.0)


def test_latency_of_a_checkpoint(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot = tmp_path / "results" / "latency.json", tmp_path / "latency.svg"
    options = ["--frames", "4", "--cameras", "1", "--prompt-tokens", "7", "--num-steps", "2"]
    files = ["--json", str(path), "--plot", str(plot)]
    command = ["bench", "latency", "--checkpoint", checkpoint, "--device", "cpu"]
    assert main([*command, *options, *files]) == 0
    found = json.loads(path.read_text())
    assert found["settings"]["prefix_tokens"] == TINY.model.vision.num_tokens + 7
    assert found["settings"]["weights"] == checkpoint
    assert found["versions"]["torch"] and found["machine"]["device"].startswith("cpu")
    (entry,) = found["backends"]
    assert entry["backend"]["engine"] == "pytorch" and entry["dtype"] == "float32"
    ms = entry["stages_ms"]
    assert set(ms) == {"vision", "prefill", "denoise", "frame"}
    assert 0 < ms["frame"]["p50"] <= ms["frame"]["p95"] <= ms["frame"]["p99"]
    assert ms["frame"]["count"] == 4 and ms["denoise"]["p50"] < ms["frame"]["p50"]
    assert entry["speedup"] == {"median": 1.0, "p05": 1.0, "p95": 1.0}
    assert "tiny on cpu" in capsys.readouterr().out
    assert "frame p95" in plot.read_text()
    assert main(["roofline", "--device", "h200", "--bench", str(path)]) == 0
    table = capsys.readouterr().out
    assert "pytorch" in table and "float32" in table  # a narrow terminal breaks the line


def test_the_plot_needs_a_bar_for_each_backend(tmp_path: Path) -> None:
    stages = {s: {"p50": 1.0, "p95": 2.0} for s in ("vision", "prefill", "denoise")}
    entry = {"dtype": "bfloat16", "stages_ms": {**stages, "frame": {"p50": 4.0, "p95": 9.0}}}
    entries = [{**entry, "backend": {"name": name}} for name in ("first_one", "second_one")]
    settings = {"config": "c", "cameras": 1, "num_steps": 1}
    report = {"backends": entries, "settings": settings, "machine": {"device": "d"}}
    plot_latency(report, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "first_one" in drawn and "second_one" in drawn


def test_precision_of_the_reference_itself_is_exact(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "precision", "--checkpoint", checkpoint, "--device", "cpu", "--json", "-"]
    assert main([*command, "--frames", "2"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["backends"]
    for worst in entry["worst"].values():
        assert worst["cosine"] == pytest.approx(1.0) and worst["max_abs_error"] == 0.0
    assert main([*command, "--frames", "2", "--dtype", "bfloat16"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["backends"]
    assert 0.99 < entry["worst"]["keys"]["cosine"] < 1.0
    assert 0 < entry["worst"]["actions"]["max_abs_error"] < 0.5


def test_precision_is_that_of_the_worst_layer_of_the_worst_frame() -> None:
    random = np.random.default_rng(0)
    keys = random.normal(size=(2, 1, 3, 4)).astype(np.float32)
    actions = random.normal(size=(2, 4)).astype(np.float32)
    good = Outputs(keys, keys, actions, actions)
    turned = keys.copy()
    turned[1] *= -1
    found = worst_difference([good, replace(good, keys=turned)], [good, good])
    assert found["keys"]["cosine"] == pytest.approx(-1.0)
    assert found["keys"]["max_abs_error"] == pytest.approx(2 * np.abs(keys[1]).max())
    assert found["values"]["cosine"] == pytest.approx(1.0)


def test_random_weights_of_a_named_policy(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "latency", "--random-weights", "--device", "cpu", "--frames", "1"]
    assert main([*command, "--config", "demo", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["weights"] == "random" and found["settings"]["config"] == "demo"
    assert main(command) == 2
    assert "--random-weights wants --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --checkpoint DIR, or --random-weights"),
        (["--checkpoint", "DIR", "--cameras", "3"], "--cameras: wanted 1 to 2 for tiny, got 3"),
        (["--checkpoint", "DIR", "--prompt-tokens", "81"], "--prompt-tokens: wanted 1 to 80"),
        (["--checkpoint", "DIR", "--backend", "fast"], "unknown backend 'fast'; choose one of"),
    ],
)
def test_wrong_command_lines(
    options: list[str], said: str, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [checkpoint if option == "DIR" else option for option in options]
    assert main(["bench", "latency", "--device", "cpu", *named]) == 2
    assert said in capsys.readouterr().err
