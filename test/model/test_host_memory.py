"""Loading and converting take the model's own memory and a little more, whatever the file's size.

At a reduced scale: 256 MB of weights, most of them in one matrix, as pi0.5's embedding.
A copy of that matrix, or of the file, would show.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy_checkpoint import TINY

from thor_policy_ros.evaluation.random_checkpoint import write_random_checkpoint
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.pi05 import Pi05

ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20
LEEWAY = 80 * MB  # a few blocks of 16 MB; the largest matrix has 128 MB in bfloat16
WIDE = replace(
    TINY,
    name="wide",
    model=replace(TINY.model, vocab_size=65536, language=replace(TINY.model.language, width=1024)),
)
pytestmark = pytest.mark.slow


def in_process(code: str) -> dict[str, Any]:
    """Runs `code` after imports and a warm-up of torch; it prints one line of JSON."""
    prelude = (
        "import json, sys, torch\n"
        "from pathlib import Path\n"
        "from support.host_memory import peak_memory\n"
        "from model.test_host_memory import WIDE\n"
        "from thor_policy_ros.evaluation.random_checkpoint import write_random_checkpoint\n"
        "from thor_policy_ros.model.checkpoint import load_pi05\n"
        "from thor_policy_ros.model.conversion import convert_weights\n"
        "from thor_policy_ros.model.pi05 import Pi05\n"
        "with torch.device('meta'):  # which imports a hundred megabytes of torch, once\n"
        "    Pi05(WIDE.model)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'test'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wide")
    write_random_checkpoint(made, WIDE, "lerobot")
    assert (made / "model.safetensors").stat().st_size > 256 * MB  # its embedding is there twice
    return made


def model_bytes(config: PolicyConfig, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Pi05(config.model).parameters()) * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_loading_takes_the_models_own_size(folder: Path, dtype: torch.dtype) -> None:
    found = in_process(
        "with peak_memory() as peak:\n"
        f"    model = load_pi05(Path({str(folder)!r}), WIDE.model, dtype={dtype})\n"
        "size = sum(p.numel() * p.element_size() for p in model.parameters())\n"
        "print(json.dumps({'peak': peak.num_bytes, 'size': size}))\n"
    )
    assert found["size"] >= model_bytes(WIDE, torch.bfloat16)
    assert found["peak"] > found["size"] * 0.9  # the measurement sees what is there
    assert found["peak"] - found["size"] < LEEWAY


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["as it is", "float32"])
def test_converting_takes_a_few_blocks(
    folder: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    found = in_process(
        "with peak_memory() as peak:\n"
        f"    convert_weights(Path({str(folder)!r}), Path({str(tmp_path)!r}), WIDE.model,"
        f" 'merged', {dtype})\n"
        "print(json.dumps({'peak': peak.num_bytes}))\n"
    )
    assert found["peak"] < LEEWAY
    assert (tmp_path / "model.safetensors").stat().st_size > 128 * MB


def test_random_weights_are_made_in_blocks(tmp_path: Path) -> None:
    found = in_process(
        "with peak_memory() as peak:\n"
        f"    write_random_checkpoint(Path({str(tmp_path)!r}), WIDE)\n"
        "print(json.dumps({'peak': peak.num_bytes}))\n"
    )
    assert found["peak"] < LEEWAY
