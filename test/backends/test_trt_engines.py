"""Engines in the cache, and the process that builds them: real engines of the toy model."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.golden import TOY, toy_config
from support.trt_stand_in import Engine, plan_of, stand_in

from thor_policy_ros.backends import tensorrt as tensorrt_backend
from thor_policy_ros.backends import trt_engines, trt_parts
from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.tensorrt import load_engine, missing, notes_of
from thor_policy_ros.backends.trt_builder import EngineBuildError
from thor_policy_ros.backends.trt_engines import (
    EngineRequest,
    Obtained,
    Target,
    cache_of,
    default_cache_folder,
    obtain,
    requests_for,
    target_of,
)
from thor_policy_ros.backends.trt_execution import EngineExecutionError, EngineRefusedError
from thor_policy_ros.backends.trt_module import TensorRT, import_tensorrt, installed_module
from thor_policy_ros.backends.trt_weights import Weights, checkpoint_weights, random_weights
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.weight_files import CheckpointError
from thor_policy_ros.types import BackendUnavailableError, EngineOptions

CONFIG = toy_config()
TARGET = Target("sm_120", "any", "sm_120")
WEIGHTS = checkpoint_weights(TOY, CONFIG)
REQUEST = EngineRequest("vision", WEIGHTS, torch.float32, TARGET, 2, "tensorrt", "10.13.3")
SUPPORT = Path(__file__).parents[1]
wants_tensorrt = pytest.mark.skipif(installed_module() is None, reason="no TensorRT is installed")


@pytest.mark.parametrize(
    "change",
    [
        {"part": "denoise"},
        {"weights": random_weights(CONFIG)},
        {"weights": replace(WEIGHTS, config=replace(CONFIG, max_token_len=40))},
        {"dtype": torch.bfloat16},
        {"target": Target("sm_89", "any", "sm_89")},
        {"target": Target("sm_120", "NVIDIA RTX 5090", "current")},
        {"level": 3},
        {"tensorrt": "tensorrt_rtx"},
        {"tensorrt_version": "10.14.1"},
        {"mlp_absmax": (1.0, None)},
    ],
    ids=str,
)
def test_what_decides_an_engine_is_in_its_key(change: dict[str, Any]) -> None:
    assert replace(REQUEST, **change).key.digest != REQUEST.key.digest


def test_a_changed_network_is_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every listed file counts."""
    before = trt_parts.sources_digest()
    package = Path(trt_parts.__file__).parents[1]
    read = Path.read_bytes
    for name in trt_parts.ENGINES_FOLLOW:
        changed = package / name
        with monkeypatch.context() as patch:
            patch.setattr(
                Path, "read_bytes", lambda p, c=changed: read(p) + (b"#" if p == c else b"")
            )
            assert trt_parts.sources_digest() != before, name
    assert trt_parts.sources_digest() == before


def test_what_the_networks_import_decides_what_they_are() -> None:
    """But sizes, which are in the key, the vocabulary and the library's own name."""
    package = Path(trt_parts.__file__).parents[1]
    elsewhere = {"model/config.py", "types.py", "backends/trt_module.py"}
    for name in trt_parts.ENGINES_FOLLOW:
        if not name.startswith("backends/"):
            continue
        for node in ast.walk(ast.parse((package / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("thor_policy"):
                file = "/".join(node.module.split(".")[1:]) + ".py"
                assert file in trt_parts.ENGINES_FOLLOW or file in elsewhere, (name, file)


def test_the_bucket_sizes_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(REQUEST, part="prefix")
    before = request.key.digest
    monkeypatch.setattr(trt_parts, "PROMPT_ROOMS", (8,))
    assert request.key.digest != before


def _toy_request(part: str = "vision") -> EngineRequest:
    tensorrt = import_tensorrt()
    target = target_of(tensorrt, "sm_120")
    return requests_for(tensorrt, WEIGHTS, torch.bfloat16, target, 2)[part]


@wants_tensorrt
def test_a_built_engine_is_found_and_a_bad_file_is_named_and_rebuilt(tmp_path: Path) -> None:
    cache, request, told = EngineCache(tmp_path), _toy_request(), []
    built = obtain(request, cache, lambda doing, done: told.append((doing, done)))
    assert built.built and built.replaced == ""
    assert built.report["bytes"] == len(built.engine) > 1_000_000
    assert built.report["layer_dtypes"]["REDUCE"] == ["FLOAT"]
    assert len(built.report["buckets"]) == CONFIG.num_cameras
    assert told[0] == ("loading weights", 0.0) and told[-1][1] == 1.0
    found = obtain(request, cache)
    assert not found.built and found.engine == built.engine
    whole = built.path.read_bytes()
    built.path.write_bytes(whole[:-100])
    again = obtain(request, cache)
    assert again.built and "truncated" in again.replaced and built.path.name in again.replaced
    assert obtain(request, cache).engine == again.engine


@wants_tensorrt
def test_two_processes_that_want_one_engine_build_it_once(tmp_path: Path) -> None:
    """Two build processes: one builds, the other waits and reads."""
    obtained: list[Obtained] = []

    def want() -> None:
        obtained.append(obtain(_toy_request(), EngineCache(tmp_path)))

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    first, second = obtained
    assert first.engine == second.engine
    waited = [one.report.get("waited_for_another_process", False) for one in obtained if one.built]
    assert waited.count(False) == 1
    assert len(list(tmp_path.glob("*.engine"))) == 1


@wants_tensorrt
def test_what_the_build_process_says_is_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    request = replace(_toy_request(), weights=Weights("junk", CONFIG, tmp_path))
    with pytest.raises(EngineBuildError, match=r"cannot read .*as safetensors"):
        obtain(request, EngineCache(tmp_path / "cache"))
    other = replace(_toy_request(), tensorrt_version="0.1")
    with pytest.raises(EngineBuildError, match=r"wanted tensorrt\w* 0\.1 to build, the build"):
        obtain(other, EngineCache(tmp_path / "cache"))
    assert EngineCache(tmp_path / "cache").size_bytes() == 0


def test_a_builder_that_crashes_is_survived_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_engines, "BUILD_PROCESS", "support.crashing_build")
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    told: list[str] = []
    with pytest.raises(EngineBuildError, match=r"of SIGSEGV, while it built vision at .*level 2;"):
        obtain(REQUEST, EngineCache(tmp_path), lambda doing, done: told.append(doing))
    assert told == ["Building engine from subgraph"]


def test_a_failed_build_can_be_told_like_anything_else_that_is_missing() -> None:
    """The node and the command line expect this error of a backend that does not load."""
    assert issubclass(EngineBuildError, BackendUnavailableError)
    assert issubclass(EngineRefusedError, BackendUnavailableError)


@pytest.fixture(name="stand_in_builds")
def _stand_in_builds(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[str]]:
    """Makes builds store the given plan; returns the list of parts built since."""

    def use(plan: bytes) -> list[str]:
        built: list[str] = []

        def build(request: EngineRequest, cache: EngineCache, say: object) -> dict[str, Any]:
            built.append(request.part)
            cache.fetch(request.key, lambda: plan)
            return {"bytes": len(plan), "replaced": ""}

        monkeypatch.setattr(trt_engines, "run_build_process", build)
        return built

    return use


@pytest.fixture(name="library")
def _library() -> TensorRT:
    return stand_in(load_pi05(TOY, CONFIG))


def test_an_engine_that_tensorrt_refuses_is_named_and_rebuilt(
    tmp_path: Path, stand_in_builds: Callable[[bytes], list[str]], library: TensorRT
) -> None:
    """A whole file under the right key, but the library does not take it."""
    cache = EngineCache(tmp_path)
    cache.fetch(REQUEST.key, lambda: b"of another world")
    built = stand_in_builds(plan_of("vision"))
    loaded = load_engine(library, REQUEST, cache)
    assert built == ["vision"] and loaded.engine.name == "vision"
    fault = loaded.obtained.replaced
    assert str(cache.path(REQUEST.key)) in fault and "the plan is of another version" in fault
    notes = notes_of(library, EngineOptions(), cache, {"vision": loaded})
    assert notes[0] == "tensorrt 10.13.3, optimization level 2"
    assert notes[1] == f"engines in {tmp_path}: vision built"
    assert notes[2].startswith("replaced an engine file: ") and fault in notes[2]
    assert load_engine(library, REQUEST, cache).obtained.replaced == ""
    assert built == ["vision"], "the second load found it"


def test_an_engine_that_is_refused_right_after_it_was_built_is_an_error(
    tmp_path: Path, stand_in_builds: Callable[[bytes], list[str]], library: TensorRT
) -> None:
    built = stand_in_builds(b"of another world")
    with pytest.raises(EngineRefusedError, match="does not load engine 'vision'"):
        load_engine(library, REQUEST, EngineCache(tmp_path))
    assert built == ["vision"], "not again and again"


def test_a_good_engine_is_kept_where_the_gpu_has_no_room_for_it(
    tmp_path: Path,
    stand_in_builds: Callable[[bytes], list[str]],
    library: TensorRT,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Engine, *arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Engine, "__init__", full)
    cache = EngineCache(tmp_path)
    cache.fetch(REQUEST.key, lambda: plan_of("vision"))
    built = stand_in_builds(plan_of("vision"))
    with pytest.raises(EngineExecutionError, match="out of memory"):
        load_engine(library, REQUEST, cache)
    assert built == [] and cache.find(REQUEST.key) == plan_of("vision")


@wants_tensorrt
def test_the_library_itself_says_why_it_loads_nothing_without_a_gpu(tmp_path: Path) -> None:
    """A real engine, from the file's mapped memory; the file is not to blame."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    request, cache = _toy_request(), EngineCache(tmp_path)
    obtained = obtain(request, cache)
    with pytest.raises(EngineExecutionError, match=r"does not load engine 'vision'.*CUDA") as told:
        load_engine(import_tensorrt(), request, cache)
    assert not isinstance(told.value, EngineRefusedError)
    assert cache.find(request.key) == obtained.engine


def test_an_engine_that_was_used_stays_when_others_leave(
    tmp_path: Path, stand_in_builds: Callable[[bytes], list[str]]
) -> None:
    cache = EngineCache(tmp_path)
    parts = {name: replace(REQUEST, part=name) for name in ("vision", "prefix", "denoise")}
    stand_in_builds(b"x" * 1000)
    for age, request in enumerate(parts.values()):
        os.utime(obtain(request, cache).path, ns=(age, age))
    obtain(parts["vision"], cache)  # found: now the newest
    cache.max_bytes = cache.size_bytes()
    obtain(replace(REQUEST, level=1), cache)
    kept = {name for name, request in parts.items() if cache.find(request.key) is not None}
    assert kept == {"vision", "denoise"}


def test_the_cache_is_where_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_folder() == Path("/somewhere/thor_policy_ros/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache/thor_policy_ros/engines"
    cache = cache_of(EngineOptions(cache_dir="~/engines", cache_limit_gib=0.5))
    assert cache.folder == Path.home() / "engines"
    assert cache.max_bytes == 1 << 29


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tensorrt_level": 6}, "0 to 5, got 6"), ({"cache_limit_gib": 0}, "above 0 GiB")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EngineOptions(**options)


def test_weights_that_do_not_fit_are_refused_before_anything_is_built() -> None:
    other = checkpoint_weights(TOY, replace(CONFIG, action_dim=30))
    with pytest.raises(CheckpointError, match="wrong shape"):
        other.load(lambda name: False, torch.float32)


def test_random_weights_are_the_same_each_time() -> None:
    first, second = (
        random_weights(CONFIG).load(lambda name: name.startswith("projector"), torch.bfloat16)
        for _ in range(2)
    )
    assert torch.equal(first.projector.weight, second.projector.weight)
    assert 0.015 < first.projector.weight.float().std() < 0.025
    assert first.language.embed_tokens.weight.is_meta


def _library_that_builds_for(*targets: str) -> TensorRT:
    """As tensorrt_rtx: it names what it builds for."""

    class Api:
        class ComputeCapability:
            __members__ = {f"SM{target[3:]}": 0 for target in targets}

    return TensorRT(Api, "tensorrt_rtx", "1.7.1")


GPU_ALONE = TensorRT(object(), "tensorrt", "10.13.3")


@pytest.mark.parametrize(
    ("package", "library", "present", "said"),
    [
        ("package tensorrt (10.13 to 11.x)", None, None, ("package tensorrt", "a CUDA GPU (torch")),
        ("package tensorrt (10.13 to 11.x)", None, "sm_110", ("package tensorrt",)),
        ("", GPU_ALONE, None, ("a CUDA GPU (torch",)),
        ("", _library_that_builds_for("sm_89", "sm_120"), None, ("GPU of sm_89, sm_120, which",)),
        (
            "",
            _library_that_builds_for("sm_120"),
            "sm_90",
            ("1.7.1 does not build for sm_90; `thor-policy build --target` takes: sm_120",),
        ),
        ("", _library_that_builds_for("sm_120"), "sm_110", ("JetPack brings it to Jetson Thor",)),
        ("", _library_that_builds_for("sm_120"), "sm_120", ()),
        ("", GPU_ALONE, "sm_110", ()),
    ],
)
def test_what_is_missing_is_named_exactly(
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    library: TensorRT | None,
    present: str | None,
    said: tuple[str, ...],
) -> None:
    monkeypatch.setattr(tensorrt_backend, "lacking_tensorrt", lambda: package)
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda: library)
    monkeypatch.setattr(tensorrt_backend, "present_capability", lambda: present)
    found = missing()
    assert len(found) == len(said)
    assert all(part in whole for part, whole in zip(said, found, strict=True))


def test_the_build_process_is_told_the_device_that_an_engine_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    here = replace(REQUEST, target=Target("sm_110", "NVIDIA Thor", "current"))
    cache = EngineCache(tmp_path)
    assert trt_engines.request_json(here, cache)["device"] == 3
    assert trt_engines.request_json(REQUEST, cache)["device"] is None


def test_the_package_tensorrt_builds_for_the_gpu_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trt_engines, "present_capability", lambda: "sm_110")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Thor")
    for name in ("current", "sm_110"):
        assert target_of(GPU_ALONE, name) == Target("sm_110", "NVIDIA Thor", "current")
    with pytest.raises(BackendUnavailableError, match=r"alone \(sm_110\); build for sm_120 on a"):
        target_of(GPU_ALONE, "sm_120")
    with pytest.raises(BackendUnavailableError, match=r"^backend 'tensorrt_fp8': .* \(sm_110\)"):
        target_of(GPU_ALONE, "sm_120", "tensorrt_fp8")
    library = _library_that_builds_for("sm_110", "sm_120")
    assert target_of(library, "current") == Target("sm_110", "any", "sm_110")
    assert target_of(library, "sm_120") == Target("sm_120", "any", "sm_120")
