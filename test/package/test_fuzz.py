"""Bytes from outside end in ValueError or are read: a short run of every target of tools.fuzz."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.fuzz_targets import TARGETS

ROOT = Path(__file__).parents[2]
MUTATED = 150
FOUND = [  # by the fuzzer, each once something else than ValueError
    ("weights_index", b"[]"),
    ("weights_index", b'{"weight_map": {"a": "../x.safetensors"}}'),
    ("weights_index", b'{"weight_map": {"a": 1}}'),
    ("config", b'{"policy": ["pi05_libero"]}'),
    ("config", b'{"type": "pi05", "normalization_mapping": []}'),
    ("config", b"[" * 100_000),
    ("norm_stats", b'{"norm_stats": {"state": [], "actions": {}}}'),
    ("norm_stats", b'{"norm_stats": {"state": {"q01": {}}, "actions": {}}}'),
    ("preprocessor", b'{"steps": ["a"]}'),
    ("preprocessor", b'{"steps": [{"registry_name": "normalizer_processor", "state_file": 1}]}'),
    ("preprocessor_state", b""),
    ("bag_messages", b"\x89MCAP0\r\n"),
    ("bag", b"a: [b"),
]


def tried(name: str, data: bytes) -> None:
    try:
        TARGETS[name].run(data)
    except ValueError as refusal:
        assert str(refusal)


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_stays_mended(name: str, data: bytes) -> None:
    tried(name, data)


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, doubled and cut off."""
    data = bytearray(seed[:16384])
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del data[at : at + chance.randint(1, 20)]
        elif kind == 2:
            data[at:at] = data[at : at + chance.randint(1, 40)]
        else:
            data[at:at] = chance.choice([b"0", b"-1", b"null", b"[]", b"{}", b'"', b"\0", b"\xff"])
    return bytes(data[: chance.choice([len(data), at])])


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_near_them(name: str) -> None:
    chance = random.Random(7)
    seeds = TARGETS[name].seeds()
    assert seeds
    for seed in seeds:
        tried(name, seed)
        for _ in range(MUTATED // len(seeds)):
            tried(name, mutated(seed, chance))


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_runs_and_counts(tmp_path: Path) -> None:
    found = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "tools.fuzz", "--target", "wire", "--runs", "2000"]
    done = subprocess.run(
        [*command, "--json", str(found)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(found.read_text())["targets"]["wire"]
    assert result["runs"] >= 2000 and result["corpus"] > 10 and result["finding"] == []


BROKEN = """
import sys
from tools import fuzz, fuzz_targets

def broken(data):
    if data[:1] == b"{":
        {}["absent"]

fuzz_targets.TARGETS["urdf"] = fuzz_targets.Target(broken, lambda: [b"x"])
sys.exit(fuzz.main())
"""


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_a_defect_is_found(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    command = [sys.executable, str(tmp_path / "broken.py"), "--inner", "urdf", "--runs", "100000"]
    done = subprocess.run(
        [*command, "--corpus", str(tmp_path)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "KeyError" in done.stdout + done.stderr
