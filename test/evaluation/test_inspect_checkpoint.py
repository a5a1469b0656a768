"""`thor-policy inspect`: what is there, which config it is and why, and what is missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.golden import TOY_LEROBOT
from support.toy_checkpoint import TINY, write_tokenizer, write_toy_checkpoint

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.conversion import EXPERT_HEAD
from thor_policy_ros.model.key_layout import EMBEDDING_KEYS, LAYOUT_PREFIXES, all_parts
from thor_policy_ros.model.named_configs import ALOHA, DROID, LIBERO
from thor_policy_ros.model.pi05 import Pi05


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the command with --json: (exit status, what it printed)."""

    def run(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
        status = main(["inspect", str(folder), "--json", *options])
        return status, json.loads(capsys.readouterr().out)

    return run


def write_headers(folder: Path, layout: str = "openpi") -> Path:
    """A file that says it has pi0.5's full-size weights, as sparse zeros: 13 GB that take none."""
    folder.mkdir(exist_ok=True)
    with torch.device("meta"):
        parameters = dict(Pi05(LIBERO.model).named_parameters())
    shapes = {key: part.shape for key, part in all_parts(parameters.items(), LIBERO.model).items()}
    shapes[EMBEDDING_KEYS[1]] = shapes.pop(EMBEDDING_KEYS[0])
    shapes[EXPERT_HEAD] = (257152, 1024)
    header, offset = {}, 0
    for key, shape in shapes.items():
        size = torch.Size(shape).numel() * 2
        name = LAYOUT_PREFIXES[layout] + key
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


def write_stats(folder: Path, asset_id: str, state: int, actions: int) -> None:
    path = folder / "assets" / asset_id / "norm_stats.json"
    path.parent.mkdir(parents=True)
    stats = {
        part: {"mean": [0.0] * n, "std": [1.0] * n, "q01": [0.0] * n, "q99": [1.0] * n}
        for part, n in (("state", state), ("actions", actions))
    }
    stats["actions"]["q99"][1] = 0.0
    path.write_text(json.dumps({"norm_stats": stats}))


def test_a_complete_checkpoint_lacks_nothing(tmp_path: Path, inspected: Any) -> None:
    status, found = inspected(write_toy_checkpoint(tmp_path))
    assert status == 0 and found["missing"] == []
    assert (found["config"], found["layout"]) == ("tiny", "openpi")
    assert found["config_from"].startswith("the policy entry of ")
    assert found["tokenizer"] == str(tmp_path / "tokenizer.model")
    counted = sum(found["parameters"].values())
    assert counted == sum(p.numel() for p in Pi05(TINY.model).parameters())
    assert found["dtypes"] == {"F32": counted}
    (stats,) = found["statistics"]
    assert (stats["asset_id"], stats["state_dim"], stats["action_dim"]) == ("tiny", 4, 3)
    assert stats["kinds"] == ["quantile", "zscore"]
    assert found["files"] == {"model.safetensors": (tmp_path / "model.safetensors").stat().st_size}


@pytest.mark.parametrize("layout", ["openpi", "lerobot"])
def test_full_size_weights_are_known_by_their_headers(
    tmp_path: Path, inspected: Any, layout: str
) -> None:
    _, found = inspected(write_headers(tmp_path, layout))
    assert found["layout"] == layout
    assert found["sizes"]["vision"]["depth"] == 27
    assert found["parameters"]["embedding"] == 257152 * 2048
    assert found["parameters"]["unused"] == 257152 * 1024
    assert 3.35e9 < sum(found["parameters"].values()) - found["parameters"]["unused"] < 3.36e9


@pytest.mark.parametrize("config", [LIBERO, DROID, ALOHA], ids=lambda c: c.name)
def test_statistics_and_saved_config_tell_the_three_published_policies_apart(
    tmp_path: Path, inspected: Any, config: Any
) -> None:
    """Their weights have the same shapes."""
    folder = write_headers(tmp_path)
    _, before = inspected(folder)
    fitting = {guess["name"] for guess in before["guesses"] if guess["fits"]}
    assert fitting == {"pi05_libero", "pi05_droid", "pi05_aloha"}
    write_stats(folder, config.asset_id, config.state_dim, config.action_dim)
    _, found = inspected(folder)
    (guess,) = [guess for guess in found["guesses"] if guess["fits"]]
    assert guess["name"] == config.name
    assert f"for: it has statistics of {config.asset_id}" in guess["reasons"]
    assert "for: the sizes of the network agree" in guess["reasons"]
    others = [g for g in found["guesses"] if not g["fits"] and g["name"] != "demo"]
    assert all(any("against: its statistics are of" in r for r in g["reasons"]) for g in others)
    (stats,) = found["statistics"]
    assert stats["flat"] == {"state": [], "actions": [1]}


def test_the_guess_is_a_guess_until_it_is_named(tmp_path: Path, inspected: Any) -> None:
    folder = write_headers(tmp_path)
    write_stats(folder, "droid", 8, 8)
    status, found = inspected(folder)
    assert status == 1 and found["config"] == ""
    assert any(entry.startswith("policy config: ") for entry in found["missing"])
    tokenizer = write_tokenizer(tmp_path / "anywhere.model")
    status, found = inspected(folder, "--config", "pi05_droid", "--tokenizer", str(tokenizer))
    assert (status, found["missing"], found["config_from"]) == (0, [], "--config pi05_droid")


def test_what_is_missing_is_named(tmp_path: Path, inspected: Any) -> None:
    folder = write_toy_checkpoint(tmp_path)
    (folder / "tokenizer.model").unlink()
    (folder / "assets" / "tiny" / "norm_stats.json").unlink()
    status, found = inspected(folder)
    statistics, tokenizer = found["missing"]
    assert status == 1
    assert statistics.startswith("statistics: no normalisation statistics in ")
    assert tokenizer.startswith("tokenizer: a PaliGemma sentencepiece model")


def test_a_tokenizer_that_is_not_this_policys_is_doubted_or_refused(
    tmp_path: Path, inspected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = write_tokenizer(tmp_path / "anywhere.model")
    full = write_headers(tmp_path / "full")
    write_stats(full, "droid", 8, 8)
    words = ("--config", "pi05_droid", "--tokenizer", str(tokenizer))
    status, found = inspected(full, *words)
    assert (status, found["tokenizer_pieces"]) == (0, 300)
    assert main(["inspect", str(full), *words]) == 0
    said = capsys.readouterr().out
    assert "300 pieces, while the model embeds 257152: is it this policy's?" in said
    small = write_toy_checkpoint(tmp_path / "small", without_words(100))
    status, found = inspected(small)
    assert status == 1
    assert found["missing"][0].endswith("has 300 pieces, the model embeds 100")
    (small / "tokenizer.model").write_bytes(b"no sentencepiece model")
    status, found = inspected(small)
    assert status == 1 and found["missing"][0].endswith("is no sentencepiece model")


def without_words(count: int) -> PolicyConfig:
    return dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, vocab_size=count))


def test_a_config_of_other_sizes_is_said(tmp_path: Path, inspected: Any) -> None:
    folder = write_headers(tmp_path)
    write_stats(folder, "demo", 5, 5)
    _, found = inspected(folder, "--config", "demo")
    assert "weights of the sizes of config 'demo'" in found["missing"]


def test_lerobots_own_words_count(inspected: Any) -> None:
    _, found = inspected(TOY_LEROBOT)
    reasons = {guess["name"]: guess["reasons"] for guess in found["guesses"]}
    assert "against: chunk_size is 10, the config wants 15" in reasons["pi05_droid"]
    assert any("number of attention heads" in entry for entry in found["missing"])


def test_a_merged_checkpoint_is_known_with_what_lies_beside_it(
    tmp_path: Path, inspected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source, made = write_toy_checkpoint(tmp_path / "a"), tmp_path / "b"
    assert main(["convert", str(source), str(made), "--to", "merged", "--fp8", "--json"]) == 0
    capsys.readouterr()
    status, found = inspected(made)
    assert (status, found["layout"], found["missing"]) == (0, "merged", [])
    assert found["beside"] == ["checksums.json", "fp8_mlp.safetensors", "weights_hash.json"]
    _, before = inspected(source)
    assert found["parameters"] == before["parameters"] and found["sizes"] == before["sizes"]


def test_a_folder_without_weights_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "wanted model.safetensors" in capsys.readouterr().err
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert main(["inspect", str(tmp_path)]) == 1
    assert "missing sizes" in capsys.readouterr().out


def test_for_a_person_it_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(write_toy_checkpoint(tmp_path))]) == 0
    printed = capsys.readouterr().out
    assert "layout openpi" in printed and "nothing is missing" in printed
    assert main(["inspect", str(TOY_LEROBOT)]) == 1
    assert "what speaks for and against the named ones" in capsys.readouterr().out
