"""Logs and compiled kernels go where they may, and the node says where that is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from thor_policy_ros.ros import writable_places
from thor_policy_ros.ros.writable_places import (
    NO_LOG_FILES,
    name_torch_cache,
    place_kernel_cache,
    place_log,
)


@pytest.fixture
def blocked(tmp_path: Path) -> str:
    """A home in which nothing can be made, for root neither: it is a file."""
    path = tmp_path / "home"
    path.write_text("")
    return str(path)


@pytest.fixture
def no_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prefix: str) -> str:
        raise FileNotFoundError(f"no usable temporary directory for {prefix}")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable_places, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("variable", "below"), [("ROS_LOG_DIR", "."), ("ROS_HOME", "log"), ("HOME", ".ros/log")]
)
def test_a_log_folder_that_can_be_made_is_used(tmp_path: Path, variable: str, below: str) -> None:
    environment = {variable: str(tmp_path / "place")}
    assert place_log(environment) == ((), "")
    assert (tmp_path / "place" / below).is_dir()
    assert environment == {variable: str(tmp_path / "place")}


@pytest.mark.parametrize("home", [True, False], ids=["unwritable", "unset"])
def test_else_it_moves_to_a_folder_of_the_process(blocked: str, home: bool) -> None:
    environment = {"HOME": blocked} if home else {}
    arguments, said = place_log(environment)
    folder = Path(environment["ROS_LOG_DIR"])
    try:
        assert arguments == () and str(folder) in said and "set ROS_LOG_DIR" in said
        assert ("HOME is not set" in said) is not home
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.rmdir()


def test_without_any_place_there_are_no_log_files(blocked: str, no_temporary: None) -> None:
    environment = {"HOME": blocked}
    arguments, said = place_log(environment)
    assert arguments == NO_LOG_FILES and "none is kept in files" in said
    assert environment == {"HOME": blocked}


def test_kernels_stay_where_they_can_be_kept(tmp_path: Path, triton: None) -> None:
    assert place_kernel_cache({"HOME": str(tmp_path)}) == ""
    assert not list(tmp_path.iterdir()), "Triton makes it when it compiles something"


@pytest.mark.parametrize("variable", ["HOME", "TRITON_HOME", "TRITON_CACHE_DIR"])
def test_else_they_move_and_it_is_said(blocked: str, triton: None, variable: str) -> None:
    environment = {variable: blocked}
    said = place_kernel_cache(environment)
    folder = Path(environment["TRITON_CACHE_DIR"])
    try:
        assert blocked in said and str(folder) in said and "every start compiles" in said
        assert folder.stat().st_mode & 0o777 == 0o700, "what is in it is run"
    finally:
        folder.rmdir()


def test_kernels_without_any_place_are_told(triton: None, no_temporary: None) -> None:
    environment: dict[str, str] = {}
    assert "backend fused needs TRITON_CACHE_DIR" in place_kernel_cache(environment)
    assert environment == {}


def test_without_triton_there_is_nothing_to_say(
    blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writable_places, "find_spec", lambda name: None)
    assert place_kernel_cache({"HOME": blocked}) == ""


def test_torch_names_its_cache_itself_where_it_can() -> None:
    environment: dict[str, str] = {}
    assert name_torch_cache(environment) == "" and environment == {}


def test_without_a_temporary_folder_torch_is_given_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise FileNotFoundError(2, "No usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    environment: dict[str, str] = {}
    assert "No usable temporary directory: nothing is kept" in name_torch_cache(environment)
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == "/"
    assert name_torch_cache(environment) == "", "said once"


def test_so_it_is_for_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with `user: 1234`, where getpass finds nothing."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 61234)
    environment: dict[str, str] = {}
    assert name_torch_cache(environment) == ""
    assert environment["TORCHINDUCTOR_CACHE_DIR"].endswith("/torchinductor_61234")


def test_a_named_cache_of_torch_that_cannot_be_made_moves(blocked: str) -> None:
    environment = {"TORCHINDUCTOR_CACHE_DIR": f"{blocked}/below"}
    assert f"torch's cache cannot be made in {blocked}/below" in name_torch_cache(environment)
    assert environment["TORCHINDUCTOR_CACHE_DIR"].startswith(tempfile.gettempdir())
