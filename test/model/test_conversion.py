"""Checkpoints in another layout hold the same weights, and are written without being held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.golden import TOY, TOY_LEROBOT, toy_config
from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.model import weight_files
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.conversion import LAYOUTS, convert_weights, converted_bytes
from thor_policy_ros.model.pi05 import Pi05, stays_float32
from thor_policy_ros.model.weight_files import (
    CheckpointError,
    checkpoint_hash,
    read_contents,
    remember_hash,
)
from thor_policy_ros.model.weight_writer import TensorPlan, row_blocks, write_safetensors

HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EMBED = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


def same_weights(a: Pi05, b: Pi05) -> bool:
    theirs = dict(b.named_parameters())
    return all(torch.equal(p, theirs[name]) for name, p in a.named_parameters())


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", [TOY, TOY_LEROBOT], ids=["from openpi", "from lerobot"])
def test_every_layout_loads_the_same_weights(tmp_path: Path, source: Path, layout: str) -> None:
    convert_weights(source, tmp_path, toy_config(), layout, torch.float32)
    assert read_contents(tmp_path).layout == layout
    assert same_weights(load_pi05(tmp_path, toy_config()), load_pi05(TOY, toy_config()))


@pytest.mark.parametrize("layout", ["openpi", "lerobot"])
def test_there_and_back_through_merged_loses_no_weight(tmp_path: Path, layout: str) -> None:
    merged, back = tmp_path / "merged", tmp_path / "back"
    convert_weights(TOY, merged, toy_config(), "merged", torch.float32)
    convert_weights(merged, back, toy_config(), layout)
    assert same_weights(load_pi05(back, toy_config()), load_pi05(TOY, toy_config()))


def test_between_the_original_layouts_every_key_and_byte_is_kept(tmp_path: Path) -> None:
    convert_weights(TOY, tmp_path / "lerobot", toy_config(), "lerobot")
    convert_weights(TOY_LEROBOT, tmp_path / "openpi", toy_config(), "openpi")
    for made, original in (("lerobot", TOY_LEROBOT), ("openpi", TOY)):
        ours = load_file(tmp_path / made / "model.safetensors")
        theirs = load_file(original / "model.safetensors")
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_the_original_loaders_insist_on_is_zeros_where_it_is_lost(tmp_path: Path) -> None:
    merged, back = tmp_path / "merged", tmp_path / "back"
    (dropped,) = convert_weights(TOY, merged, toy_config(), "merged")
    assert HEAD in dropped and HEAD not in names_in(merged)
    (zeros,) = convert_weights(merged, back, toy_config(), "openpi")
    assert zeros.startswith(f"{HEAD} is zeros")
    head = load_file(back / "model.safetensors")[HEAD]
    assert head.shape == load_file(TOY / "model.safetensors")[HEAD].shape and not head.any()


def test_the_tied_embedding_is_stored_as_each_project_does(tmp_path: Path) -> None:
    for layout, wanted in (
        ("openpi", {LM_HEAD}),
        ("lerobot", {f"model.{LM_HEAD}", f"model.{EMBED}"}),
    ):
        convert_weights(TOY, tmp_path / layout, toy_config(), layout)
        held = {name for name in names_in(tmp_path / layout) if "lm_head" in name or EMBED in name}
        assert held - {HEAD, f"model.{HEAD}"} == wanted


def test_a_merged_file_has_our_parameters_in_the_dtypes_of_a_gpu(tmp_path: Path) -> None:
    convert_weights(TOY, tmp_path, toy_config(), "merged")
    ours = load_file(tmp_path / "model.safetensors")
    with torch.device("meta"):
        wanted = dict(Pi05(toy_config()).named_parameters())
    assert {name: t.shape for name, t in ours.items()} == {n: p.shape for n, p in wanted.items()}
    for name, tensor in ours.items():
        assert tensor.dtype == (torch.float32 if stays_float32(name) else torch.bfloat16)
    loaded = load_pi05(tmp_path, toy_config(), dtype=torch.bfloat16)
    assert same_weights(loaded, load_pi05(TOY, toy_config(), dtype=torch.bfloat16))


def test_a_dtype_may_be_chosen_for_the_original_layouts_too(tmp_path: Path) -> None:
    convert_weights(TOY, tmp_path, toy_config(), "openpi", torch.bfloat16)
    kinds = {
        name: tensor.dtype for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    assert kinds["action_in_proj.weight"] == torch.float32
    assert kinds[LM_HEAD] == kinds[HEAD] == torch.bfloat16


def test_shards_are_read_wherever_a_key_is(tmp_path: Path) -> None:
    tensors = load_file(TOY / "model.safetensors")
    names = sorted(tensors)
    shards, index = tmp_path / "shards", {}
    shards.mkdir()
    for i in range(3):
        held = {name: tensors[name] for name in names[i::3]}
        save_file(held, shards / f"part_{i}.safetensors")
        index |= dict.fromkeys(held, f"part_{i}.safetensors")
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    convert_weights(shards, tmp_path / "whole", toy_config(), "openpi")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(whole[name], tensors[name]) for name in names)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_size_is_known_before_and_every_byte_is_counted(tmp_path: Path, layout: str) -> None:
    wanted, written = converted_bytes(TOY, toy_config(), layout), []
    convert_weights(TOY, tmp_path, toy_config(), layout, progress=written.append)
    assert sum(written) == wanted
    with (tmp_path / "model.safetensors").open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    assert (tmp_path / "model.safetensors").stat().st_size == wanted + 8 + header


def test_what_cannot_be_converted_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"q_proj.weight: wanted \[16, 16\], got \("):
        convert_weights(TOY, tmp_path / "a", TINY.model, "merged")
    with pytest.raises(ValueError, match="choose one of: openpi, lerobot, merged"):
        convert_weights(TOY, tmp_path / "a", toy_config(), "gguf")
    with pytest.raises(ValueError, match="wants a folder of its own"):
        convert_weights(TOY, TOY, toy_config(), "merged")
    assert not (tmp_path / "a").exists()


def test_a_missing_and_an_unexpected_key_are_named(tmp_path: Path) -> None:
    tensors = load_file(TOY / "model.safetensors")
    del tensors["action_in_proj.bias"]
    save_file({**tensors, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        convert_weights(tmp_path, tmp_path / "a", toy_config(), "lerobot")
    assert "action_in_proj.bias: wanted [48], got none" in str(caught.value)
    assert "extra: unexpected" in str(caught.value)


def test_a_merged_file_of_other_sizes_names_its_parameters(tmp_path: Path) -> None:
    convert_weights(TOY, tmp_path, toy_config(), "merged")
    with pytest.raises(CheckpointError, match=r"(?s)\(merged layout\).*language\.layers\.2\."):
        load_pi05(tmp_path, TINY.model)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    def short() -> object:
        yield torch.zeros(1, 4)

    plan = TensorPlan("x", (2, 4), torch.float32, short)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: wanted 32 bytes, got 16"):
        write_safetensors(tmp_path / "model.safetensors", [plan], {})
    assert list(tmp_path.iterdir()) == []


def test_blocks_are_small_and_together_the_tensor() -> None:
    tensor = torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5)
    blocks = list(row_blocks(tensor, block_bytes=45))
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    assert torch.equal(torch.cat(blocks), tensor)
    assert [block.tolist() for block in row_blocks(torch.tensor(3.0))] == [[3.0]]


def test_a_remembered_hash_is_that_of_the_bytes_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_toy_checkpoint(tmp_path)
    wanted = checkpoint_hash(folder)
    assert remember_hash(folder) == wanted
    monkeypatch.setattr(weight_files, "_computed_hash", lambda _: "computed")
    assert checkpoint_hash(folder) == wanted
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # other times: who knows what else
    assert checkpoint_hash(folder) == "computed"
    (folder / "weights_hash.json").write_text("{")
    assert checkpoint_hash(folder) == "computed"
