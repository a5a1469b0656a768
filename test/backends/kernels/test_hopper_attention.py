"""Attention made for Hopper: where its bytes lie, machine code; on a Hopper GPU against float64."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from support.kernel_errors import assert_close, relative_error
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels import create_ops
from thor_policy_ros.backends.kernels.hopper_attention import (
    CAPABILITY,
    CODES,
    FOLDER,
    GROUPS,
    HopperAttention,
    PrefixCode,
    compiled,
    fits_prefix,
    panels_of,
    prefix_code,
    product_source,
)

SHARED_MEMORY = 227 * 1024
STATIC = 2048
"""Barriers, and what is lost to alignment."""
TRIED = (*CODES, PrefixCode(64, 6))
EXACT = create_ops("reference", "cpu")
FACTOR = 2.0  # softmax weights are rounded to bfloat16 too


# --- where bytes lie


def swizzled(address: int) -> int:
    """As tiles of rows of 128 bytes lie in shared memory."""
    return address ^ ((address >> 7 & 7) << 4)


def brought(panels: Tensor, first: int, rows: int) -> list[int]:
    """A box of u8[panels,R,128], as the copy engine lays it down: two bytes each."""
    memory = [0] * (panels.shape[0] * rows * 64)
    words = panels.contiguous().view(torch.int16)
    for panel in range(panels.shape[0]):
        for row in range(rows):
            for column in range(64):
                at = (panel * rows + row) * 128 + column * 2
                memory[swizzled(at) // 2] = int(words[panel, first + row, column])
    return memory


def test_the_matrix_units_find_keys_and_values_where_the_copy_engine_puts_them() -> None:
    """Descriptors of keys (rows are contiguous) and of values (columns are), in steps of 16."""
    rows, first = 64, 5
    matrix = torch.arange(80 * 256, dtype=torch.int16).view(80, 256)
    memory = brought(panels_of(matrix.view(torch.bfloat16)), first, rows)
    for step in (0, 3, 4, 15):
        for n, k in ((0, 0), (7, 8), (9, 15), (63, 3)):
            start = step // 4 * rows * 128 + step % 4 * 32
            at = start + n // 8 * 1024 + n % 8 * 128 + k * 2
            assert memory[swizzled(at) // 2] == int(matrix[first + n, 16 * step + k])
    lead, stride = rows * 128, 1024
    for step in range(rows // 16):
        for n, k in ((0, 0), (63, 7), (64, 8), (200, 15), (255, 1)):
            start = step * 16 * 128
            at = start + n // 64 * lead + n % 64 * 2 + k // 8 * stride + k % 8 * 128
            assert memory[swizzled(at) // 2] == int(matrix[first + 16 * step + k, n])


def test_neighbours_store_four_columns_of_one_fragment() -> None:
    """`put_two`: which columns of which fragment end in which lane's words."""
    for q in range(4):
        odd, partner = q & 1, q ^ 1
        got = 2 * partner  # of fragment `odd`, which the partner sends
        first, second = (got, 2 * q) if odd else (2 * q, got)
        at = (q & 2) * 2
        assert (first, second) == (at, at + 2)


# --- machine code


@pytest.mark.parametrize("rows_in", ["registers", "shared"])
def test_the_instruction_names_each_operand_once(rows_in: str) -> None:
    text = product_source("score", 72, rows_in, turned=True)  # type: ignore[arg-type]
    left = 4 if rows_in == "registers" else 1
    assert "m64n72k16" in text
    assert set(map(int, re.findall(r"%(\d+)", text))) == set(range(36 + left + 2))
    flags = "1, 1, 1;" if rows_in == "registers" else "1, 1, 0, 1;"
    assert flags in text, "signs, and which operands are turned"


@pytest.mark.parametrize("code", TRIED, ids=str)
def test_a_block_fits_a_multiprocessor(code: PrefixCode) -> None:
    assert code.shared_memory + STATIC <= SHARED_MEMORY


@pytest.mark.parametrize("code", TRIED, ids=str)
def test_machine_code(code: PrefixCode, tmp_path: Path) -> None:
    """Products of the widths that were meant, many between two waits, and no spills."""
    pytest.importorskip("cuda.core", reason="NVRTC's interface, cuda-core, is not installed")
    triton = pytest.importorskip("triton")
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled(code))
    program = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    done = subprocess.run([program, "-c", path], capture_output=True, text=True, check=True)
    widths = re.findall(r"HGMMA\.64x(\d+)x16", done.stdout)
    # For each warpgroup the first scores, and in the loop values and scores.
    assert widths.count(str(code.keys)) == GROUPS * 2 * 16
    assert widths.count("256") == GROUPS * code.keys // 16
    assert not re.search(r"\b(STL|LDL)\b", done.stdout), "registers were spilled"
    waits = len(re.findall(r"WARPGROUP\.DEPBAR", done.stdout))
    assert waits <= 8, "the compiler made the matrix units wait after each product"


def test_the_launch_gives_what_the_kernel_takes() -> None:
    source = (FOLDER / "hopper_prefix_attention.cu").read_text()
    signature = source.split("    prefix_attention(", 1)[1].split(")", 1)[0]
    kinds = [
        "map" if "TensorMap" in part else "pointer" if "*" in part else part.split()[0]
        for part in signature.split(",")
    ]
    assert kinds == ["map"] * 3 + ["pointer"] * 3 + ["int", "int", "float"]


# --- choice


@pytest.mark.parametrize(("tokens", "keys"), [(288, 96), (544, 96), (800, 80), (968, 96)])
def test_each_length_gets_the_tiles_that_were_fastest(tokens: int, keys: int) -> None:
    """Of 64, 80 and 96 keys, tried on an H200 (benchmarks/results/hopper_attention_h200.json)."""
    assert prefix_code(tokens) == PrefixCode(keys)


def test_sizes_that_no_kernel_is_for() -> None:
    q, keys = torch.zeros(3, 8, 256).bfloat16(), torch.zeros(1, 9, 256).bfloat16()
    assert fits_prefix(q, keys)
    assert not fits_prefix(q.float(), keys.float()), "float32"
    assert not fits_prefix(q, keys.expand(2, 9, 256)), "two kv heads"
    assert not fits_prefix(q[..., :64].contiguous(), keys[..., :64].contiguous())


# --- on a GPU


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != CAPABILITY:
        pytest.skip("wants a Hopper GPU (9.0)")
    torch.manual_seed(7)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=[False, True], ids=["", "overlap"])
def attention(request: pytest.FixtureRequest, device: torch.device) -> HopperAttention:
    return HopperAttention(device, overlap=request.param)


def random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).bfloat16()


class Prefix:
    """Operands with NaN behind the valid rows, and the result in float64."""

    def __init__(self, device: torch.device, tokens: int, length: int, rows: int = 978) -> None:
        self.q = random(device, tokens, 8, 256)
        self.keys, self.values = random(device, 2, 1, rows, 256)
        self.keys[:, length:] = self.values[:, length:] = torch.nan
        self.length = torch.full((1,), length, dtype=torch.int32, device=device)

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.keys, self.values, self.length

    def wanted(self) -> Tensor:
        q, keys, values = (x.double() for x in (self.q, self.keys, self.values))
        return EXACT.prefix_attention(q, keys, values, self.length)


@pytest.mark.gpu
@pytest.mark.parametrize("code", TRIED, ids=str)
@pytest.mark.parametrize(
    ("tokens", "length"),
    [(1, 1), (3, 63), (17, 64), (40, 65), (300, 300), (544, 129), (544, 544), (968, 968)],
)
def test_prefix(attention: HopperAttention, tokens: int, length: int, code: PrefixCode) -> None:
    case = Prefix(torch.device("cuda"), tokens, length)
    out = torch.full((tokens, 2048), torch.nan, device="cuda", dtype=torch.bfloat16)
    got = attention.prefix(*case.operands, out=out, code=code)
    assert got is out
    assert_close(got, case.wanted(), FACTOR)


@pytest.mark.gpu
def test_a_buffer_that_ends_with_its_keys(attention: HopperAttention) -> None:
    case = Prefix(torch.device("cuda"), 20, 100, rows=100)
    assert_close(attention.prefix(*case.operands), case.wanted(), FACTOR)


@pytest.mark.gpu
def test_scores_of_hundreds(attention: HopperAttention) -> None:
    """One key takes all: weights of others vanish, and the highest score grows as they come."""
    case = Prefix(torch.device("cuda"), 64, 500)
    case.q *= 30
    assert relative_error(attention.prefix(*case.operands), case.wanted()) < 0.02


def prefix_result(attention: HopperAttention, scale: Tensor | None = None) -> Tensor:
    return attention.prefix(*Prefix(torch.device("cuda"), 300, 270).operands, quantise=scale)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2.0**-9, 2.0**-12], ids=["", "saturated"])
def test_results_in_e4m3_are_rounded_as_the_others(
    attention: HopperAttention, scale: float
) -> None:
    torch.manual_seed(3)
    dense = prefix_result(attention).float() / scale
    torch.manual_seed(3)
    got = prefix_result(attention, torch.tensor(scale, device="cuda"))
    assert got.dtype == E4M3
    limited = dense.clamp(-448, 448)
    steps = torch.exp2(torch.floor(torch.log2(limited.abs().clamp_min(2**-6))) - 3)
    # Half a step, and what the bfloat16 it is compared with was rounded by.
    off = (got.float() - limited).abs()
    assert bool((off <= 0.5 * steps + 2**-8 * limited.abs()).all())


@pytest.mark.gpu
def test_replays_are_equal_to_the_bit(attention: HopperAttention) -> None:
    case = Prefix(torch.device("cuda"), 544, 532)
    out = torch.empty(544, 2048, device="cuda", dtype=torch.bfloat16)
    first = attention.prefix(*case.operands, out=out).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.prefix(*case.operands, out=out)
    for _ in range(50):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, first)


@pytest.mark.gpu
def test_what_the_kernel_in_front_writes_is_waited_for(attention: HopperAttention) -> None:
    """A chain in which each attention reads the one before as its queries."""
    case = Prefix(torch.device("cuda"), 544, 544)

    def chained() -> Tensor:
        q = case.q
        for _ in range(6):
            q = attention.prefix(q, *case.operands[1:]).view(544, 8, 256)
        return q

    wanted = chained().clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = chained()
    for _ in range(20):
        graph.replay()
        assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_operands_that_do_not_match_are_refused(attention: HopperAttention) -> None:
    case = Prefix(torch.device("cuda"), 4, 4)
    with pytest.raises(ValueError, match=r"no kernel for torch.float32 \[4, 8, 256\]"):
        attention.prefix(case.q.float(), case.keys, case.values, case.length)
