"""Whichever TensorRT is installed: `tensorrt` (10.13 to 11.x) or `tensorrt_rtx` (1.4 or later).

Both have one Python API. They differ in what they build for: tensorrt for the GPU that is
present, tensorrt_rtx for any compute capability that it lists, without a GPU too; and in what
they run on: tensorrt on every CUDA GPU it supports, tensorrt_rtx on those capabilities alone.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from thor_policy_ros.types import BackendUnavailableError

# tensorrt_rtx's library wheels, installed without their wrapper, bring tensorrt_rtx_bindings.
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
OLDEST = {"tensorrt": (10, 13), "tensorrt_rtx": (1, 4)}
CURRENT = "current"
THOR = "sm_110"


class TensorRT(NamedTuple):
    """An imported module, its flavour ('tensorrt' or 'tensorrt_rtx') and version."""

    api: Any
    flavour: str
    version: str

    @property
    def builds_for_others(self) -> bool:
        """Whether engines can be built for a GPU that is not present."""
        return hasattr(self.api, "ComputeCapability")

    def targets(self) -> tuple[str, ...]:
        """Capabilities that can be named when building, such as 'sm_120'; () if none can."""
        if not self.builds_for_others:
            return ()
        names = self.api.ComputeCapability.__members__
        return tuple(f"sm_{name[2:]}" for name in names if re.fullmatch(r"SM\d+", name))


def installed_module() -> str | None:
    """The name of the module that `import_tensorrt` would import; nothing is imported."""
    return next((name for name in MODULES if find_spec(name) is not None), None)


def import_tensorrt() -> TensorRT:
    """The installed TensorRT; BackendUnavailableError where there is none, or one too old."""
    lacking = lacking_tensorrt()
    if lacking:
        raise BackendUnavailableError(f"backend 'tensorrt': {lacking}")
    name = installed_module()
    assert name is not None
    api = import_module(name)
    return TensorRT(api, name.replace("_bindings", ""), str(api.__version__))


def lacking_tensorrt() -> str:
    """What keeps TensorRT from being imported here, or ''."""
    name = installed_module()
    if name is None:
        return (
            "package tensorrt (10.13 to 11.x) or tensorrt_rtx (1.4 or later) is not installed;"
            " `pip install tensorrt-cu13`, or tensorrt_rtx_cu13_libs and tensorrt_rtx_cu13_bindings"
        )
    try:
        version = str(import_module(name).__version__)
    except (ImportError, OSError) as error:  # a library that it loads is missing
        return f"package {name} cannot be imported: {error}"
    flavour = name.replace("_bindings", "")
    if tuple(int(n) for n in version.split(".")[:2]) < OLDEST[flavour]:
        oldest = ".".join(str(n) for n in OLDEST[flavour])
        return f"package {flavour} is {version}; {oldest} or later is wanted"
    return ""


def lacking_target(tensorrt: TensorRT, target: str, present: str | None) -> str:
    """Why engines for `target` cannot be built here, or ''.

    target: 'current' or 'sm_110'. present: capability of this machine's GPU, None without one.
    Raises ValueError for anything else.
    """
    checked_target(target)
    if target == CURRENT and present is None:
        return (
            "target 'current' wants a CUDA GPU, and torch sees none;"
            f" {_choices(tensorrt) or 'build on the machine that has the GPU'}"
        )
    wanted = present if target == CURRENT else target
    if tensorrt.builds_for_others:
        if wanted in tensorrt.targets():
            return ""
        return (
            f"{tensorrt.flavour} {tensorrt.version} does not build for {wanted};"
            f" {_choices(tensorrt)}, or build with the package tensorrt on a GPU of {wanted}"
            f"{' (JetPack brings it to Jetson Thor)' if wanted == THOR else ''}"
        )
    if wanted != present:
        return (
            f"{tensorrt.flavour} {tensorrt.version} builds for the GPU that is present alone"
            f" ({present or 'none is'}); build for {wanted} on a machine with such a GPU"
        )
    return ""


def checked_target(target: str) -> str:
    """`target`; ValueError for anything but 'current' and the like of 'sm_110'."""
    if target != CURRENT and not re.fullmatch(r"sm_\d+", target):
        raise ValueError(f"wanted target 'current' or a capability as 'sm_110', got {target!r}")
    return target


def _choices(tensorrt: TensorRT) -> str:
    targets = tensorrt.targets()
    return f"`thor-policy build --target` takes: {', '.join(targets)}" if targets else ""
