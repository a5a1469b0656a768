"""A machine as torch_trt sees it, for the time of one test."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from thor_policy_ros.backends import torch_trt_package


class Machine:
    """What `lacking` looks at, set for one test: a GPU of 12.0 and all packages, at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.packages = {"torch-tensorrt": "2.13.0"}
        self.targets: tuple[str, ...] = ()
        self.tensorrt = "10.13.3"
        monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (12, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "RTX 5090")
        monkeypatch.setattr(torch_trt_package.metadata, "version", self._version)
        monkeypatch.setattr(torch_trt_package, "import_module", self._import)

    def _version(self, distribution: str) -> str:
        if distribution not in self.packages:
            raise metadata.PackageNotFoundError(distribution)
        return self.packages[distribution]

    def _import(self, name: str) -> Any:
        if name not in ("tensorrt", "tensorrt_rtx") or not self.tensorrt:
            raise ImportError(f"No module named {name!r}")
        listed = {target.replace("sm_", "SM"): 0 for target in self.targets}
        capabilities = {"ComputeCapability": SimpleNamespace(__members__=listed)}
        return SimpleNamespace(
            __version__=self.tensorrt, **(capabilities if name == "tensorrt_rtx" else {})
        )
