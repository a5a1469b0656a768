"""The module variants compute what they say; their timing needs a GPU."""

from __future__ import annotations

import json

import pytest
import torch

from thor_policy_ros.backends.fp8 import emulated_matmul
from thor_policy_ros.evaluation.bench_modules import (
    copies_for,
    cosines_of,
    table_costs,
    table_row,
)
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.module_variants import TABLES, Setting, joined
from thor_policy_ros.model.named_configs import DEMO, LIBERO

CPU = Setting(DEMO.model.language, 32, torch.device("cpu"), emulated_matmul)
FUSIONS = {"QKV fusion", "gate-up fusion"}


@pytest.mark.parametrize("table", TABLES)
@torch.inference_mode()
def test_every_variant_is_near_float32(table: str) -> None:
    torch.manual_seed(0)
    copy = TABLES[table](CPU)
    for variant in copy.variants.values():
        assert joined(variant()).shape == copy.reference.shape
    found = cosines_of(copy)
    (dense, *others) = found.values()
    assert dense > 0.9999
    assert all((0.9999 if table in FUSIONS else 0.995) < x < 1.0 for x in others), found
    if table not in FUSIONS:
        assert all(x < dense for x in others), "FP8 rounds more than bfloat16"


@torch.inference_mode()
def test_the_hybrid_is_nearer_than_full_fp8() -> None:
    torch.manual_seed(0)
    for table in ("MLP", "whole prefix"):
        found = cosines_of(TABLES[table](CPU))
        assert found["hybrid, static scales"] > found["FP8, static scales"]


@torch.inference_mode()
def test_without_fp8_its_rows_are_left_out() -> None:
    dense_alone = Setting(CPU.config, CPU.tokens, CPU.device, None)
    for table in set(TABLES) - FUSIONS:
        assert list(TABLES[table](dense_alone).variants) == ["bf16"]


def test_costs_of_the_tables_by_hand() -> None:
    config = LIBERO.model.language
    mlp = 3 * 2048 * 16384
    assert table_costs("MLP", config, 544) == (2 * 544 * mlp, mlp)
    qkv = 2048 * (2048 + 256 + 256)
    assert table_costs("QKV fusion", config, 544) == (2 * 544 * qkv, qkv)
    attention, out, kv = 17 * 4 * 8 * 544 * 544 * 256, 2048 * 2048, 2048 * 512
    weights = 17 * (mlp + qkv + out) + kv
    assert table_costs("whole prefix", config, 544) == (2 * 544 * weights + attention, weights)


def test_weights_of_a_sequence_exceed_the_cache() -> None:
    assert copies_for(2048 * 16384) == 8
    assert copies_for(2_000_000_000) == 1
    assert copies_for(1000) == 32


def test_a_row_compares_with_the_first_variant_of_its_round() -> None:
    samples = [{"a": (2.0, 9.0), "b": (1.0, 9.0)}, {"a": (8.0, 9.0), "b": (4.0, 9.0)}]
    row = table_row("b", samples, flops=int(2.5e9), alike=0.5)
    assert row["times_faster"] == 2.0 and row["graph_ms"]["p50"] == 2.5
    assert row["tflops"] == pytest.approx(1.0) and row["eager_ms"]["p95"] == 9.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "modules"]) == 2
    assert "bench modules wants a CUDA GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a CUDA device")
def test_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "demo", "--tokens", "32", "--frames", "3", "--json", "-"]
    assert main(["bench", "modules", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["tables"]) == set(TABLES)
    assert all(r["graph_ms"]["p50"] > 0 for rows in found["tables"].values() for r in rows)
