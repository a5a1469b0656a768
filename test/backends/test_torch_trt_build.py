"""What is decided about torch_trt's engines, and how they are found or made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.golden import TOY, toy_config
from support.torch_trt_machine import Machine

from thor_policy_ros.backends import torch_trt_engines
from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.torch_trt import load_engine, notes_of, requests_for
from thor_policy_ros.backends.torch_trt_engines import (
    ENGINES_FOLLOW,
    GraphRequest,
    Tuned,
    obtain,
    request_from_json,
    tuned_shapes,
    tuned_sizes,
)
from thor_policy_ros.backends.torch_trt_package import (
    OURS,
    Installed,
    accepted_arguments,
    installed,
    lacking,
)
from thor_policy_ros.backends.torch_trt_settings import FILE, TorchTRTSettings, read_settings
from thor_policy_ros.backends.trt_builder import EngineBuildError
from thor_policy_ros.backends.trt_execution import EngineRefusedError
from thor_policy_ros.backends.trt_module import TensorRT
from thor_policy_ros.backends.trt_weights import Weights
from thor_policy_ros.types import BackendUnavailableError, EngineOptions

CONFIG = toy_config()
ROOMY = replace(CONFIG, max_token_len=100)
REQUEST = GraphRequest(
    part="prefix",
    weights=Weights("0" * 64, CONFIG, TOY),
    dtype=torch.bfloat16,
    device="cuda:0",
    gpu="Thor",
    capability="sm_110",
    level=2,
    tuned=Tuned(2, 40),
    versions="torch-tensorrt 2.13.0, tensorrt 10.13.3",
    arguments={"workspace_size": 1 << 30},
)


class TestSettings:
    def test_are_the_defaults_without_a_file(self) -> None:
        assert read_settings(TOY) == TorchTRTSettings()
        assert TorchTRTSettings().compiled == ("vision", "prefix", "denoise")

    def test_are_read_from_beside_the_weights(self, tmp_path: Path) -> None:
        given = {"compiled": ["prefix"], "tuned_cameras": 2, "arguments": {"workspace_size": 5}}
        (tmp_path / FILE).write_text(json.dumps(given))
        wanted = TorchTRTSettings(("prefix",), 2, arguments={"workspace_size": 5})
        assert read_settings(tmp_path) == wanted

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('{"parts": []}', r"torch_trt\.json: .*unknown fields \['parts'\]"),
            ('{"compiled": ["prefix", "expert"]}', "compiled wants some of vision, prefix, den"),
            ('{"compiled": []}', "compiled wants some of"),
            ('{"tuned_cameras": -1}', "0 or more"),
            ('{"tuned_cameras": "two"}', "wanted int, got 'two'"),
            ('{"precision": "int8"}', "'int8' is not a setting"),
            ("{", "is not JSON"),
        ],
    )
    def test_that_are_wrong_are_refused(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ValueError, match=said):
            read_settings(tmp_path)

    def test_fp8_is_refused_and_says_what_there_is(self, tmp_path: Path) -> None:
        (tmp_path / FILE).write_text('{"precision": "fp8"}')
        with pytest.raises(BackendUnavailableError, match=r"quantise and deq.*backend 'fp8_mlp'"):
            read_settings(tmp_path)


class TestArguments:
    @staticmethod
    def of_2_10(
        exported_program: Any,
        *,
        arg_inputs: Any = None,
        require_full_compilation: bool = False,
        use_explicit_typing: bool = False,
        enabled_precisions: Any = None,
        workspace_size: int = 0,
        **kwargs: Any,
    ) -> bytes:
        return b""

    @staticmethod
    def of_2_13(
        exported_program: Any,
        *,
        arg_inputs: Any = None,
        require_full_compilation: bool = False,
        attn_bias_is_causal: bool = True,
        disable_tf32: bool = False,
        **kwargs: Any,
    ) -> bytes:
        return b""

    def test_ours_are_those_that_the_version_knows(self) -> None:
        old, new = accepted_arguments(self.of_2_10, {}), accepted_arguments(self.of_2_13, {})
        assert old == {"require_full_compilation": True, "use_explicit_typing": True}
        assert new == {k: v for k, v in OURS.items() if k != "use_explicit_typing"}

    def test_wanted_ones_are_passed_on(self) -> None:
        accepted = accepted_arguments(self.of_2_10, {"workspace_size": 9})
        assert accepted["workspace_size"] == 9

    def test_unknown_ones_are_refused_though_the_function_would_swallow_them(self) -> None:
        with pytest.raises(ValueError, match=r"'make_fast', and would ignore it; .*workspace_size"):
            accepted_arguments(self.of_2_10, {"make_fast": True})
        with pytest.raises(ValueError, match="does not know the argument 'workspace_size'"):
            accepted_arguments(self.of_2_13, {"workspace_size": 9})

    @pytest.mark.parametrize(
        "name", ["enabled_precisions", "device", "attn_bias_is_causal", "require_full_compilation"]
    )
    def test_what_is_ours_is_not_for_settings(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"'{name}' of torch_tensorrt is not for settings: "):
            accepted_arguments(self.of_2_13, {name: False})

    def test_a_version_that_cannot_promise_one_graph_is_refused(self) -> None:
        with pytest.raises(ValueError, match="only in part TensorRT's would pass unseen"):
            accepted_arguments(lambda exported_program, **kwargs: b"", {})


@pytest.fixture(name="machine")
def _machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


class TestMissing:
    def test_nothing_where_all_is_there(self, machine: Machine) -> None:
        assert lacking() == ()
        assert installed() == Installed("torch-tensorrt", "2.13.0", "tensorrt")

    def test_torch_without_cuda_and_the_package_are_named_together(self, machine: Machine) -> None:
        machine.patch.setattr(torch.version, "cuda", None)
        machine.packages.clear()
        assert lacking() == (
            "a CUDA GPU and a CUDA build of torch (torch 2.13.0+cu130 has no CUDA)",
            "package torch-tensorrt==2.13.* or torch-tensorrt-rtx==2.13.*,"
            " for torch 2.13.0+cu130 (neither is installed)",
        )

    def test_a_gpu(self, machine: Machine) -> None:
        machine.patch.setattr(torch.cuda, "is_available", lambda: False)
        assert lacking() == ("a CUDA GPU (torch 2.13.0+cu130 sees none)",)

    @pytest.mark.parametrize(
        ("torch_version", "packages", "said"),
        [
            (
                "2.13.0",
                {"torch-tensorrt": "2.11.0"},
                "torch-tensorrt==2.13.* for torch 2.13.0 (here is 2.11.0)",
            ),
            ("2.7.1", {"torch-tensorrt": "2.7.0"}, "torch-tensorrt 2.8 or later"),
            ("2.11.0", {"torch-tensorrt-rtx": "2.11.0"}, "torch-tensorrt-rtx 2.12 or later"),
        ],
    )
    def test_versions_that_do_not_go_together(
        self, machine: Machine, torch_version: str, packages: dict[str, str], said: str
    ) -> None:
        machine.patch.setattr(torch, "__version__", torch_version)
        machine.packages = packages
        (reason,) = lacking()
        assert said in reason

    def test_the_tensorrt_below(self, machine: Machine) -> None:
        machine.tensorrt = "10.9.0"
        assert lacking() == ("package tensorrt 10.13 or later (here is 10.9.0)",)
        machine.tensorrt = ""
        assert lacking() == ("package tensorrt, for torch-tensorrt: No module named 'tensorrt'",)

    def test_a_gpu_that_tensorrt_rtx_does_not_run_on(self, machine: Machine) -> None:
        machine.packages = {"torch-tensorrt-rtx": "2.13.0"}
        machine.tensorrt, machine.targets = "1.5.0", ("sm_89", "sm_120")
        assert lacking() == ()
        machine.patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        (reason,) = lacking()
        assert reason.startswith("package torch-tensorrt instead of torch-tensorrt-rtx")
        assert "runs on sm_89, sm_120, and RTX 5090 is sm_90" in reason

    def test_the_module_decides_as_we_do_where_both_are_installed(self, machine: Machine) -> None:
        machine.packages = {"torch-tensorrt": "2.13.0", "torch-tensorrt-rtx": "2.13.0"}
        found = installed()
        assert found is not None and found.flavour == "tensorrt_rtx"


class TestRequests:
    def test_come_back_from_json(self) -> None:
        data = json.loads(json.dumps(REQUEST.json()))
        assert request_from_json(data) == REQUEST
        assert request_from_json(data).key == REQUEST.key

    @pytest.mark.parametrize(
        "change",
        [
            {"part": "vision"},
            {"weights": Weights("1" * 64, CONFIG, TOY)},
            {"weights": Weights("0" * 64, ROOMY, TOY)},
            {"dtype": torch.float32},
            {"gpu": "H200"},
            {"capability": "sm_90"},
            {"level": 3},
            {"tuned": Tuned(1, 40)},
            {"versions": "torch-tensorrt 2.14.0, tensorrt 10.13.3"},
            {"arguments": {}},
        ],
    )
    def test_every_difference_makes_another_key(self, change: dict[str, Any]) -> None:
        assert replace(REQUEST, **change).key.digest != REQUEST.key.digest

    def test_a_changed_source_makes_another_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = REQUEST.key
        monkeypatch.setattr(torch_trt_engines, "ENGINES_FOLLOW", ENGINES_FOLLOW[1:])
        assert REQUEST.key.sources != before.sources

    def test_there_is_one_for_each_compiled_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Thor")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (11, 0))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        made = requests_for(
            REQUEST.weights,
            torch.bfloat16,
            EngineOptions(tensorrt_level=1),
            TorchTRTSettings(("prefix", "denoise"), 2, 5, arguments={"workspace_size": 7}),
            Installed("torch-tensorrt", "2.13.0", "tensorrt"),
            TensorRT(None, "tensorrt", "10.13.3"),
        )
        assert list(made) == ["prefix", "denoise"]
        request = made["denoise"]
        assert (request.device, request.capability, request.level) == ("cuda:1", "sm_110", 1)
        assert request.tuned == tuned_sizes(CONFIG, TorchTRTSettings(("prefix",), 2, 5))
        assert request.arguments == {"workspace_size": 7}


class TestSizes:
    def test_tuned_ones_are_the_largest_unless_said(self) -> None:
        assert tuned_sizes(CONFIG, TorchTRTSettings()) == Tuned(3, CONFIG.max_prefix_len)
        tuned = tuned_sizes(ROOMY, TorchTRTSettings(tuned_cameras=2, tuned_prompt_tokens=32))
        assert tuned == Tuned(2, 2 * ROOMY.vision.num_tokens + 32)

    def test_ones_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match="do not fit a model of 3 cameras"):
            tuned_sizes(CONFIG, TorchTRTSettings(tuned_cameras=4))

    @pytest.mark.parametrize("part", ["vision", "prefix", "denoise"])
    def test_least_tuned_and_largest_go_up(self, part: str) -> None:
        shapes = tuned_shapes(part, CONFIG, Tuned(2, 56))
        assert any(least != largest for least, _, largest in shapes)
        for least, tuned, largest in shapes:
            sizes = zip(least, tuned, largest, strict=True)
            assert all(low <= middle <= high for low, middle, high in sizes)


BUILDER = """
import json, sys
from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.torch_trt_engines import request_from_json
asked = json.load(sys.stdin)
cache = EngineCache(asked["cache"], asked["cache_bytes"])
fetched = cache.fetch(request_from_json(asked).key, lambda: b"an engine")
print(json.dumps({"replaced": fetched.replaced, "bytes": len(fetched.engine)}))
"""

Installing = Callable[[str], None]


@pytest.fixture(name="build_process")
def _build_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installing:
    """Puts a module in the place of the process that converts."""

    def install(code: str) -> None:
        (tmp_path / "converts_instead.py").write_text(code)
        monkeypatch.setattr(torch_trt_engines, "BUILD_PROCESS", "converts_instead")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


class TestObtaining:
    def test_makes_an_engine_once(self, tmp_path: Path, build_process: Installing) -> None:
        build_process(BUILDER)
        cache = EngineCache(tmp_path / "engines")
        first = obtain(REQUEST, cache)
        assert bytes(first.engine) == b"an engine" and first.built and first.replaced == ""
        build_process("raise SystemExit('asked again')")
        again = obtain(REQUEST, cache)
        assert bytes(again.engine) == b"an engine" and not again.built

    def test_names_and_replaces_a_bad_file(self, tmp_path: Path, build_process: Installing) -> None:
        build_process(BUILDER)
        cache = EngineCache(tmp_path / "engines")
        path = obtain(REQUEST, cache).path
        path.write_bytes(path.read_bytes()[:-1])
        repaired = obtain(REQUEST, cache)
        assert "truncated" in repaired.replaced and bytes(repaired.engine) == b"an engine"

    def test_a_failed_process_says_what_it_said_last(
        self, tmp_path: Path, build_process: Installing
    ) -> None:
        build_process("raise RuntimeError('no kernel for aten.roll')")
        with pytest.raises(EngineBuildError, match=r"(?s)exit status 1.*no kernel for aten\.roll"):
            obtain(REQUEST, EngineCache(tmp_path / "engines"))
        build_process("import os; os.kill(os.getpid(), 11)")
        with pytest.raises(EngineBuildError, match="exit status -11"):
            obtain(REQUEST, EngineCache(tmp_path / "engines"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    def test_the_real_process_says_what_it_lacks(self, tmp_path: Path) -> None:
        with pytest.raises(EngineBuildError, match=r"CUDA|NVIDIA|named 'torch_tensorrt'"):
            obtain(REQUEST, EngineCache(tmp_path / "engines"))

    def test_an_engine_that_tensorrt_refuses_is_made_again_once(
        self, tmp_path: Path, build_process: Installing
    ) -> None:
        build_process(BUILDER)
        cache = EngineCache(tmp_path / "engines")
        obtain(REQUEST, cache)
        tensorrt = refusing(times=1)
        loaded = load_engine(tensorrt, REQUEST, cache)
        assert loaded.obtained.built and "does not load" in loaded.obtained.replaced
        notes = notes_of(
            Installed("torch-tensorrt", "2.13.0", "tensorrt"),
            tensorrt,
            EngineOptions(),
            TorchTRTSettings(("prefix",)),
            cache,
            {"prefix": loaded},
        )
        assert any("prefix built" in note for note in notes)
        assert "left in PyTorch: vision" in notes
        assert any(note.startswith("replaced an engine file: ") for note in notes)
        with pytest.raises(EngineRefusedError):
            load_engine(refusing(times=9), REQUEST, cache)


def refusing(times: int) -> TensorRT:
    """A TensorRT that takes no engine at first."""
    left = [times]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: memoryview) -> object | None:
            left[0] -= 1
            return None if left[0] >= 0 else object()

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = "internal error", "error", "warning"

    return TensorRT(SimpleNamespace(Runtime=Runtime, ILogger=Logger), "tensorrt", "10.13.3")
