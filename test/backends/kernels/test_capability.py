"""What the kernels want, and the tiles that follow from a device's limits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from thor_policy_ros.backends.kernels import create_ops
from thor_policy_ros.backends.kernels.capability import DeviceLimits, missing_for_triton
from thor_policy_ros.backends.kernels.target import KernelTarget
from thor_policy_ros.backends.kernels.tiles import (
    gemm_tiles,
    head_blocks,
    prefix_tiles,
    suffix_tiles,
)
from thor_policy_ros.types import BackendUnavailableError

ADA = DeviceLimits((8, 9), 99 * 1024, 128)
HOPPER = DeviceLimits((9, 0), 227 * 1024, 132)
THOR = DeviceLimits((11, 0), 227 * 1024, 20)
DEVICES = [ADA, HOPPER, THOR]
EXPERT = [(2560, 1024), (1024, 2048), (8192, 1024), (1024, 4096)]


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize(("columns", "k"), EXPERT)
@pytest.mark.parametrize("weight_bytes", [1, 2])
@pytest.mark.parametrize("rows", [1, 10, 50])
def test_products_fit_shared_memory_and_fill_the_device(
    limits: DeviceLimits, columns: int, k: int, weight_bytes: int, rows: int
) -> None:
    tiles = gemm_tiles(rows, columns, k, weight_bytes, 2, limits)
    steps = -(-k // (tiles.splits * tiles.warps * tiles.block_k))
    assert tiles.shared_memory(weight_bytes, 2, steps) <= limits.shared_memory // 2
    assert tiles.block_m >= rows and tiles.block_m >= 16
    blocks = -(-columns // tiles.block_n) * tiles.splits
    assert 0.45 * limits.multiprocessors <= blocks


@pytest.mark.parametrize(("columns", "k"), EXPERT)
@pytest.mark.parametrize("weight_bytes", [1, 2])
def test_weights_are_asked_for_in_one_step_where_shared_memory_allows(
    columns: int, k: int, weight_bytes: int
) -> None:
    tiles = gemm_tiles(10, columns, k, weight_bytes, 2, HOPPER)
    assert tiles.splits * tiles.warps * tiles.block_k == k


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("head_dim", [16, 72, 256])
def test_attention_fits_shared_memory(limits: DeviceLimits, head_dim: int) -> None:
    tiles = prefix_tiles(544 * 8, 1, head_dim, 2, limits)
    assert tiles.shared_memory(head_dim, 2, limits) <= limits.shared_memory


def test_few_rows_split_the_keys_only_where_there_are_multiprocessors() -> None:
    assert suffix_tiles(10, 8, 256, 978, 2, HOPPER).splits == 8
    assert suffix_tiles(10, 8, 256, 978, 2, THOR).splits == 2
    assert suffix_tiles(10, 8, 256, 60, 2, HOPPER).splits == 1


def test_a_head_that_no_device_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 8192 wants more"):
        prefix_tiles(100, 1, 8192, 4, ADA)


@pytest.mark.parametrize(
    ("head_dim", "blocks"),
    [(256, (256, 0)), (72, (64, 16)), (10, (16, 0)), (16, (16, 0)), (96, (64, 32)), (6, (16, 0))],
)
def test_heads_in_powers_of_2(head_dim: int, blocks: tuple[int, int]) -> None:
    assert head_blocks(head_dim) == blocks


def test_on_a_cpu_without_the_interpreter_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert missing_for_triton(torch.device("cpu")) == (
        "a CUDA GPU of capability 8.0 or later (device is 'cpu')",
    )
    with pytest.raises(BackendUnavailableError, match="the Triton kernels want a CUDA GPU"):
        create_ops("triton", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here")
def test_fp8_is_not_offered_in_the_interpreter() -> None:
    assert missing_for_triton(torch.device("cpu")) == ()
    assert "does not round to E4M3" in missing_for_triton(torch.device("cpu"), fp8=True)[0]


def test_an_older_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "3.3.1")
    assert (
        missing_for_triton(torch.device("cpu"))[0] == "package triton 3.4 or later (here is 3.3.1)"
    )


def test_the_package_of_kernels_is_imported_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from thor_policy_ros.backends.kernels import create_ops\n"
        "assert create_ops('reference', 'cpu').name == 'reference'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_overlap_is_refused_before_hopper() -> None:
    with pytest.raises(ValueError, match=r"9.0 or later, got 8\.9"):
        KernelTarget(torch.device("cpu"), ADA, overlap=True)
