"""Which Torch-TensorRT is installed, what it lacks here, and what arguments its converter takes.

Two distributions bring one module, `torch_tensorrt`: torch-tensorrt, on the package tensorrt, and
torch-tensorrt-rtx, on tensorrt_rtx. Importing it needs a CUDA driver, and puts tensorrt_rtx in
sys.modules as `tensorrt`: so only processes that convert do (`torch_trt_build_process`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch

from thor_policy_ros.backends.trt_module import OLDEST as OLDEST_TENSORRT
from thor_policy_ros.backends.trt_module import TensorRT

DISTRIBUTIONS = {"torch-tensorrt": "tensorrt", "torch-tensorrt-rtx": "tensorrt_rtx"}
OLDEST = (2, 8)
UNIMPORTABLE = ("torch-tensorrt-rtx", (2, 11))
"""It looks for tensorrt_rtx_bindings.plugin, which no tensorrt_rtx that can be had (1.4 to 1.7)
has; 2.12 and later do not."""

OURS: dict[str, Any] = {
    # The graph is one engine, or none.
    "require_full_compilation": True,
    # Types are those of the model, which is cast beforehand; always so from 2.12 on.
    "use_explicit_typing": True,
    # Our bias masks padding. By default it would be replaced by a causal mask.
    "attn_bias_is_causal": False,
    # What is float32 is so for its precision.
    "disable_tf32": True,
}
"""Passed where the installed version knows them; `require_full_compilation` all of them do."""

REFUSED = {
    "enabled_precisions": "the model is cast before it is exported, and types are kept",
    "enable_autocast": "the model is cast before it is exported, and types are kept",
    "exported_program": "it is what is converted",
    "inputs": "they follow from the model's sizes",
    "arg_inputs": "they follow from the model's sizes",
    "kwarg_inputs": "they follow from the model's sizes",
    "device": "it is the backend's",
    "optimization_level": "it is the option tensorrt_level",
    "timing_cache_path": "two processes may not share one",
    "dryrun": "no engine would be built",
    "torch_executed_ops": "the graph is one engine, or none",
    "torch_executed_modules": "the graph is one engine, or none",
    "cache_built_engines": "engines are kept in our own cache, which holds no pickle",
    "reuse_cached_engines": "engines are kept in our own cache, which holds no pickle",
}


class Installed(NamedTuple):
    """flavour: the TensorRT that it converts for, 'tensorrt' or 'tensorrt_rtx'."""

    distribution: str
    version: str
    flavour: str


def installed() -> Installed | None:
    """The Torch-TensorRT that is installed; nothing is imported. torch-tensorrt-rtx where both
    are, as the module itself decides."""
    found = None
    for distribution, flavour in DISTRIBUTIONS.items():
        try:
            found = Installed(distribution, metadata.version(distribution), flavour)
        except metadata.PackageNotFoundError:
            continue
    return found


def lacking() -> tuple[str, ...]:
    """What keeps pi0.5 from being converted and run here, each by name; () for nothing."""
    reasons = [_lacking_torch(), _lacking_package()]
    if not any(reasons):
        package = installed()
        assert package is not None
        reasons.append(_lacking_tensorrt(package))
    return tuple(filter(None, reasons))


def import_flavour(flavour: str) -> TensorRT:
    """The TensorRT that the installed Torch-TensorRT converts for."""
    api = import_module(flavour)
    return TensorRT(api, flavour, str(api.__version__))


def accepted_arguments(convert: Callable[..., Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """OURS that `convert` knows, and `wanted`; it would ignore the ones that it does not know.

    Raises ValueError for a wanted argument that is unknown to it, or ours to decide.
    """
    known = _named_parameters(convert)
    if "require_full_compilation" not in known:
        raise ValueError(
            "the installed torch_tensorrt does not take require_full_compilation: a graph that is"
            f" only in part TensorRT's would pass unseen; it takes {', '.join(sorted(known))}"
        )
    for name in wanted:
        if name in REFUSED or name in OURS:
            why = REFUSED.get(name, f"it is always {OURS.get(name)}")
            raise ValueError(f"argument {name!r} of torch_tensorrt is not for settings: {why}")
        if name not in known:
            choices = ", ".join(sorted(known - set(REFUSED) - set(OURS)))
            raise ValueError(
                f"the installed torch_tensorrt does not know the argument {name!r}, and would"
                f" ignore it; choose among: {choices}"
            )
    return {**{k: v for k, v in OURS.items() if k in known}, **wanted}


def _named_parameters(function: Callable[..., Any]) -> set[str]:
    every = inspect.signature(function).parameters.values()
    unnamed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {parameter.name for parameter in every if parameter.kind not in unnamed}


def _lacking_torch() -> str:
    if torch.version.cuda is None:
        return f"a CUDA GPU and a CUDA build of torch (torch {torch.__version__} has no CUDA)"
    if not torch.cuda.is_available():
        return f"a CUDA GPU (torch {torch.__version__} sees none)"
    return ""


def _lacking_package() -> str:
    major, minor = _numbers(torch.__version__)
    wanted = " or ".join(f"{name}=={major}.{minor}.*" for name in DISTRIBUTIONS)
    package = installed()
    if package is None:
        return f"package {wanted}, for torch {torch.__version__} (neither is installed)"
    version = _numbers(package.version)
    if version != (major, minor):
        return (
            f"package {package.distribution}=={major}.{minor}.* for torch {torch.__version__}"
            f" (here is {package.version})"
        )
    if version < OLDEST:
        return (
            f"package {package.distribution} {OLDEST[0]}.{OLDEST[1]} or later, with the torch of"
            f" that version (here is {package.version})"
        )
    if (package.distribution, version) == UNIMPORTABLE:
        return (
            "package torch-tensorrt-rtx 2.12 or later, with the torch of that version"
            f" ({package.version} cannot be imported with any tensorrt_rtx from 1.4 on)"
        )
    return ""


def _lacking_tensorrt(package: Installed) -> str:
    """Of the TensorRT below it. Only called where torch sees a GPU."""
    try:
        tensorrt = import_flavour(package.flavour)
    except (ImportError, OSError) as error:  # a library that it loads is missing
        return f"package {package.flavour}, for {package.distribution}: {error}"
    if _numbers(tensorrt.version) < OLDEST_TENSORRT[package.flavour]:
        oldest = ".".join(str(n) for n in OLDEST_TENSORRT[package.flavour])
        return f"package {package.flavour} {oldest} or later (here is {tensorrt.version})"
    capability = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if tensorrt.builds_for_others and capability not in tensorrt.targets():
        return (
            f"package torch-tensorrt instead of torch-tensorrt-rtx: tensorrt_rtx"
            f" {tensorrt.version} runs on {', '.join(tensorrt.targets())}, and"
            f" {torch.cuda.get_device_name()} is {capability}"
        )
    return ""


def _numbers(version: str) -> tuple[int, int]:
    """(2, 13) of '2.13.0+cu130' or '2.13.0a0'."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
