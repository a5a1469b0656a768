"""Nothing that comes from outside becomes code: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

import thor_policy_ros

PACKAGE = Path(thor_policy_ros.__file__).resolve().parent
ROOT = PACKAGE.parent
# What comes with the package, runs on the robot, or is started by people on files from elsewhere.
FOLDERS = (PACKAGE, *(ROOT / name for name in ("launch", "tools", "benchmarks", "docs")))
SOURCES = sorted({ROOT / "setup.py", *(path for place in FOLDERS for path in place.rglob("*.py"))})
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "asyncio": {"create_subprocess_shell"},
    "yaml": {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"},
    "builtins": CALLS,
}
SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash"}


def offences(source: str) -> list[str]:
    """Where the source does it, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [_module(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(_module(node, node.module))
            found += [_attribute(node, node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call):
            found += _called(node)
        elif isinstance(node, ast.List | ast.Tuple):
            found.append(_shell(node))
    return [offence for offence in found if offence]


def _module(node: ast.stmt, name: str) -> str:
    return f"{node.lineno}: imports {name}" if name.split(".")[0] in MODULES else ""


def _attribute(node: ast.AST, owner: str, name: str) -> str:
    wrong = name in ATTRIBUTES.get(owner, ())
    return f"{getattr(node, 'lineno', 0)}: uses {owner}.{name}" if wrong else ""


def _is(value: ast.expr | None, wanted: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is wanted


def _called(node: ast.Call) -> list[str]:
    words = {k.arg: k.value for k in node.keywords}
    found = []
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        found.append(f"{node.lineno}: calls {node.func.id}")
    if "shell" in words and not _is(words["shell"], False):
        found.append(f"{node.lineno}: starts a shell")
    if "allow_pickle" in words and not _is(words["allow_pickle"], False):
        found.append(f"{node.lineno}: allow_pickle")
    if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        owner, name = node.func.value.id, node.func.attr
        found.append(_attribute(node, owner, name))
        if (owner, name) == ("torch", "load") and not _is(words.get("weights_only"), True):
            found.append(f"{node.lineno}: torch.load without weights_only=True")
    return found


def _shell(node: ast.List | ast.Tuple) -> str:
    """`sh -c` with a program that is made at run time, not written here or in a constant."""
    words = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
    for first, second, program in zip(words, words[1:], node.elts[2:], strict=False):
        constant = isinstance(program, ast.Constant) or (
            isinstance(program, ast.Name) and program.id.isupper()
        )
        if first in SHELLS and second == "-c" and not constant:
            return f"{node.lineno}: gives a shell a program made at run time"
    return ""


def test_the_search_reaches_every_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    seen = {path.relative_to(ROOT).parts[:2] for path in SOURCES}
    assert {("thor_policy_ros", room) for room in rooms} <= seen
    assert {parts[0] for parts in seen} >= {"launch", "tools", "benchmarks", "docs", "setup.py"}
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:  # not in an unpacked archive
        tracked = {ROOT / line for line in listed.stdout.splitlines() if line[:5] != "test/"}
        assert {path for path in tracked if path.is_file()} <= set(SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_makes_code_of_data(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import subprocess\nsubprocess.run('ls', shell=asked)",
        "import numpy as np\nnp.load('x', allow_pickle=asked)",
        "import os\nos.system('ls')",
        "from os import popen",
        "from subprocess import getoutput",
        "import yaml\nyaml.unsafe_load('x')",
        "import builtins\nbuiltins.eval('1')",
        "import subprocess\nsubprocess.run(['sh', '-c', f'ls {name}'])",
        "COMMAND = ('bash', '-c', program)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert offences(source)


def test_what_is_harmless_passes() -> None:
    harmless = [
        "import subprocess\nsubprocess.run(['ls', name], shell=False)",
        "import subprocess\nsubprocess.run(['sh', '-c', KEEPER, host])",
        "import torch\ntorch.load('x', weights_only=True)",
        "import yaml\nyaml.safe_load('x')",
        "import re\nre.compile('x')",
    ]
    assert [offences(source) for source in harmless] == [[]] * len(harmless)
