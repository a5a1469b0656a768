"""Products with what follows them in one kernel: cuts, order of rows, machine code; on a Hopper GPU
against float64."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.rotation import rotation_of
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3, E4M3_MAX
from thor_policy_ros.backends.kernels.hopper_product import (
    CAPABILITY,
    EPILOGUES,
    MOST_SUMS,
    MOST_SUMS_BESIDE,
    SHARED_MEMORY,
    SOURCE,
    Code,
    HopperProducts,
    Tiling,
    compiled,
    fits,
    multiply_source,
    tiling_for,
    weight_rows,
)
from thor_policy_ros.backends.kernels.hopper_tables import HEAD_DIM, Epilogue, Tables
from thor_policy_ros.backends.kernels.reference import ReferenceOps

MULTIPROCESSORS = 132
SIZES = {  # N, K, epilogue
    "vision qkv": (3456, 1152, "plain"),
    "vision out": (1152, 1152, "parts"),
    "vision fc1": (4304, 1152, "gelu"),
    "vision fc2": (1152, 4304, "parts"),
    "prefix qkv": (2560, 2048, "plain"),
    "prefix o": (2048, 2048, "parts"),
    "prefix gate_up": (32768, 2048, "geglu"),
    "prefix down": (2048, 16384, "parts"),
}
TOKENS = (256, 288, 456, 512, 544, 712, 768, 968)


def cut(name: str, tokens: int, size: int = 2) -> Tiling:
    rows, inputs, epilogue = SIZES[name]
    return tiling_for(tokens, rows, inputs * size // 128, epilogue, MULTIPROCESSORS)  # type: ignore[arg-type]


# --- cuts


@given(
    tokens=st.integers(1, 2000),
    rows=st.integers(32, 4096).map(lambda n: 8 * n),
    steps=st.integers(1, 300),
    epilogue=st.sampled_from(EPILOGUES),
)
def test_a_cut_fits_a_multiprocessor(
    tokens: int, rows: int, steps: int, epilogue: Epilogue
) -> None:
    found = tiling_for(tokens, rows, steps, epilogue, MULTIPROCESSORS)
    assert found.tokens % 8 == 0
    assert 8 <= found.tokens <= 256, "of the matrix units' instruction"
    beside = epilogue in ("placed", "rotated")
    assert found.high * found.tokens <= (MOST_SUMS_BESIDE if beside else MOST_SUMS)
    assert found.stages >= 3
    assert found.stages * found.stage_bytes < SHARED_MEMORY
    assert found.splits == 1 or epilogue == "parts"
    assert found.splits <= steps, "every part has something to add up"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vision qkv", Tiling(128, 1)),
        ("vision fc1", Tiling(80, 2)),
        ("vision fc2", Tiling(128, 1, splits=3)),
        ("prefix gate_up", Tiling(184, 2)),
        ("prefix down", Tiling(136, 2, splits=4)),
    ],
)
def test_two_cameras_get_the_cuts_that_were_fastest(name: str, wanted: Tiling) -> None:
    """Of those tried on an H200 (benchmarks/results/hopper_products_h200.json)."""
    assert cut(name, 512 if name.startswith("vision") else 544) == wanted


def test_down_in_e4m3_has_half_the_parts_that_a_norm_must_add() -> None:
    """As fast as four parts of tiles twice as high, by itself."""
    assert cut("prefix down", 544, size=1) == Tiling(136, 1, splits=2)


# --- the order of rows


@pytest.mark.parametrize("high", [1, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_a_threads_features_lie_side_by_side(high: int, gated: bool) -> None:
    """Boxes as the kernel asks for them, rows as the matrix units hand them out."""
    rows = 2 * 512 if gated else 384
    view = weight_rows(numbered(rows), high, 512 if gated else None)
    assert view.shape[1:] == (4, 2, 8, 32)
    assert all(stride % 16 == 0 for stride in view.stride()[:-1]), "the copy engine's rule"
    run = high if gated else 2 * high
    features = 128 * high // (2 if gated else 1)
    for tile in range(3):
        first = min(tile * features, (512 if gated else rows) - features)
        for group in range(2):
            for b in range(high):
                start = first + group * 32 * high if gated else (first + group * 64 * high) // 2
                box = view[start + b].reshape(64, 32).contiguous().view(torch.int16)[:, 0]
                for row in range(64):  # of the instruction: warp, half, lane's row
                    warp, half, lane = row // 16, row // 8 % 2, row % 8
                    feature = first + ((group * 4 + warp) * 8 + lane) * run
                    wanted = feature + b + half * 512 if gated else feature + 2 * b + half
                    assert int(box[row]) == wanted


def numbered(rows: int) -> Tensor:
    """Each row's number, in every column."""
    weight = torch.arange(rows)[:, None].expand(rows, 16).to(torch.int16).contiguous()
    return weight.view(torch.bfloat16)


@pytest.mark.parametrize("high", [1, 2])
def test_both_halves_of_a_head_meet_in_a_thread(high: int) -> None:
    heads, half = 4, HEAD_DIM // 2
    view = weight_rows(numbered(heads * HEAD_DIM), high, half)
    features = 64 * high
    for tile in range(heads * half // features):
        for group in range(2):
            for b in range(high):
                own = tile * features + group * 32 * high + b
                start = own // half * HEAD_DIM + own % half
                box = view[start].reshape(64, 32).contiguous().view(torch.int16)[:, 0]
                for row in range(64):
                    warp, second, lane = row // 16, row // 8 % 2, row % 8
                    pair = tile * features + ((group * 4 + warp) * 8 + lane) * high + b
                    wanted = pair // half * HEAD_DIM + pair % half + second * half
                    assert int(box[row]) == wanted
    assert len(view) == start + 1, "the last box ends with the weights"


def test_weights_that_no_kernel_is_for() -> None:
    assert fits(torch.zeros(768, 64, dtype=torch.bfloat16), "rotated")
    assert not fits(torch.zeros(640, 64, dtype=torch.bfloat16), "rotated"), "whole heads"
    assert fits(torch.zeros(256, 64, dtype=torch.bfloat16), "plain")
    assert fits(torch.zeros(512, 64, dtype=torch.bfloat16), "geglu")
    assert not fits(torch.zeros(256, 64, dtype=torch.bfloat16), "geglu")
    assert not fits(torch.zeros(256, 64), "plain"), "float32"
    assert not fits(torch.zeros(260, 64, dtype=torch.bfloat16), "plain"), "rows in eights"
    assert not fits(torch.zeros(256, 60, dtype=torch.bfloat16), "plain"), "rows of 16 bytes"


# --- machine code


@pytest.mark.parametrize("tokens", [8, 136, 256])
@pytest.mark.parametrize("fp8", [False, True])
def test_the_instruction_names_each_sum_once(tokens: int, fp8: bool) -> None:
    text = multiply_source(tokens, fp8)
    assert f"n{tokens}k{32 if fp8 else 16}." in text
    assert len(re.findall(r'"\+f"', text)) == tokens // 2
    assert [int(n) for n in re.findall(r"%(\d+)[,}]", text)][-tokens // 2 :]
    assert set(map(int, re.findall(r"%(\d+)", text))) == set(range(tokens // 2 + 3))


CODES = [
    Code(184, 2, 4, False, "geglu", False, False),
    Code(184, 2, 4, True, "geglu", True, False),
    Code(136, 2, 4, True, "parts", False, False),
    Code(176, 1, 5, False, "gelu", False, True),
    Code(176, 1, 5, True, "gelu", True, True),
    Code(128, 1, 7, False, "plain", False, True),
    Code(64, 1, 9, False, "placed", False, False),
    Code(96, 1, 8, True, "rotated", False, False),
    Code(96, 1, 8, False, "rotated", False, False),
    Code(64, 2, 5, True, "rotated", False, False),
]


@pytest.mark.parametrize("code", CODES, ids=str)
def test_machine_code(code: Code, tmp_path: Path) -> None:
    """The matrix units' instruction of this width, registers at launch, and next to no spills."""
    text = disassembled(compiled(code), tmp_path)
    instruction = "QGMMA" if code.fp8 else "HGMMA"
    found = re.findall(rf"{instruction}\.64x(\d+)x", text)
    assert len(found) == 4 * code.high
    assert set(found) == {str(code.tokens)}
    assert len(re.findall(r"\bSTL\b", text)) <= 4
    assert "UTMALDG" in text
    assert code.registers % 8 == 0
    assert code.registers * 384 >= 128 * 24 + 256 * code.macros["MANY"], "what is given is there"


def test_the_launch_gives_what_the_kernel_takes() -> None:
    """Two maps, five pointers, six sizes, and `Tables`."""
    signature = SOURCE.read_text().split("hopper_product(", 1)[1].split(")", 1)[0]
    kinds = [part.split()[0 if "TensorMap" not in part else 2] for part in signature.split(",")]
    tables = ["const", "int", "const", "const", "unsigned", "unsigned", "int", "int", "int", "long"]
    assert kinds == ["TensorMap"] * 2 + ["void*"] + ["const"] * 4 + ["int"] * 6 + tables
    names = [part.split()[-1].lstrip("*") for part in signature.split(",")]
    assert names[-len(tables) :] == list(Tables._fields)


def disassembled(code: bytes, folder: Path) -> str:
    triton = pytest.importorskip("triton", reason="its disassembler")
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    if not program.exists():
        pytest.skip("this Triton has no disassembler")
    path = folder / "kernel.cubin"
    path.write_bytes(code)
    done = subprocess.run([program, "-c", path], capture_output=True, text=True, check=True)
    return done.stdout


# --- on a GPU


@pytest.fixture
def hopper() -> HopperProducts:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != CAPABILITY:
        pytest.skip("wants a Hopper GPU (9.0)")
    torch.manual_seed(5)
    device = torch.device("cuda", torch.cuda.current_device())
    return HopperProducts(device, torch.cuda.get_device_properties(device).multi_processor_count)


class Case:
    """Random operands on the GPU, and what comes of them in float64."""

    def __init__(self, tokens: int, rows: int, inputs: int, epilogue: Epilogue, fp8: bool) -> None:
        self.epilogue = epilogue
        dtype = E4M3 if fp8 else torch.bfloat16
        x = torch.randn(tokens, inputs, device="cuda")
        weight = torch.randn(rows, inputs, device="cuda") * (1 if fp8 else inputs**-0.5)
        self.x, self.weight = x.to(dtype), weight.to(dtype)
        biased = epilogue in ("gelu", "plain")
        self.bias = torch.randn(rows, device="cuda").bfloat16() if biased else None
        self.scales: dict[str, Any] = {}
        if fp8:
            self.scales["input_scale"] = torch.tensor(0.5, device="cuda")
            self.scales["weight_scale"] = torch.tensor(2.0 * inputs**-0.5, device="cuda")

    def wanted(self) -> Tensor:
        product = self.x.double() @ self.weight.double().t()
        for scale in self.scales.values():
            product *= scale.double()
        if self.bias is not None:
            product += self.bias.double()
        if self.epilogue == "gelu":
            return F.gelu(product, approximate="tanh")
        if self.epilogue == "geglu":
            gate, up = product.chunk(2, 1)
            return F.gelu(gate, approximate="tanh") * up
        return product

    def run(self, products: HopperProducts, **more: Any) -> Tensor:
        return products(
            self.x,
            self.weight,
            self.epilogue,
            bias=self.bias,
            **self.scales,
            **more,
        )


def error_of(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("epilogue", ["plain", "gelu", "geglu", "parts"])
@pytest.mark.parametrize(
    ("tokens", "rows", "inputs"),
    [
        (1, 512, 128),
        (7, 4304, 272),
        (40, 1152, 4304),
        (200, 2560, 2048),
        (544, 1152, 1152),
        (968, 3456, 1152),
    ],
)
def test_products(
    hopper: HopperProducts, tokens: int, rows: int, inputs: int, epilogue: Epilogue, fp8: bool
) -> None:
    case = Case(tokens, rows, inputs, epilogue, fp8)
    out = torch.full_like(case.run(hopper), torch.nan)
    got = case.run(hopper, out=out)
    if epilogue == "parts":
        assert error_of(got.double().sum(0), case.wanted()) < (2e-3 if fp8 else 1e-5)
    else:
        assert error_of(got, case.wanted()) < (4e-3 if fp8 else 2.5e-3), "rounding of bfloat16"


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("tiling", [None, Tiling(8, 1), Tiling(40, 2)], ids=str)
@pytest.mark.parametrize(("images", "tokens"), [(1, 256), (3, 256), (2, 21)])
def test_every_image_gets_the_places(
    hopper: HopperProducts, images: int, tokens: int, tiling: Tiling | None, fp8: bool
) -> None:
    case = Case(images * tokens, 1152, 1792, "placed", fp8)
    places = torch.randn(tokens, 1152, device="cuda")
    out = torch.full((images * tokens, 1152), torch.nan, device="cuda").bfloat16()
    got = case.run(hopper, places=places, out=out, tiling=tiling)
    wanted = case.wanted() + places.double().repeat(images, 1)
    assert error_of(got, wanted) < (4e-3 if fp8 else 2.5e-3), "rounding of bfloat16"


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("tiling", [None, Tiling(8, 1), Tiling(88, 2), Tiling(176, 1)], ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "groups", "start"),
    [(544, 8, 1, 0), (968, 8, 1, 0), (1, 8, 1, 0), (40, 0, 1, 0), (77, 3, 2, 5), (30, 2, 1, 975)],
)
def test_heads_are_rotated_and_go_where_they_are_read(
    hopper: HopperProducts,
    tokens: int,
    heads: int,
    groups: int,
    start: int,
    tiling: Tiling | None,
    fp8: bool,
) -> None:
    """Rows of the caches outside the tokens' stay as they are; what does not fit is dropped."""
    case = Case(tokens, (heads + 2 * groups) * HEAD_DIM, 2048, "rotated", fp8)
    longer = rotation_of(groups, 1005, "cuda")
    longer.start.fill_(start)
    exact = longer._replace(keys=longer.keys.double(), values=longer.values.double())
    keys, values = torch.full((2, groups, 980, HEAD_DIM), 7.0, device="cuda").bfloat16()
    rotation = longer._replace(keys=keys, values=values)
    wanted = ReferenceOps().split_qkv(case.wanted(), *exact)
    q = torch.full((tokens, heads, HEAD_DIM), torch.nan, device="cuda").bfloat16()
    got = case.run(hopper, rotation=rotation, out=q, tiling=tiling)
    limit = 4e-3 if fp8 else 2.5e-3
    own = slice(start, min(start + tokens, 980))
    pairs = [(a[:, own], b[:, own]) for a, b in zip(rotation[3:], exact[3:], strict=True)]
    for found, meant in [(got, wanted), *pairs] if heads else pairs:
        assert error_of(found, meant) < limit, "rounding of bfloat16"
    for found in rotation[3:]:
        assert bool((found[:, :start] == 7).all()) and bool((found[:, start + tokens :] == 7).all())


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    "tiling",
    [Tiling(8, 1), Tiling(64, 2), Tiling(192, 2), Tiling(256, 1), Tiling(104, 2, 5)],
    ids=str,
)
def test_any_cut_gives_the_same(hopper: HopperProducts, tiling: Tiling, fp8: bool) -> None:
    case = Case(300, 1152, 2048, "parts", fp8)
    got = case.run(hopper, tiling=tiling)
    assert got.shape == (tiling.splits, 300, 1152)
    assert error_of(got.double().sum(0), case.wanted()) < (2e-3 if fp8 else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", ["gelu", "geglu"])
def test_results_in_e4m3_are_rounded_once_and_saturate(
    hopper: HopperProducts, epilogue: Epilogue
) -> None:
    case = Case(300, 2304, 1152, epilogue, True)
    scale = torch.tensor(0.004, device="cuda")
    got = case.run(hopper, quantise=scale)
    assert got.dtype == E4M3
    wanted = case.wanted() / 0.004
    assert bool((wanted.abs() > E4M3_MAX).any())
    limited = wanted.clamp(-E4M3_MAX, E4M3_MAX)
    steps = torch.exp2(torch.floor(torch.log2(limited.abs().clamp_min(2**-6))) - 3)
    of_sums = 0.02 * wanted.std()  # which the matrix units keep to 14 bits
    assert bool(((got.double() - limited).abs() <= 0.5 * steps + of_sums).all())
    assert error_of(got, limited) < 0.03


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["prefix down", "vision fc1"])
def test_replays_are_equal_to_the_bit(hopper: HopperProducts, name: str) -> None:
    rows, inputs, epilogue = SIZES[name]
    case = Case(544, rows, inputs, epilogue, True)  # type: ignore[arg-type]
    first = case.run(hopper).clone()
    graph, out = torch.cuda.CUDAGraph(), torch.empty_like(first)
    with torch.cuda.graph(graph):
        case.run(hopper, out=out)
    for _ in range(50):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, first)


@pytest.mark.gpu
def test_what_the_kernel_in_front_writes_is_waited_for(hopper: HopperProducts) -> None:
    """A chain in which each product reads the one before, which it may overlap with."""
    weight = (torch.randn(1152, 1152, device="cuda") * 1152**-0.5).bfloat16()
    x = torch.randn(512, 1152, device="cuda").bfloat16()
    wanted = x
    for _ in range(6):
        wanted = hopper(wanted, weight)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chained = x
        for _ in range(6):
            chained = hopper(chained, weight)
    for _ in range(20):
        graph.replay()
        assert torch.equal(chained, wanted)


@pytest.mark.gpu
def test_operands_that_do_not_match_are_refused(hopper: HopperProducts) -> None:
    x = torch.zeros(4, 64, device="cuda")
    with pytest.raises(ValueError, match=r"no kernel for 'plain' of torch.float32 \[4, 64\]"):
        hopper(x, torch.zeros(256, 64, device="cuda").bfloat16())
