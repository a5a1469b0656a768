"""TensorRT engines of the toy model, built for real: no GPU is needed where a target is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.golden import TOY, toy_config

from thor_policy_ros.backends.trt_builder import (
    Bucket,
    BuildSettings,
    BuiltEngine,
    EngineBuildError,
    build_engine,
)
from thor_policy_ros.backends.trt_module import (
    TensorRT,
    import_tensorrt,
    installed_module,
    lacking_target,
)
from thor_policy_ros.backends.trt_networks import (
    denoise_network,
    modulation_rows,
    prefix_network,
    vision_network,
)
from thor_policy_ros.backends.trt_ops import TensorRTOps
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.pi05 import Pi05

pytestmark = pytest.mark.skipif(
    installed_module() is None, reason="neither tensorrt nor tensorrt_rtx is installed"
)

CONFIG = toy_config()
LANGUAGE, HORIZON = CONFIG.language, CONFIG.action_horizon
LENGTHS = (32, 64)
TARGET = "sm_120"
NETWORKS = {"vision": vision_network, "prefix": prefix_network, "denoise": denoise_network}
DTYPES = {torch.float32: "FLOAT", torch.bfloat16: "BF16"}


@pytest.fixture(scope="module", name="tensorrt")
def _tensorrt() -> TensorRT:
    return import_tensorrt()


@pytest.fixture(scope="module", name="model", params=DTYPES, ids=lambda dtype: str(dtype)[6:])
def _model(request: pytest.FixtureRequest) -> Pi05:
    return load_pi05(TOY, CONFIG, "cpu", request.param)


def buckets(name: str) -> list[Bucket]:
    if name == "vision":
        size = CONFIG.vision.image_size
        return [{"images": (cameras, 3, size, size)} for cameras in (1, 2, 3)]
    if name == "prefix":
        tables = (LANGUAGE.width, LANGUAGE.head_dim, LANGUAGE.head_dim)
        names = ("embeddings", "cos", "sin")
        return [
            {"bias": (p,), **{n: (p, w) for n, w in zip(names, tables, strict=True)}}
            for p in LENGTHS
        ]
    return [
        {
            "keys": (LANGUAGE.depth, LANGUAGE.num_kv_heads, p, LANGUAGE.head_dim),
            "values": (LANGUAGE.depth, LANGUAGE.num_kv_heads, p, LANGUAGE.head_dim),
            "bias": (p + HORIZON,),
        }
        for p in LENGTHS
    ]


def build(tensorrt: TensorRT, model: Pi05, name: str) -> BuiltEngine:
    def define(ops: TensorRTOps) -> None:
        NETWORKS[name](ops, model)

    return build_engine(tensorrt, define, buckets(name), BuildSettings(TARGET))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_is_built_for_every_bucket(tensorrt: TensorRT, model: Pi05, name: str) -> None:
    built = build(tensorrt, model, name)
    dtype = DTYPES[model.dtype]
    assert len(built.plan) > built.facts.weight_bytes / 2
    assert built.facts.buckets == tuple(buckets(name))
    outputs = {spec.name: spec for spec in built.facts.outputs}
    if name == "vision":
        assert outputs["image_tokens"].dtype == dtype
        assert outputs["image_tokens"].shape == (-1, LANGUAGE.width)
    elif name == "prefix":
        stacked = (LANGUAGE.depth, LANGUAGE.num_kv_heads, -1, LANGUAGE.head_dim)
        assert {spec.shape for spec in outputs.values()} == {stacked}
        assert {spec.dtype for spec in outputs.values()} == {dtype}
    else:
        assert outputs["next_x"].dtype == "FLOAT"
        assert outputs["next_x"].shape == (HORIZON, CONFIG.action_dim)
        inputs = {spec.name: spec for spec in built.facts.inputs}
        wanted = (modulation_rows(model), CONFIG.action_expert.width)
        assert inputs["modulations"].shape == wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_normalisation_is_float32_and_products_are_the_models_own(
    tensorrt: TensorRT, model: Pi05, name: str
) -> None:
    dtypes = build(tensorrt, model, name).facts.layer_dtypes
    assert dtypes["REDUCE"] == ("FLOAT",)  # mean and variance
    assert dtypes["UNARY"] == ("FLOAT",)  # their roots
    assert DTYPES[model.dtype] in dtypes["MATRIX_MULTIPLY"]


def test_a_target_that_the_package_cannot_build_for_is_named(tensorrt: TensorRT) -> None:
    lacking = lacking_target(tensorrt, "sm_1", None)
    assert "sm_1" in lacking and tensorrt.version in lacking
    assert lacking_target(tensorrt, TARGET, None) == ""


def test_what_tensorrt_says_is_in_the_error(tensorrt: TensorRT, model: Pi05) -> None:
    def define(ops: TensorRTOps) -> None:
        vision_network(ops, model)

    with pytest.raises(EngineBuildError, match=r"built no engine: .*[Pp]rofile"):
        build_engine(tensorrt, define, [{"images": (2, 3, 7, 7)}], BuildSettings(TARGET))


def test_a_level_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="optimization level 6 is not in 0 to 5"):
        BuildSettings(optimization_level=6)


def test_facts_are_plain_data(tensorrt: TensorRT, model: Pi05) -> None:
    facts: Any = build(tensorrt, model, "denoise").facts
    assert json.loads(json.dumps(facts.layer_types))["MATRIX_MULTIPLY"] > 0
