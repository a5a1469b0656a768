"""The registry: one table, what is missing said exactly, nothing imported before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.golden import TOY, toy_config

from thor_policy_ros.backends import registry
from thor_policy_ros.backends.registry import (
    BACKENDS,
    ENGINES,
    Engine,
    availability,
    create_backend,
)
from thor_policy_ros.types import BackendSpec, BackendUnavailableError


def test_every_row_has_an_engine_and_every_engine_a_row() -> None:
    assert {spec.engine for spec in BACKENDS.values()} == set(ENGINES)
    assert all(name == spec.name for name, spec in BACKENDS.items())


@pytest.mark.parametrize("name", ENGINES)
def test_an_engines_module_defines_what_the_registry_calls(name: str) -> None:
    module = __import__(ENGINES[name].module, fromlist=["load"])
    assert callable(module.load)
    assert all(isinstance(reason, str) and reason for reason in module.missing())


def test_names_say_how_often_the_prefix_is_refilled() -> None:
    for name, spec in BACKENDS.items():
        if "_freq" in name:
            base, _, every = name.rpartition("_freq")
            assert spec.reuse_every == int(every)
            assert BACKENDS[base].reuse_every == 2, "a bare name of an engine with reuse"
            assert (spec.engine, spec.mlp) == (BACKENDS[base].engine, BACKENDS[base].mlp)
        assert spec.pipelined == name.endswith("_pipelined")


def test_pytorch_runs_everywhere() -> None:
    assert availability("pytorch") == ()


def test_what_is_missing_is_named_and_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ModuleType("fake_engine")
    engine.missing = lambda: ("package warp_drive 9", "a GPU of capability 99")  # type: ignore[attr-defined]
    engine.load = lambda *arguments: pytest.fail("loaded all the same")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_engine", engine)
    monkeypatch.setitem(registry.ENGINES, "warp", Engine("fake_engine", "a fake"))
    monkeypatch.setitem(registry.BACKENDS, "warp", BackendSpec("warp", "warp"))
    assert availability("warp") == ("package warp_drive 9", "a GPU of capability 99")
    said = "'warp' cannot run here; missing: package warp_drive 9; a GPU of capability 99"
    with pytest.raises(BackendUnavailableError, match=said):
        create_backend("warp", TOY, toy_config())


def test_unknown_names_list_the_choices() -> None:
    for use in (availability, lambda name: create_backend(name, Path(), toy_config())):
        with pytest.raises(ValueError, match=r"unknown backend 'trt'; choose one of: pytorch"):
            use("trt")


def test_importing_the_engines_imports_no_optional_package() -> None:
    code = (
        "import sys\n"
        "from importlib import import_module\n"
        "from thor_policy_ros.backends.registry import ENGINES\n"
        "assert 'torch' not in sys.modules\n"
        "for engine in ENGINES.values(): import_module(engine.module)\n"
        "optional = {'torch_tensorrt', 'torch_tensorrt_rtx', 'tensorrt', 'tensorrt_rtx'}\n"
        "sys.exit(', '.join(optional & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
