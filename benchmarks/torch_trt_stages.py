"""The stages of torch_trt_on_cuda.py: each is called with a `Setting` in a process of its own, and
returns what it found, as JSON data. What it raises is recorded as its failure.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden" / "pi05_toy"
FRAMES = 30
DEFAULT_CAPABILITY = "sm_120"


@dataclass(frozen=True)
class Setting:
    """Of one inner process."""

    size: str
    part: str
    dtype: str
    capability: str
    on_gpu: bool
    work: Path
    stand_ins: tuple[str, ...]


def import_stage(setting: Setting) -> dict[str, Any]:
    """Which packages there are, and whether they can be imported."""
    import torch

    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["capability"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
    from thor_policy_ros.backends.torch_trt import missing
    from thor_policy_ros.backends.torch_trt_package import import_flavour, installed

    package = installed()
    found["missing"] = list(missing()) if setting.on_gpu else "not asked: no GPU"
    found["package"] = package and package._asdict()
    import torch_tensorrt

    found["torch_tensorrt"] = torch_tensorrt.__version__
    found["features"] = {k: bool(v) for k, v in torch_tensorrt.ENABLED_FEATURES._asdict().items()}
    assert package is not None
    tensorrt = import_flavour(package.flavour)
    found["tensorrt"] = tensorrt.version
    found["builds_for"] = tensorrt.targets()
    found["stand_ins"] = setting.stand_ins
    return found


def graph_stage(setting: Setting) -> dict[str, Any]:
    """Export; the graph against the module it was made of; what the partitioner makes of it."""
    import torch
    import torch_tensorrt

    from thor_policy_ros.backends.torch_trt_build_process import torch_tensorrt_inputs
    from thor_policy_ros.backends.torch_trt_package import accepted_arguments
    from thor_policy_ros.backends.torch_trt_parts import GRAPHS, export_part, operations_of

    request, model = request_of(setting), model_of(setting)
    begun = time.perf_counter()
    program = export_part(setting.part, model, device_of(setting))
    seconds = time.perf_counter() - begun
    difference: float | str = "not computed: it takes a CPU hours"
    if setting.on_gpu or setting.size == "toy":
        examples = random_inputs(setting, request)
        with torch.inference_mode():
            ours = program.module()(*examples)
            theirs = GRAPHS[setting.part].module(model).eval()(*examples)
        difference = largest_difference(ours, theirs)
    report = setting.work / f"dryrun {setting.size} {setting.part}.txt"
    compile_ = torch_tensorrt.dynamo.compile
    torch_tensorrt.dynamo.compile(
        program,
        arg_inputs=torch_tensorrt_inputs(request),
        device=torch.device("cuda:0"),
        min_block_size=1,
        dryrun=str(report),
        **accepted_arguments(compile_, {}),
    )
    return {
        "operations": dict(operations_of(program)),
        "bounds": [str(bound) for bound in program.range_constraints.values()],
        "export_s": round(seconds, 2),
        "largest_difference": difference,
        "dry_run": dry_run_facts(report.read_text()),
        "stand_ins": setting.stand_ins,
    }


def dry_run_facts(text: str) -> dict[str, Any]:
    """What the partitioner reported: how many operations it supports, in how many engines."""
    lines = [line.strip() for line in text.splitlines()]
    return {
        "coverage": next((line for line in lines if "Total Operators" in line), ""),
        "engines": sum(line.startswith("TRT Engine #") for line in lines),
        "in_pytorch": [line for line in lines if line.startswith("The following nodes are")],
    }


def engine_stage(setting: Setting) -> dict[str, Any]:
    """Converted and built: for this GPU as the backend does it, else as far as it goes."""
    from thor_policy_ros.backends.torch_trt_build_process import converted
    from thor_policy_ros.backends.torch_trt_parts import export_part

    request, model = request_of(setting), model_of(setting)
    program = export_part(setting.part, model, device_of(setting))
    begun = time.perf_counter()
    other = foreign_capability(setting)
    if not other:
        plan = converted(program, request)
        facts: dict[str, Any] = {"built_for": request.capability, "bytes": len(plan)}
    else:
        with building_for(other) as built, suppress(Built):
            converted(program, request)
        plan = built.pop("plan")
        facts = {"built_for": f"{other}, not run here", **built}
        if setting.on_gpu:
            facts["offered_here"] = offered(plan, setting.part)
    return {
        **facts,
        "convert_and_build_s": round(time.perf_counter() - begun, 2),
        "weights_mb": round(weights_of(program) / 1e6, 1),
        "stand_ins": setting.stand_ins,
    }


def offered(plan: Any, part: str) -> str:
    """Whether TensorRT takes the engine on this GPU; what it says if not."""
    from thor_policy_ros.backends.torch_trt_package import import_flavour, installed
    from thor_policy_ros.backends.trt_execution import DeviceEngine, EngineExecutionError

    package = installed()
    assert package is not None
    try:
        DeviceEngine(import_flavour(package.flavour), memoryview(plan), part)
    except EngineExecutionError as error:
        return f"refused: {error}"
    return "loaded"


def own_stage(setting: Setting) -> dict[str, Any]:
    """Converted and built for the GPU that is here, whether or not the package lists it."""
    from thor_policy_ros.backends.torch_trt_build_process import converted
    from thor_policy_ros.backends.torch_trt_parts import export_part

    if not setting.on_gpu:
        return {"status": "skipped", "why": "no GPU"}
    request = request_of(setting)
    program = export_part(setting.part, model_of(setting), device_of(setting))
    try:
        plan = converted(program, request)
    except Exception as error:  # noqa: BLE001 (whatever a converter raises is the answer)
        return {"built_for": request.capability, "refused": f"{type(error).__name__}: {error}"}
    built = {"built_for": request.capability, "bytes": len(plan)}
    return {**built, "offered_here": offered(plan, setting.part)}


class Built(BaseException):
    """There is an engine; it cannot be loaded here. No Exception, which converters catch."""


@contextmanager
def building_for(capability: str) -> Iterator[dict[str, Any]]:
    """Converters build for another GPU and stop there; facts of network and engine are yielded."""
    import torch_tensorrt.dynamo.conversion._TRTInterpreter as interpreter

    api, facts = interpreter.trt, {}
    populate = interpreter.TRTInterpreter._populate_trt_builder_config

    def populated(self: Any, *given: Any, **named: Any) -> Any:
        config = populate(self, *given, **named)
        config.num_compute_capabilities = 1
        target = getattr(api.ComputeCapability, capability.replace("sm_", "SM"))
        config.set_compute_capability(target, 0)
        return config

    class Keeping(api.Builder):  # type: ignore[misc, name-defined]
        def build_serialized_network(self, network: Any, config: Any) -> Any:
            facts.update(network_facts(network))
            plan = super().build_serialized_network(network, config)
            if plan is None:
                raise RuntimeError("TensorRT built no engine: its errors are above")
            facts["plan"], facts["bytes"] = plan, memoryview(plan).nbytes
            raise Built

    builder = api.Builder
    interpreter.TRTInterpreter._populate_trt_builder_config = populated
    api.Builder = Keeping
    try:
        yield facts
    finally:
        interpreter.TRTInterpreter._populate_trt_builder_config = populate
        api.Builder = builder


def network_facts(network: Any) -> dict[str, Any]:
    """Layers by type, the types of their results, inputs and outputs."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    tensors = {
        "inputs": [network.get_input(index) for index in range(network.num_inputs)],
        "outputs": [network.get_output(index) for index in range(network.num_outputs)],
    }
    dtypes: dict[str, set[str]] = {}
    for layer in layers:
        dtypes.setdefault(layer.type.name, set()).add(layer.get_output(0).dtype.name)
    return {
        "layers": dict(Counter(layer.type.name for layer in layers)),
        "layer_dtypes": {name: sorted(found) for name, found in dtypes.items()},
        **{
            kind: [f"{t.name} {t.dtype.name} {list(t.shape)}" for t in found]
            for kind, found in tensors.items()
        },
    }


def backend_stage(setting: Setting) -> dict[str, Any]:
    """The backend as the registry makes it: against float32 PyTorch, and its latency."""
    from thor_policy_ros.backends.torch_trt import missing

    if not setting.on_gpu:
        return {"status": "skipped", "why": "no GPU"}
    lacking = missing()
    if lacking:
        return {"status": "skipped", "why": "; ".join(lacking)}
    from thor_policy_ros.backends.registry import create_backend
    from thor_policy_ros.types import EngineOptions

    config, folder = config_of(setting), checkpoint_of(setting)
    options = EngineOptions(cache_dir=str(setting.work / "engines"))
    reference = create_backend("pytorch", folder, config, "cuda", "float32")
    wanted = frame(reference, setting)
    reference.close()
    begun = time.perf_counter()
    ours = create_backend("torch_trt_freq1", folder, config, "cuda", setting.dtype, options)
    loaded = time.perf_counter()
    got = frame(ours, setting)
    ours.warmup()
    warm = time.perf_counter()
    result = {
        "load_s": round(loaded - begun, 1),
        "warmup_s": round(warm - loaded, 1),
        "notes": list(ours.notes),
        "cosines": {
            name: cosine(a, b)
            for name, a, b in zip(("keys", "values", "actions"), got, wanted, strict=True)
        },
        "latency_ms": latency(ours, setting),
    }
    ours.close()
    return result


WORK: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "import": import_stage,
    "graph": graph_stage,
    "engine": engine_stage,
    "own": own_stage,
    "backend": backend_stage,
}


# What stages share


def config_of(setting: Setting) -> Any:
    from thor_policy_ros.model.config import model_config_from_json
    from thor_policy_ros.model.named_configs import LIBERO

    if setting.size == "full":
        return LIBERO.model
    return model_config_from_json(json.loads((GOLDEN / "config.json").read_text()))


def device_of(setting: Setting) -> str:
    return "cuda:0" if setting.on_gpu else "cpu"


def request_of(setting: Setting) -> Any:
    """As the backend asks, for random weights at full size."""
    import torch

    from thor_policy_ros.backends.network_ops import TORCH_DTYPES
    from thor_policy_ros.backends.torch_trt_engines import GraphRequest, tuned_sizes
    from thor_policy_ros.backends.torch_trt_settings import TorchTRTSettings
    from thor_policy_ros.backends.trt_weights import checkpoint_weights, random_weights

    config = config_of(setting)
    weights = (
        random_weights(config) if setting.size == "full" else checkpoint_weights(GOLDEN, config)
    )
    return GraphRequest(
        part=setting.part,
        weights=weights,
        dtype=TORCH_DTYPES[setting.dtype],
        device="cuda:0",
        gpu="",
        capability="sm_{}{}".format(*torch.cuda.get_device_capability()),
        level=2,
        tuned=tuned_sizes(config, TorchTRTSettings()),
        versions="",
    )


def model_of(setting: Setting) -> Any:
    from thor_policy_ros.backends.trt_parts import PARTS as HELD

    request = request_of(setting)
    return request.weights.load(HELD[setting.part].holds, request.dtype, device_of(setting))


def foreign_capability(setting: Setting) -> str:
    """The GPU to build for instead of this one, '' for this one."""
    import torch

    from thor_policy_ros.backends.torch_trt_package import import_flavour, installed

    package = installed()
    assert package is not None
    targets = import_flavour(package.flavour).targets()
    own = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if setting.capability and (setting.capability != own or not setting.on_gpu):
        return setting.capability
    if not setting.on_gpu or (targets and own not in targets):
        return DEFAULT_CAPABILITY
    return ""


def random_inputs(setting: Setting, request: Any) -> list[Any]:
    """Of the largest size; every key valid."""
    import torch

    from thor_policy_ros.backends.torch_trt_parts import GRAPHS

    torch.manual_seed(0)
    made = []
    for name, spec in GRAPHS[setting.part].inputs(request.weights.config).items():
        shape = spec.at(lambda size: size.most)
        dtype = torch.float32 if spec.dtype else request.dtype
        value = torch.zeros(shape) if name == "bias" else torch.randn(shape)
        made.append(value.to(device_of(setting), dtype))
    return made


def largest_difference(ours: Any, theirs: Any) -> float:
    """Over the largest value, of all outputs."""
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, theirs)), strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)


def weights_of(program: Any) -> int:
    return sum(p.numel() * p.element_size() for p in program.state_dict.values())


def checkpoint_of(setting: Setting) -> Path:
    if setting.size == "toy":
        return GOLDEN
    import torch

    from thor_policy_ros.model.checkpoint import save_pi05
    from thor_policy_ros.model.pi05 import Pi05

    folder = setting.work / "random"
    if not folder.is_dir():
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = Pi05(config_of(setting))
        save_pi05(model, folder, torch.bfloat16)
        del model
        torch.cuda.empty_cache()
    return folder


def frame_inputs(setting: Setting) -> tuple[Any, Any]:
    """Two cameras and 20 words at the most, and noise."""
    from thor_policy_ros.types import ModelInputs

    config, random = config_of(setting), np.random.default_rng(0)
    size, room = config.vision.image_size, config.max_token_len
    inputs = ModelInputs(
        random.uniform(-1, 1, (config.num_cameras, 3, size, size)).astype(np.float32),
        np.arange(config.num_cameras) < 2,
        random.integers(1, config.vocab_size, room).astype(np.int32),
        np.arange(room) < min(20, room),
    )
    noise = random.standard_normal((config.action_horizon, config.action_dim), dtype=np.float32)
    return inputs, noise


def frame(backend: Any, setting: Setting) -> tuple[Any, ...]:
    """Keys, values and actions of one frame, in host memory."""
    inputs, noise = frame_inputs(setting)
    prefix = backend.prefill(inputs, 0.0)
    actions = backend.denoise(prefix, noise, 10)
    return (*(x.float().cpu().numpy() for x in (prefix.keys, prefix.values)), actions)


def latency(backend: Any, setting: Setting) -> dict[str, float]:
    """Medians over frames of two cameras and 10 steps."""
    inputs, noise = frame_inputs(setting)
    seen = []
    for _ in range(FRAMES):
        begun = time.perf_counter()
        backend.denoise(backend.prefill(inputs, 0.0), noise, 10)
        seen.append({**backend.stage_times_ms(), "frame": (time.perf_counter() - begun) * 1e3})
    return {name: round(float(np.median([s[name] for s in seen[3:]])), 3) for name in seen[0]}


def cosine(a: Any, b: Any) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
