"""Loading is strict, in both layouts, and every wrong key is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import TOY, TOY_LEROBOT, toy_config
from torch import Tensor

from thor_policy_ros.model.checkpoint import load_pi05, save_pi05
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.model.weight_files import CheckpointError, read_contents

LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EMBED = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
Q_PROJ = "paligemma_with_expert.gemma_expert.model.layers.1.self_attn.q_proj.weight"


def toy_tensors() -> dict[str, Tensor]:
    return load_file(TOY / "model.safetensors")


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def same_weights(a: Pi05, b: Pi05) -> bool:
    theirs = dict(b.named_parameters())
    return all(torch.equal(p, theirs[name]) for name, p in a.named_parameters())


@pytest.mark.parametrize(
    ("folder", "layout", "prefix"), [(TOY, "openpi", ""), (TOY_LEROBOT, "lerobot", "model.")]
)
def test_the_layout_is_told_from_the_keys(folder: Path, layout: str, prefix: str) -> None:
    contents = read_contents(folder)
    assert contents.layout == layout
    assert contents.unused == (f"{prefix}paligemma_with_expert.gemma_expert.lm_head.weight",)


def test_both_layouts_load_the_same_weights() -> None:
    assert same_weights(load_pi05(TOY, toy_config()), load_pi05(TOY_LEROBOT, toy_config()))


def test_a_loaded_model_is_ready_for_inference() -> None:
    model = load_pi05(TOY, toy_config())
    assert not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())


@pytest.mark.parametrize("held", [(LM_HEAD,), (EMBED,), (LM_HEAD, EMBED)])
def test_the_tied_embedding_is_found_wherever_it_is(tmp_path: Path, held: tuple[str, ...]) -> None:
    tensors = toy_tensors()
    embedding = tensors.pop(LM_HEAD)
    folder = write(tmp_path, tensors | dict.fromkeys(held, embedding))
    assert same_weights(load_pi05(folder, toy_config()), load_pi05(TOY, toy_config()))


def test_a_checkpoint_without_any_embedding_is_refused(tmp_path: Path) -> None:
    tensors = toy_tensors()
    del tensors[LM_HEAD]
    with pytest.raises(CheckpointError, match=rf"missing \(1\):\s+{EMBED}"):
        load_pi05(write(tmp_path, tensors), toy_config())


def test_two_different_copies_of_the_embedding_are_refused(tmp_path: Path) -> None:
    tensors = toy_tensors()
    tensors[EMBED] = tensors[LM_HEAD] + 1
    with pytest.raises(CheckpointError, match="one tied matrix but differ"):
        load_pi05(write(tmp_path, tensors), toy_config())


def test_one_error_names_every_wrong_key(tmp_path: Path) -> None:
    tensors = toy_tensors()
    del tensors["time_mlp_in.bias"]
    del tensors["action_in_proj.weight"]
    tensors["state_proj.weight"] = torch.zeros(2)
    tensors[Q_PROJ] = torch.zeros(128, 47)
    with pytest.raises(CheckpointError) as refused:
        load_pi05(write(tmp_path, tensors), toy_config())
    message = str(refused.value)
    assert "missing (2):\n    action_in_proj.weight\n    time_mlp_in.bias\n" in message
    assert "unexpected (1):\n    state_proj.weight\n" in message
    assert f"wrong shape (1):\n    {Q_PROJ}: wanted [128, 48], got [128, 47]\n" in message


def test_keys_are_named_as_the_file_has_them(tmp_path: Path) -> None:
    tensors = load_file(TOY_LEROBOT / "model.safetensors")
    del tensors["model.time_mlp_in.bias"]
    with pytest.raises(CheckpointError, match=r"missing \(1\):\s+model\.time_mlp_in\.bias"):
        load_pi05(write(tmp_path, tensors), toy_config())


def test_a_key_without_the_layouts_prefix_is_unexpected(tmp_path: Path) -> None:
    tensors = load_file(TOY_LEROBOT / "model.safetensors")
    tensors["time_mlp_in.bias"] = tensors.pop("model.time_mlp_in.bias")
    with pytest.raises(CheckpointError) as refused:
        load_pi05(write(tmp_path, tensors), toy_config())
    assert "missing (1):\n    model.time_mlp_in.bias\n" in str(refused.value)
    assert "unexpected (1):\n    time_mlp_in.bias\n" in str(refused.value)


def test_a_config_of_more_layers_is_refused() -> None:
    toy = toy_config()
    deeper = replace(toy, vision=replace(toy.vision, depth=4))
    with pytest.raises(CheckpointError, match=r"missing \(16\):\s+.*encoder\.layers\.3\."):
        load_pi05(TOY, deeper)


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    tensors = toy_tensors()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({k: tensors[k] for k in keys}, tmp_path / shard)
    index = {"weight_map": {k: shard for shard, keys in shards.items() for k in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same_weights(load_pi05(tmp_path, toy_config()), load_pi05(TOY, toy_config()))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        load_pi05(tmp_path, toy_config())


def test_bfloat16_keeps_the_parts_that_are_float32_in_the_original() -> None:
    model = load_pi05(TOY, toy_config(), dtype=torch.bfloat16)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    kept = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert set(kinds.values()) == {torch.float32, torch.bfloat16}
    assert {"vision.patch_embedding.weight", "vision.position_embedding"} <= kept
    assert {"language.norm.weight", "expert.layers.0.input_layernorm.dense.weight"} <= kept
    assert {"action_in_proj.weight", "time_mlp_out.bias"} <= kept
    assert kinds["vision.layers.0.layer_norm1.weight"] == torch.bfloat16
    assert kinds["expert.layers.0.self_attn.qkv_proj.weight"] == torch.bfloat16


def test_saving_writes_openpis_layout_exactly(tmp_path: Path) -> None:
    save_pi05(load_pi05(TOY, toy_config()), tmp_path)
    original = toy_tensors()
    del original["paligemma_with_expert.gemma_expert.lm_head.weight"]
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(original)
    assert all(torch.equal(saved[key], original[key]) for key in original)


def test_half_precision_files_load_in_any_dtype(tmp_path: Path) -> None:
    model = Pi05(toy_config())
    save_pi05(model, tmp_path, torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert same_weights(load_pi05(tmp_path, toy_config()), model.half().float())


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    with pytest.raises(CheckpointError, match=r"wanted model.safetensors .*found: \['params'\]"):
        read_contents(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        read_contents(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all", b"\x80\x04pickle"])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        read_contents(tmp_path)


def test_parts_of_the_model_load_alone() -> None:
    """Only they take memory; the others keep their dtype, and the folder must fit all the same."""
    whole = load_pi05(TOY, toy_config(), dtype=torch.bfloat16)
    part = load_pi05(
        TOY, toy_config(), dtype=torch.bfloat16, wanted=lambda name: name.startswith("vision.")
    )
    assert part.dtype == torch.bfloat16
    loaded = dict(part.named_parameters())
    for name, parameter in whole.named_parameters():
        assert loaded[name].dtype == parameter.dtype
        assert loaded[name].is_meta != name.startswith("vision.")
        if not loaded[name].is_meta:
            assert torch.equal(loaded[name], parameter)
