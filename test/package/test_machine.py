"""What a machine lacks for setup is an error that names the package to install."""

from __future__ import annotations

import json
import os
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

import thor_policy_ros
from tools import machine
from tools.machine import Interpreter, SetupError, check_platform, check_tools, choose_python

ROOT = Path(thor_policy_ros.__file__).resolve().parents[1]
COMPLETE = Interpreter("/usr/bin/python3.11", "3.11", True, True)


def fake_python(folder: Path, name: str, version: str, headers: bool = True) -> None:
    """A command that answers like an interpreter."""
    answer = json.dumps([f"{folder}/{name}", version, headers, True])
    script(folder / name, f"echo '{answer}'")


def script(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_first_suitable_python_is_chosen(path: Path) -> None:
    fake_python(path, "python3.12", "3.12")
    fake_python(path, "python3.11", "3.11")
    assert choose_python("", ("3.11", "3.12"), os.environ).version == "3.11"


def test_a_complete_python_is_preferred_to_one_without_headers(path: Path) -> None:
    fake_python(path, "python3.11", "3.11", headers=False)
    fake_python(path, "python3.12", "3.12")
    assert choose_python("", ("3.11", "3.12"), os.environ).version == "3.12"


def test_a_shim_that_fails_is_passed_over(path: Path) -> None:
    script(path / "python3.11", "echo 'version not active' >&2; exit 127")
    fake_python(path, "python3", "3.12")
    assert choose_python("", ("3.11", "3.12"), os.environ).path == f"{path}/python3"


def test_no_suitable_python_names_the_packages(path: Path) -> None:
    fake_python(path, "python3", "3.9")
    with pytest.raises(SetupError) as error:
        choose_python("", ("3.11", "3.12", "3.13"), os.environ)
    assert "Python 3.11, 3.12 or 3.13 is wanted; found 3.9" in str(error.value)
    assert "apt install python3.11 python3.11-venv python3.11-dev" in str(error.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [("python3.9", r"is wanted; .*python3\.9 is 3\.9"), ("no-python", "does not run")],
)
def test_a_requested_python_that_does_not_suit_is_refused(
    path: Path, command: str, words: str
) -> None:
    fake_python(path, "python3.9", "3.9")
    fake_python(path, "python3.11", "3.11")
    with pytest.raises(SetupError, match=words):
        choose_python(command, ("3.11",), os.environ)


def test_everything_missing_is_named_at_once(path: Path) -> None:
    bare = Interpreter("/usr/bin/python3.12", "3.12", False, False)
    with pytest.raises(SetupError) as error:
        check_tools(bare, {"PATH": str(path)})
    last = str(error.value).splitlines()[-1]
    assert last == "  sudo apt install gcc g++ make python3.12-dev python3.12-venv"


def test_compilers_may_be_named_by_the_environment(path: Path) -> None:
    for command in ("my-cc", "my-cxx", "ninja"):
        script(path / command, "")
    check_tools(COMPLETE, {"PATH": str(path), "CC": "my-cc -m64", "CXX": "my-cxx"})
    with pytest.raises(SetupError, match=r"lacks: gcc\n"):
        check_tools(COMPLETE, {"PATH": str(path), "CC": "gone", "CXX": "my-cxx"})


@pytest.mark.parametrize(
    ("system", "processor", "words"),
    [
        ("Linux", "aarch64", "source /opt/ros/jazzy/setup.bash"),
        ("Darwin", "arm64", "Darwin on arm64"),
    ],
)
def test_the_wheels_want_linux_on_x86(
    monkeypatch: pytest.MonkeyPatch, system: str, processor: str, words: str
) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    with pytest.raises(SetupError, match=words):
        check_platform()


@pytest.mark.parametrize("libc", [("glibc", "2.17"), ("", "")])
def test_the_wheels_want_a_newer_glibc(
    monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str]
) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: libc)
    with pytest.raises(SetupError, match=r"glibc 2\.28"):
        check_platform()


def test_a_full_disk_is_seen_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(1_000_000_000))
    with pytest.raises(SetupError, match=r"4 GB free in .*; 1\.0 GB are free"):
        machine.check_disk(tmp_path)


def test_without_any_python_make_says_what_to_install(tmp_path: Path) -> None:
    """Only what `sh` itself brings, and dirname."""
    os.symlink("/usr/bin/dirname", tmp_path / "dirname")
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "tools" / "setup.sh"), "tools.bootstrap"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "sudo apt install python3.11" in done.stderr
