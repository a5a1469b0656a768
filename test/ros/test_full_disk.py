"""A disk that is full: the error says so, what was there before stays whole."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.small_disk import fill, small_disk

from thor_policy_ros.backends.engine_cache import EngineCache, EngineKey, read_engine
from thor_policy_ros.ros.recovery import keep_state, read_state

KEY = EngineKey("c", "tensorrt", "10", "gpu", "sm_110", "bfloat16", "prefix", "s", "o", "d")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, 64 * 1024) as folder:
        yield folder


def test_an_engine_that_does_not_fit_is_refused_and_the_others_stay(small: Path) -> None:
    cache, other = EngineCache(small / "engines"), replace(KEY, part="action")
    first = cache.fetch(KEY, lambda: b"engine" * 100)
    with pytest.raises(OSError) as caught:
        cache.fetch(other, lambda: b"x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert bytes(read_engine(first.path, KEY)) == b"engine" * 100
    assert sorted(p.suffix for p in (small / "engines").iterdir() if p.suffix != ".lock") == [
        ".engine"
    ]
    again = cache.fetch(KEY, lambda: b"never built")
    assert not again.built


def test_parameters_that_cannot_be_kept_are_told_and_the_older_ones_stay(small: Path) -> None:
    path = str(small / "state.json")
    assert keep_state(path, {"backend": "pytorch"}) == ""
    fill(small)
    said = keep_state(path, {"instruction": "x" * 5000})
    assert "state_file is not written" in said and "No space left" in said
    assert read_state(path) == {"backend": "pytorch"}
    assert {entry.name for entry in small.iterdir()} == {"state.json", "ballast"}
    (small / "ballast").unlink()
    assert keep_state(path, {"backend": "fused"}) == ""
    assert read_state(path) == {"backend": "fused"}
