"""The CI script: no failure is lost, and a failure does not hide the tests that follow it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import thor_policy_ros

ROOT = Path(thor_policy_ros.__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("failing", "status", "called"),
    [
        ("", 0, ["setup", "test-312", "test"]),
        ("setup", 1, ["setup"]),
        ("test-312", 1, ["setup", "test-312", "test"]),
        ("test", 1, ["setup", "test-312", "test"]),
    ],
)
def test_status_of_ci(tmp_path: Path, failing: str, status: int, called: list[str]) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$1" >> called\n[ "$1" != "$FAILING" ]\n')
    make.chmod(0o755)
    done = subprocess.run(
        [str(tmp_path / ".ci" / "run")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "FAILING": failing},
        cwd="/",
        capture_output=True,
    )
    assert done.returncode == status
    assert (tmp_path / "called").read_text().split() == called
