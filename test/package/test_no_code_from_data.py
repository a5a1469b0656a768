"""Nothing that comes from outside becomes code: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import thor_policy_ros

ROOT = Path(thor_policy_ros.__file__).resolve().parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__"}


def offences(source: str) -> list[str]:
    """Where the source does it, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module.split(".")[0]]
        found += [f"{node.lineno}: imports {name}" for name in names if name in MODULES]
        if isinstance(node, ast.Call):
            found += _called(node)
    return found


def _called(node: ast.Call) -> list[str]:
    words = {k.arg: k.value for k in node.keywords}
    shell = words.get("shell")
    found = []
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        found.append(f"{node.lineno}: calls {node.func.id}")
    if isinstance(shell, ast.Constant) and shell.value:
        found.append(f"{node.lineno}: starts a shell")
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        if (owner, node.func.attr) in {("os", "system"), ("os", "popen"), ("yaml", "load")}:
            found.append(f"{node.lineno}: calls {owner}.{node.func.attr}")
        safe = words.get("weights_only")
        if (owner, node.func.attr) == ("torch", "load") and not (
            isinstance(safe, ast.Constant) and safe.value is True
        ):
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        pickled = words.get("allow_pickle")
        if isinstance(pickled, ast.Constant) and pickled.value:
            found.append(f"{node.lineno}: allow_pickle")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
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
        "import os\nos.system('ls')",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert offences(source)
