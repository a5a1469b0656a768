"""The backends that exist, as one table of data. Importing this imports no engine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.types import Backend, BackendSpec

if TYPE_CHECKING:
    import torch


class Engine(NamedTuple):
    """Where an engine lives; its module defines `load(spec, checkpoint, config, device, dtype)`."""

    module: str
    summary: str


ENGINES: dict[str, Engine] = {
    "pytorch": Engine(
        "thor_policy_ros.backends.pytorch", "plain PyTorch, CPU or CUDA, float32 or bfloat16"
    ),
}

BACKENDS: dict[str, BackendSpec] = {
    spec.name: spec for spec in (BackendSpec(name="pytorch", engine="pytorch"),)
}


def spec_of(name: str) -> BackendSpec:
    """The row of a backend; ValueError that lists the choices for an unknown name."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def create_backend(
    name: str,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Backend:
    """Load `checkpoint` into the named backend; it is not warmed up yet.

    device: None takes CUDA where there is one, else the CPU. dtype: None takes bfloat16 on
    CUDA and float32 on the CPU. Raises ValueError for an unknown name, BackendUnavailableError
    saying what is missing here, CheckpointError for weights that do not fit.
    """
    spec = spec_of(name)
    engine = import_module(ENGINES[spec.engine].module)
    return cast(Backend, engine.load(spec, checkpoint, config, device, dtype))
