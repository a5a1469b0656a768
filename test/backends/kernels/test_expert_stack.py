"""All denoise steps in one launch: packing, plans, machine code; on a GPU against float32."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from thor_policy_ros.backends.fused_network import Expert, Flow, Place, integrate
from thor_policy_ros.backends.fused_steps import StepTable, constants_in, row_size
from thor_policy_ros.backends.fused_weights import ExpertLayerWeights, ExpertWeights
from thor_policy_ros.backends.kernels import (
    Weight,
    create_ops,
    expert_stack,
    quantise_rows,
    rope_halves,
)
from thor_policy_ros.backends.kernels.capability import DeviceLimits, limits_of
from thor_policy_ros.backends.kernels.expert_stack import (
    SLOT,
    SOURCE,
    ExpertStack,
    StackPlan,
    compiled,
    pack,
    row_scales,
    stack_plan,
)

WIDTH, HEADS, HEAD_DIM, HIDDEN, ACTIONS = 1024, 8, 256, 4096, 32
SHAPES = {
    "qkv": ((HEADS + 2) * HEAD_DIM, WIDTH),
    "o": (WIDTH, HEADS * HEAD_DIM),
    "gate_up": (2 * HIDDEN, WIDTH),
    "down": (WIDTH, HIDDEN),
}
DEVICES = {
    "Orin": DeviceLimits((8, 7), 163 * 1024, 16),
    "RTX 4090": DeviceLimits((8, 9), 99 * 1024, 128),
    "H200": DeviceLimits((9, 0), 227 * 1024, 132),
    "B200": DeviceLimits((10, 0), 227 * 1024, 148),
    "Thor": DeviceLimits((11, 0), 227 * 1024, 20),
    "RTX 5090": DeviceLimits((12, 0), 99 * 1024, 170),
}
FP8 = pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "e4m3"])


def plan_for(
    limits: DeviceLimits, fp8: bool = False, rows: int = 10, layers: int = 18, keys: int = 978
) -> StackPlan | None:
    return stack_plan(rows, WIDTH, HEADS, HEAD_DIM, HIDDEN, layers, keys, ACTIONS, fp8, limits)


def layer_weights(fp8: bool, generator: torch.Generator) -> ExpertLayerWeights:
    device = generator.device
    made = {}
    for name, (n, k) in SHAPES.items():
        values = (torch.randn(n, k, generator=generator, device=device) / k**0.5).bfloat16()
        made[name] = quantise_rows(values) if fp8 else Weight(values)
    return ExpertLayerWeights(**made)


# --- plans


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("rows", [8, 10, 15, 16])
@FP8
def test_a_plan_fits_its_device(name: str, rows: int, fp8: bool) -> None:
    limits = DEVICES[name]
    plan = plan_for(limits, fp8, rows)
    if fp8 and not limits.has_fp8:
        assert plan is None
        return
    assert plan is not None
    assert plan.blocks <= limits.multiprocessors
    assert plan.shared_memory <= limits.shared_memory
    # A block without a tile of the narrowest product would be waited for by nobody.
    assert (plan.blocks - 1) * plan.tiles["o"] < WIDTH // 8


@pytest.mark.parametrize("rows", [1, 7, 17, 50])
def test_rows_that_the_matrix_units_cannot_hold_have_no_plan(rows: int) -> None:
    assert plan_for(DEVICES["H200"], rows=rows) is None


def test_an_odd_number_of_layers_has_no_plan() -> None:
    assert plan_for(DEVICES["H200"], layers=17) is None


def test_the_demo_policys_expert_has_no_plan() -> None:
    assert stack_plan(10, 64, 2, 32, 128, 4, 200, 32, False, DEVICES["H200"]) is None


def test_actions_that_no_whole_loads_hold_have_no_plan() -> None:
    sizes = (10, WIDTH, HEADS, HEAD_DIM, HIDDEN, 18, 978)
    assert stack_plan(*sizes, 24, False, DEVICES["H200"]) is None


def test_a_step_has_as_many_constants_as_the_network_gives_it() -> None:
    plan = plan_for(DEVICES["H200"], layers=2)
    assert plan is not None
    layers = tuple(layer_weights(False, torch.Generator().manual_seed(2)) for _ in range(2))
    into, out = (torch.zeros(WIDTH, ACTIONS),) * 2, (torch.zeros(ACTIONS, WIDTH),) * 2
    assert plan.row_size == row_size(ExpertWeights(into, layers, out))


# --- packing


@pytest.mark.parametrize("name", ["H200", "Thor"])
@FP8
def test_the_stream_holds_every_product(name: str, fp8: bool) -> None:
    """x times what the stream holds, taken as the kernel takes it, is x @ w.T."""
    plan = plan_for(DEVICES[name], fp8, layers=2)
    assert plan is not None
    generator = torch.Generator().manual_seed(3)
    layers = [layer_weights(fp8, generator) for _ in range(2)]
    stream = pack(plan, layers)
    assert stream.shape[:2] == (plan.blocks, 2)
    begin = 0
    for product, (_, k) in SHAPES.items():
        panels = 2 if fp8 else 1
        chunks = plan.tiles[product] * k // (16 * 32 * panels)
        taken = stream[:, 1, begin : begin + chunks].reshape(-1, SLOT)
        begin += chunks
        weights = lanes_inputs(taken, fp8).view(
            plan.blocks, plan.tiles[product], -1, 16, 8, 4, panels, 8
        )
        x = torch.randn(5, k, generator=generator, dtype=torch.float64)
        inputs = x.view(5, 16, weights.shape[2], panels, 4, 8)
        columns = torch.einsum("btcwgqpe,mwcpqe->mbtg", weights.double(), inputs).flatten(1)
        assert_products(product, columns, x, getattr(layers[1], product).data.double())
    assert begin == stream.shape[2]


def lanes_inputs(taken: Tensor, fp8: bool) -> Tensor:
    """What the 16 bytes of each thread stand for, in the order of its inputs."""
    lanes = taken.view(*taken.shape[:-1], 512, 16)
    if not fp8:
        return lanes.contiguous().view(torch.bfloat16).float()
    words = lanes.view(*lanes.shape[:-1], 4, 4)[..., [1, 3, 0, 2]]  # high bytes first
    return words.contiguous().view(torch.float8_e4m3fn).flatten(-2).float()


def assert_products(product: str, columns: Tensor, x: Tensor, weight: Tensor) -> None:
    wanted = x @ weight.t()
    n = wanted.shape[1]
    if product == "qkv":  # RoPE's halves side by side
        wanted = wanted.view(5, HEADS + 2, 2, HEAD_DIM // 2).transpose(2, 3).flatten(1)
    if product == "gate_up":  # gate and up side by side
        wanted = wanted.view(5, 2, HIDDEN).transpose(1, 2).flatten(1)
    torch.testing.assert_close(columns[:, :n], wanted)
    assert not columns[:, n:].any()


def test_scales_of_rows_lie_in_the_order_of_the_products() -> None:
    plan = plan_for(DEVICES["H200"], fp8=True, layers=2)
    assert plan is not None
    layers = [layer_weights(True, torch.Generator().manual_seed(1)) for _ in range(2)]
    scales = row_scales(plan, layers)
    assert scales.shape == (2, sum(n for n, _ in SHAPES.values()))
    gate_up = layers[1].gate_up.scale
    assert gate_up is not None
    assert torch.equal(scales[1, 2560 + 1024 : 2560 + 1024 + 8192], gate_up)


# --- launching


C_TYPES = {"float": np.float32, "int": np.int32}


def test_the_arguments_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver believes what it is given: an argument too few is a crash."""
    launched: list[tuple[Any, ...]] = []

    def kernel(plan: StackPlan, device: torch.device) -> Any:
        return lambda *arguments: launched.append(arguments)

    monkeypatch.setattr(expert_stack, "_Kernel", kernel)
    plan = plan_for(DEVICES["H200"], layers=2)
    assert plan is not None
    layers = [layer_weights(False, torch.Generator().manual_seed(2)) for _ in range(2)]
    into = torch.zeros(WIDTH, ACTIONS), torch.zeros(WIDTH)
    out = torch.zeros(ACTIONS, WIDTH), torch.zeros(ACTIONS)
    stack = ExpertStack(plan, layers, into, out, torch.device("cpu"))
    actions, cache = torch.zeros(10, ACTIONS), torch.zeros(2, 978, HEAD_DIM).bfloat16()
    rows, gains = torch.zeros(3, plan.row_size), torch.zeros(3, 10)
    length, table = torch.ones(1, dtype=torch.int32), torch.zeros(978, HEAD_DIM // 2)
    guidance_and_prefix = actions, gains, cache, cache, length, table, table
    stack.run(actions, actions, rows, *guidance_and_prefix)
    with pytest.raises(ValueError, match="this kernel was made for"):
        stack.run(actions, actions, rows[:, 4:], *guidance_and_prefix)

    declared = re.search(r"expert_stack\((.*?)\) {", SOURCE.read_text(), re.DOTALL)
    assert declared is not None
    parameters = [" ".join(p.split()[:-1]) for p in declared[1].split(",")]
    assert [type(a) for a in launched[0]] == [C_TYPES.get(p, int) for p in parameters]


# --- machine code


@pytest.fixture(scope="module")
def disassembler() -> Path:
    pytest.importorskip("cuda.core", reason="NVRTC's interface, cuda-core, is not installed")
    triton = pytest.importorskip("triton")
    return Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"


@pytest.mark.parametrize("name", DEVICES)
@FP8
def test_it_compiles_for_every_generation(
    name: str, fp8: bool, disassembler: Path, tmp_path: Path
) -> None:
    limits = DEVICES[name]
    plan = plan_for(limits, fp8)
    if plan is None:
        assert fp8 and not limits.has_fp8
        return
    path = tmp_path / "expert_stack.cubin"
    path.write_bytes(compiled(plan, limits.capability))
    if limits.capability > (9, 0):
        return  # Triton's disassembler ends there
    code = subprocess.run(
        [disassembler, "-c", path], capture_output=True, text=True, check=True
    ).stdout
    copies = re.findall(r"LDGSTS\S* \[([^\]]+)\]", code)
    assert copies and "HMMA.16816.F32.BF16" in code
    # Such an instruction (address of two registers) was made by ptxas 13 and known to no GPU.
    assert not [address for address in copies if "UR" in address]
    if limits.capability == (9, 0):
        assert not re.search(r"\b(STL|LDL)\b", code), "registers were spilled"


# --- on a GPU


class Subject:
    """Layers, constants of each step and a prefix, of random numbers; and the same in float32."""

    def __init__(
        self,
        rows: int,
        fp8: bool,
        keys: int = 978,
        layers: int = 18,
        multiprocessors: int | None = None,
    ) -> None:
        self.device = torch.device("cuda")
        self.generator = torch.Generator(self.device).manual_seed(rows)
        normal = self.normal
        self.layers = tuple(layer_weights(fp8, self.generator) for _ in range(layers))
        into = normal(WIDTH, ACTIONS) / ACTIONS**0.5, normal(WIDTH)
        out = normal(ACTIONS, WIDTH) / WIDTH**0.5, normal(ACTIONS)
        self.weights = ExpertWeights(into, self.layers, out)
        dense = tuple(ExpertLayerWeights(*(Weight(w.dense()) for w in x)) for x in self.layers)
        self.exact = Expert(
            create_ops("reference", self.device), self.weights._replace(layers=dense)
        )
        self.rows = 0.1 * normal(10, row_size(self.weights))
        for step in self.table(10).steps:
            step.final_scale.add_(1)
            for layer in step.layers:
                layer.attention.scale.add_(1)
                layer.mlp.scale.add_(1)
        self.noise = normal(rows, ACTIONS)
        self.target = normal(rows, ACTIONS)
        self.gains = 2 * torch.rand(10, rows, device=self.device, generator=self.generator)
        self.keys = normal(layers, 1, 1, keys, HEAD_DIM).bfloat16()
        self.values = normal(layers, 1, 1, keys, HEAD_DIM).bfloat16()
        self.tables = rope_halves(keys, HEAD_DIM, self.device)
        self.length = torch.zeros(1, dtype=torch.int32, device=self.device)
        limits = limits_of(self.device)
        limits = replace(limits, multiprocessors=multiprocessors or limits.multiprocessors)
        plan = plan_for(limits, fp8, rows, layers, keys)
        assert plan is not None
        ends = self.weights.into, self.weights.out
        self.stack = ExpertStack(plan, self.layers, *ends, self.device)
        self.single = Expert(create_ops("triton", self.device), self.weights)
        self.one_launch = self.single._replace(stack=self.stack)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator)

    def table(self, steps: int) -> StepTable:
        rows = self.rows[:steps]
        return StepTable(rows, tuple(constants_in(row, self.weights) for row in rows))

    def place(self, dtype: torch.dtype) -> Place:
        keys, values = self.keys.to(dtype).clone(), self.values.to(dtype).clone()
        each = [(k[0], v[0]) for k, v in zip(keys, values, strict=True)]
        return Place(each, self.length, *self.tables, torch.zeros_like(self.length), keys, values)

    def actions(self, expert: Expert, length: int, steps: int = 1, guided: bool = False) -> Tensor:
        self.length.fill_(length)
        dtype = torch.float32 if expert is self.exact else torch.bfloat16
        hidden = torch.empty(len(self.noise), WIDTH, device=self.device, dtype=dtype)
        gains = self.gains[:steps] * guided
        result, actions = torch.empty_like(self.noise), torch.empty_like(self.noise)
        flow = Flow(self.noise, result, actions, hidden, self.target, gains)
        integrate(expert, flow, self.table(steps), self.place(dtype))
        return result

    def run(self, length: int, steps: int = 1, guided: bool = False) -> Tensor:
        return self.actions(self.one_launch, length, steps, guided)

    def error(self, found: Tensor, length: int, steps: int = 1, guided: bool = False) -> float:
        """Relative, of the way from noise to actions."""
        wanted = self.actions(self.exact, length, steps, guided)
        return float((found - wanted).norm() / (wanted - self.noise).norm())


@pytest.fixture(scope="module", autouse=True)
def exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    pytest.importorskip("cuda.core")


@pytest.mark.gpu
@FP8
def test_all_steps_are_those_of_float32(gpu: None, fp8: bool) -> None:
    """Step counts and prefixes in turns, since what one launch leaves behind is the next one's; and
    no worse than a kernel for each operation."""
    subject = Subject(10, fp8)
    for steps, length in ((10, 544), (1, 17), (2, 968 - 10), (3, 1), (10, 301), (7, 8), (2, 544)):
        for guided in (False, True):
            case = length, steps, guided
            found, single = subject.run(*case), subject.actions(subject.single, *case)
            error = subject.error(found, *case)
            assert error < 0.02, case
            assert error < 1.3 * subject.error(single, *case) + 1e-3, case
            assert torch.equal(found, subject.run(*case)), case
    assert not subject.stack.failed


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [8, 10, 15, 16])
@FP8
def test_a_step_is_that_of_float32(gpu: None, rows: int, fp8: bool) -> None:
    """Prefixes of one key and of all, and around the borders of 8 and 16 keys; longer and shorter
    ones in turns, since what one leaves behind is the next one's."""
    subject = Subject(rows, fp8)
    for length in (544, 1, 968 - rows, 16, 301, 15, 17, 8, 549, 544):
        found = subject.run(length)
        assert subject.error(found, length) < 0.02, length
        assert torch.equal(found, subject.run(length)), length
    assert not subject.stack.failed


@pytest.mark.gpu
@pytest.mark.parametrize("multiprocessors", [20, 16, 48])
@FP8
def test_few_multiprocessors_have_several_groups_of_tiles(
    gpu: None, multiprocessors: int, fp8: bool
) -> None:
    """As Thor and Orin would run it, on whatever GPU there is."""
    subject = Subject(10, fp8, multiprocessors=multiprocessors)
    assert subject.stack.plan.blocks <= multiprocessors
    for length in (544, 17, 960):
        found = subject.run(length, steps=3, guided=True)
        assert subject.error(found, length, steps=3, guided=True) < 0.02, length
        assert torch.equal(found, subject.run(length, steps=3, guided=True)), length
    assert not subject.stack.failed


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [1, 10])
def test_replayed_as_a_graph_it_is_the_same(gpu: None, steps: int) -> None:
    subject = Subject(10, fp8=False)
    wanted = subject.run(544, steps)
    place, table = subject.place(torch.bfloat16), subject.table(steps)
    noise, result = subject.noise.cpu().pin_memory(), torch.empty_like(wanted, device="cpu")
    result = result.pin_memory()
    gains = 0 * subject.gains[:steps]
    flow = Flow(noise, result, wanted.clone(), wanted, subject.target, gains)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        integrate(subject.one_launch, flow, table, place)
    for _ in range(100):
        result.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(result, wanted.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "bits", [0x7FC00000, -1], ids=["a usual NaN", "the word of what is absent"]
)
def test_noise_that_is_no_number_makes_nobody_wait(gpu: None, bits: int) -> None:
    subject = Subject(10, fp8=False, layers=2)
    subject.noise[3, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert subject.run(100, 2)[3].isnan().all()
    assert not subject.stack.failed


@pytest.mark.gpu
def test_two_stacks_at_once_do_not_wait_for_each_other_forever(gpu: None) -> None:
    """Two engines of one GPU, as while one is verified beside the other."""
    subjects = [Subject(10, fp8=False), Subject(10, fp8=True)]
    wanted = [subject.run(544, 3) for subject in subjects]
    streams = [torch.cuda.Stream() for _ in subjects]
    torch.cuda.synchronize()
    for _ in range(30):
        found = []
        for subject, stream in zip(subjects, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(subject.run(544, 3))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [1, 3])
def test_after_a_failure_every_answer_is_nan(gpu: None, steps: int) -> None:
    subject = Subject(10, fp8=False, layers=2)
    assert subject.run(100, steps).isfinite().all()
    subject.stack.poison()
    assert subject.run(100, steps).isnan().all()
    assert subject.stack.failed
