"""The command line: one row per command, imported only when chosen."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import thor_policy_ros
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.cli import COMMANDS, main


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"thor-policy {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert all(command.name in out for command in COMMANDS)


def test_an_unknown_command_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["partiy"])
    assert left.value.code == 2
    assert "invalid choice: 'partiy' (choose from" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert thor_policy_ros.__version__ in capsys.readouterr().out


def test_backends_are_those_of_the_registry(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["backends", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(BACKENDS)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["backends"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in BACKENDS)
    assert max(map(len, table.splitlines())) <= 80, "a terminal's width"
    assert "…" not in table, "nothing is cut"


def test_backends_say_what_is_missing_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"pytorch": ("package warp 9", "a starship"), "fp8_mlp": ("a GPU " * 20,)}
    monkeypatch.setattr(
        "thor_policy_ros.evaluation.backends_table.availability", lambda name: missing.get(name, ())
    )
    main(["backends", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["pytorch"]["available"], rows["pytorch"]["missing"]) == (
        False,
        ["package warp 9", "a starship"],
    )
    main(["backends"])
    lines = capsys.readouterr().out.splitlines()
    at = [line.rstrip() for line in lines].index("  pytorch cannot run here; missing:")
    assert [line.rstrip() for line in lines[at + 1 : at + 3]] == [
        "    package warp 9",
        "    a starship",
    ]
    (row,) = [line.split() for line in lines if line.startswith("fp8_mlp ")]
    assert row[1] == "no"


def test_python_m_is_the_same_and_help_needs_no_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['thor-policy', '--version']\n"
        "try: runpy.run_module('thor_policy_ros.evaluation', run_name='__main__')\n"
        "except SystemExit as left: assert left.code == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert thor_policy_ros.__version__ in done.stdout
