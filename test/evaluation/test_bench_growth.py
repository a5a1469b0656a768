"""Sweeps, floors beside measurements, projections to other devices, and regressions."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from support.toy_checkpoint import write_toy_checkpoint

from thor_policy_ros.evaluation.bench_regress import compared
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.device_peaks import DEVICES
from thor_policy_ros.evaluation.floors import floors_ms, over_floor, peaks_of
from thor_policy_ros.evaluation.model_costs import frame_costs
from thor_policy_ros.evaluation.projection import projected, projection
from thor_policy_ros.model.named_configs import LIBERO

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "bench_latency_h200.json"
COUNTS = {"cameras": 2, "prompt_tokens": 20, "num_steps": 10}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_toy_checkpoint(tmp_path_factory.mktemp("growth") / "tiny"))


@pytest.fixture(scope="module")
def stored(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of `bench latency` of this machine."""
    path = tmp_path_factory.mktemp("stored") / "base.json"
    command = ["bench", "latency", "--checkpoint", checkpoint, "--backend", "fused_freq1"]
    assert main([*command, "--device", "cpu", "--frames", "6", "--json", str(path)]) == 0
    return path


class TestSweep:
    def test_each_dimension_varies_alone(self, checkpoint: str, tmp_path: Path) -> None:
        path = tmp_path / "sweep.json"
        command = ["bench", "latency", "--checkpoint", checkpoint, "--device", "cpu"]
        command += ["--sweep", "cameras,steps,horizon,prompt_len", "--num-steps", "3"]
        assert main([*command, "--frames", "1", "--json", str(path)]) == 0
        rows = json.loads(path.read_text())["points"]
        values = {name: [r["value"] for r in rows if r["varied"] == name] for name in rows[0]}
        assert sorted(values["cameras"]) == [1, 2]
        assert sorted(values["steps"]) == [1, 2, 3, 5, 10]
        assert sorted(values["horizon"]) == [5, 10, 25, 50]
        assert sorted(values["prompt_len"]) == [10, 20, 40, 80]
        for row in rows:
            usual = {"cameras": 2, "steps": 3, "horizon": 6, "prompt_len": 20}
            assert {n: row[n] for n in usual if n != row["varied"]} == {
                n: v for n, v in usual.items() if n != row["varied"]
            }
            assert row["backends"]["pytorch"]["frame_ms"]["p50"] > 0

    def test_an_unknown_dimension_lists_the_choices(self, capsys: Any) -> None:
        with pytest.raises(SystemExit):
            main(["bench", "latency", "--sweep", "colour"])
        assert "wanted some of cameras, steps, horizon, prompt_len" in capsys.readouterr().err


class TestFloors:
    def test_a_device_is_known_by_what_its_driver_calls_it(self) -> None:
        assert peaks_of("NVIDIA H200") is DEVICES["h200"]
        assert peaks_of("NVIDIA Thor") is DEVICES["thor"]
        assert peaks_of("cpu (x86_64)") is None
        assert peaks_of("cpu (x86_64)", "orin") is DEVICES["orin"]

    def test_the_floor_is_that_of_the_format_that_runs(self) -> None:
        dense = floors_ms(LIBERO.model, COUNTS, DEVICES["h200"], "bfloat16")
        fp8 = floors_ms(LIBERO.model, COUNTS, DEVICES["h200"], "bfloat16", "fp8")
        assert (
            fp8["frame"]
            < dense["frame"]
            == pytest.approx(dense["vision"] + dense["prefill"] + dense["denoise"])
        )
        assert floors_ms(LIBERO.model, COUNTS, DEVICES["orin"], "bfloat16", "fp8") == {}
        assert floors_ms(LIBERO.model, COUNTS, None, "bfloat16") == {}
        assert floors_ms(LIBERO.model, COUNTS, DEVICES["h200"], "float32") == {}
        assert over_floor(10.0, {"frame": 5.0}) == "2.0x"
        assert over_floor(10.0, {}) == ""


class TestProjection:
    def test_a_stage_takes_as_many_floors_as_where_it_was_measured(self) -> None:
        bench = json.loads(H200.read_text())
        rows = {row["backend"]: row for row in projected(bench, DEVICES["h200"])}
        assert rows["pytorch"]["projected_ms"] == pytest.approx(rows["pytorch"]["measured_ms"])
        thor = {row["backend"]: row for row in projected(bench, DEVICES["thor"])}
        assert thor["pytorch"]["projected_ms"] > 5 * rows["pytorch"]["projected_ms"]
        assert "fp8_mlp" in thor and thor["fp8_mlp"]["dtype"] == "fp8"
        no_fp8 = {row["backend"] for row in projected(bench, DEVICES["orin"])}
        assert "pytorch" in no_fp8 and "fp8_mlp" not in no_fp8

    def test_published_figures_are_shares_of_the_floor_of_their_format(self) -> None:
        costs = frame_costs(LIBERO.model, *COUNTS.values())
        result = projection("thor", DEVICES["thor"], costs, None)
        assert {(r["dtype"], r["ms"]) for r in result["published"]} >= {
            ("fp8", 38.7),
            ("nvfp4", 27.2),
        }
        for row in result["published"]:
            share = result["floor_ms"][row["dtype"]] / row["ms"]
            assert row["share_of_roofline"] == pytest.approx(share)
            assert 0 < share < 1
        assert result["assumptions"] and result["projected"] == []

    def test_an_unknown_device_cannot_be_projected_from(self, stored: Path) -> None:
        with pytest.raises(ValueError, match=r"peaks of 'cpu .*' are not known"):
            projected(json.loads(stored.read_text()), DEVICES["thor"])

    def test_the_command_says_what_it_assumes(self, capsys: Any) -> None:
        assert main(["roofline", "--device", "thor", "--project", str(H200)]) == 0
        said = capsys.readouterr().out
        assert "27.2" in said and "38.7" in said and "It assumes that" in said
        assert "projected: pytorch from NVIDIA H200" in said


class TestRegress:
    def test_a_run_is_no_regression_of_itself(self, stored: Path, capsys: Any) -> None:
        assert main(["bench", "regress", str(stored), "--now", str(stored)]) == 0
        assert "slower than the band of 15%: none" in capsys.readouterr().out

    @pytest.mark.parametrize(("factor", "status"), [(0.8, 1), (0.9, 0), (1.5, 0)])
    def test_ratios_below_the_band_fail(
        self, stored: Path, tmp_path: Path, factor: float, status: int
    ) -> None:
        now = json.loads(stored.read_text())
        now["backends"][1]["speedup"]["median"] *= factor
        path = tmp_path / "now.json"
        path.write_text(json.dumps(now))
        assert main(["bench", "regress", str(stored), "--now", str(path)]) == status

    def test_milliseconds_do_not_matter_and_an_absent_backend_does(self, stored: Path) -> None:
        base = json.loads(stored.read_text())
        slow = deepcopy(base)
        for entry in slow["backends"]:
            for quantiles in entry["stages_ms"].values():
                quantiles["p50"] *= 10
        assert not any(row["regressed"] for row in compared(base, slow, 0.15))
        gone = {**base, "backends": base["backends"][:1]}
        assert [row["regressed"] for row in compared(base, gone, 0.15)] == [True]

    def test_the_settings_of_the_stored_run_are_measured_again(
        self, stored: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "result.json"
        command = ["bench", "regress", str(stored), "--device", "cpu", "--noise", "0.99"]
        assert main([*command, "--frames", "3", "--json", str(path)]) == 0
        result = json.loads(path.read_text())
        base = json.loads(stored.read_text())
        assert result["now"]["settings"] == {**base["settings"], "frames": 3}
        assert [row["backend"] for row in result["rows"]] == ["fused_freq1"]

    @pytest.mark.parametrize(
        ("key", "field", "said"),
        [("settings", "num_steps", "differ in num_steps"), ("machine", "device", "of another")],
    )
    def test_runs_that_cannot_be_compared_are_refused(
        self, stored: Path, tmp_path: Path, key: str, field: str, said: str, capsys: Any
    ) -> None:
        now = json.loads(stored.read_text())
        now[key][field] = "another"
        path = tmp_path / "now.json"
        path.write_text(json.dumps(now))
        assert main(["bench", "regress", str(stored), "--now", str(path)]) == 2
        assert said in capsys.readouterr().err
