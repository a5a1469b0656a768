"""`thor-policy verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.toy_checkpoint import write_toy_checkpoint

from thor_policy_ros.evaluation import verify
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.runtime.engine_difference import THRESHOLDS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_toy_checkpoint(tmp_path)


def options(checkpoint: Path, *more: str) -> list[str]:
    return ["verify", "--checkpoint", str(checkpoint), "--device", "cpu", *more]


def test_json_says_what_was_verified(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(checkpoint, "--observations", "2", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["observations"] == 2 and report["dtype"] == "float32"
    assert report["thresholds"]["precision"] == report["precision"] == "float32"
    assert report["checkpoint"] == str(checkpoint) and report["device"] == "cpu"


def test_table_and_exit_status_of_an_engine_that_fails(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(THRESHOLDS, "bfloat16", THRESHOLDS["float32"])
    assert main(options(checkpoint, "--dtype", "bfloat16")) == 1
    printed = capsys.readouterr().out
    assert "REFUSED: keys of layer 0" in " ".join(printed.split())
    assert main(options(checkpoint)) == 0
    assert "verified" in capsys.readouterr().out


def test_recorded_inputs_must_be_there(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(checkpoint, "--recorded", str(checkpoint))) == 2
    assert "inputs.safetensors" in capsys.readouterr().err
    assert verify.DEMO_CHECKPOINT.name == "demo"
