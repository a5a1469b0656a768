"""The engine cache: what is found is what was stored, whatever happens to the folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thor_policy_ros.backends.engine_cache import (
    LOCK,
    PARTIAL,
    EngineCache,
    EngineFileError,
    EngineKey,
    read_engine,
)

KEY = EngineKey(
    checkpoint="c0ffee",
    engine="tensorrt",
    engine_version="10.13.3",
    gpu="NVIDIA Thor",
    capability="sm_110",
    precision="bfloat16",
    part="prefix",
    shapes="P=530",
    settings="optimization level 2",
    sources="abc",
)
ENGINE = bytes(range(256)) * 9


def never() -> bytes:
    raise AssertionError("built although the engine was there")


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    first = EngineCache(tmp_path).fetch(KEY, lambda: ENGINE)
    second = EngineCache(tmp_path).fetch(KEY, never)
    assert (first.built, second.built) == (True, False)
    assert bytes(first.engine) == bytes(second.engine) == ENGINE
    assert EngineCache(tmp_path).find(KEY) == ENGINE
    assert first.replaced == second.replaced == ""


@pytest.mark.parametrize("field", [field.name for field in fields(EngineKey)])
def test_every_field_of_the_key_makes_another_engine(tmp_path: Path, field: str) -> None:
    cache = EngineCache(tmp_path)
    cache.fetch(KEY, lambda: ENGINE)
    other = replace(KEY, **{field: "another"})
    assert cache.find(other) is None
    assert bytes(cache.fetch(other, lambda: b"other").engine) == b"other"
    assert cache.find(KEY) == ENGINE


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_or_missing_byte_is_named_and_rebuilt(
    tmp_path: Path, data: st.DataObject
) -> None:
    cache = EngineCache(tmp_path)
    path = cache.fetch(KEY, lambda: ENGINE).path
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[place] ^= data.draw(st.integers(1, 255))
    else:
        del whole[place:]
    path.write_bytes(whole)
    with pytest.raises(EngineFileError, match=path.name):
        cache.find(KEY)
    again = cache.fetch(KEY, lambda: ENGINE)
    assert again.built and path.name in again.replaced
    assert bytes(EngineCache(tmp_path).fetch(KEY, never).engine) == ENGINE


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = EngineCache(tmp_path).path(KEY)
    path.write_bytes(content)
    with pytest.raises(EngineFileError, match=r"foreign|empty"):
        read_engine(path, KEY)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda b: b[:-1], "truncated"),
        (lambda b: b[:30], "truncated"),
        (lambda b: b[:18], "truncated"),
        (lambda b: b + b"x", "holds 2305 bytes of 2304"),
        (lambda b: b[:-1] + b"x", "damaged"),
        (lambda b: b[:40] + b"x" + b[41:], "header is wrong: damaged"),
        (lambda b: b"ftrt" + b, "foreign"),
        (lambda b: b"", "empty"),
    ],
)
def test_the_fault_is_named(tmp_path: Path, change: object, fault: str) -> None:
    path = EngineCache(tmp_path).fetch(KEY, lambda: ENGINE).path
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(EngineFileError, match=fault):
        read_engine(path, KEY)


def test_the_file_of_another_engine_under_this_name_is_refused(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    other = replace(KEY, checkpoint="decaf", gpu="NVIDIA H200")
    cache.fetch(other, lambda: b"other").path.rename(cache.path(KEY))
    again = cache.fetch(KEY, lambda: ENGINE)
    assert "belongs to another engine: checkpoint, gpu differ" in again.replaced
    assert bytes(again.engine) == ENGINE


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)

    def fail() -> bytes:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        cache.fetch(KEY, fail)
    assert cache.find(KEY) is None and cache.size_bytes() == 0
    assert cache.fetch(KEY, lambda: ENGINE).built


def test_the_least_recently_used_leave_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=3 * 3000)
    keys = [replace(KEY, shapes=f"P={n}") for n in range(4)]
    for n, key in enumerate(keys[:3]):
        cache.fetch(key, lambda: ENGINE)
        os.utime(cache.path(key), ns=(n, n))
    cache.fetch(keys[0], never)  # used: now the newest
    cache.fetch(keys[3], lambda: ENGINE)
    assert [cache.find(key) is not None for key in keys] == [True, False, True, True]
    assert cache.size_bytes() <= cache.max_bytes


def test_an_engine_beyond_the_limit_is_kept_alone(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=0)
    old = cache.fetch(KEY, lambda: ENGINE)
    new = cache.fetch(replace(KEY, part="denoise"), lambda: b"new")
    assert cache.find(KEY) is None
    assert bytes(new.engine) == b"new"
    assert bytes(old.engine) == ENGINE, "an evicted engine in use stays readable"


def test_what_a_killed_build_left_is_swept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    left = cache.path(replace(KEY, part="vision")).with_suffix(PARTIAL)
    left.write_bytes(b"half")
    cache.fetch(KEY, lambda: ENGINE)
    assert not left.exists()


def test_a_negative_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        EngineCache(tmp_path, -1)


def _fetch_slowly(folder: Path, log: Path) -> None:
    def build() -> bytes:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return ENGINE

    assert bytes(EngineCache(folder).fetch(KEY, build).engine) == ENGINE


def test_processes_that_want_one_engine_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "built.txt"
    arguments = (tmp_path / "cache", log)
    processes = [context.Process(target=_fetch_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def _store_and_read(folder: Path, worker: int) -> None:
    cache = EngineCache(folder, max_bytes=8000)
    for n in range(40):
        key = replace(KEY, shapes=f"P={(n * (worker + 1)) % 6}")
        engine = key.shapes.encode() * 700
        assert bytes(cache.fetch(key, lambda engine=engine: engine).engine) == engine


def test_processes_that_evict_each_others_engines_never_read_a_wrong_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_store_and_read, args=(tmp_path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert list(tmp_path.glob(f"*{PARTIAL}")) == []


def _hang_while_building(folder: Path, started: Path) -> None:
    def build() -> bytes:
        started.touch()
        time.sleep(600)
        return b""

    EngineCache(folder).fetch(KEY, build)


def test_a_killed_builder_frees_its_lock(tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = multiprocessing.get_context("fork").Process(
        target=_hang_while_building, args=(tmp_path / "cache", started)
    )
    process.start()
    while not started.exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    cache = EngineCache(tmp_path / "cache")
    assert cache.path(KEY).with_suffix(LOCK).exists()
    assert cache.fetch(KEY, lambda: ENGINE).built


def test_a_cache_that_can_only_be_read_gives_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EngineCache(tmp_path)
    cache.fetch(KEY, lambda: ENGINE)

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "utime", refuse)
    found = cache.find(KEY)
    cache.touch(KEY)
    assert found is not None and bytes(found) == ENGINE


def test_where_nothing_can_be_kept_nothing_is_built(tmp_path: Path) -> None:
    EngineCache(tmp_path / "made").require_writable()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be kept in .*set engine_cache_dir") as caught:
        EngineCache(tmp_path / "file").require_writable()
    assert caught.value.errno == errno.EEXIST
