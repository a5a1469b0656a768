"""Configs: what the named ones say, and how wrong ones are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.golden import TOY_LEROBOT, toy_config
from support.toy_checkpoint import TINY

from thor_policy_ros.model.config import (
    GemmaConfig,
    VisionConfig,
    model_config_from_json,
    policy_config_from_json,
    to_json,
)
from thor_policy_ros.model.named_configs import NAMED, load_policy_config


@pytest.mark.parametrize(
    ("name", "horizon", "action_dim", "state_in_prompt"),
    [("pi05_libero", 10, 7, False), ("pi05_droid", 15, 8, True), ("pi05_aloha", 50, 14, True)],
)
def test_the_published_policies(
    name: str, horizon: int, action_dim: int, state_in_prompt: bool
) -> None:
    config = NAMED[name]
    assert (config.model.action_horizon, config.action_dim) == (horizon, action_dim)
    assert config.state_in_prompt is state_in_prompt
    assert config.model.max_prefix_len == 968
    assert config.model.vision.num_tokens == 256


def test_only_aloha_is_relative_and_not_in_its_grippers() -> None:
    assert not any(NAMED["pi05_libero"].relative_actions + NAMED["pi05_droid"].relative_actions)
    absolute = [i for i, r in enumerate(NAMED["pi05_aloha"].relative_actions) if not r]
    assert absolute == [6, 13]


@pytest.mark.parametrize("config", [*NAMED.values(), TINY], ids=lambda c: c.name)
def test_configs_survive_json(config: object) -> None:
    assert policy_config_from_json(json.loads(json.dumps(to_json(config)))) == config


def test_wrong_json_names_each_wrong_field() -> None:
    sizes = to_json(toy_config())
    del sizes["vocab_size"]
    with pytest.raises(ValueError, match=r"missing .*\['vocab_size'\], unknown .*\['x'\]"):
        model_config_from_json({**sizes, "x": 1})
    sizes = to_json(toy_config())
    sizes["vision"] = {**sizes["vision"], "depth": "three"}
    with pytest.raises(ValueError, match="vision: depth: wanted int, got 'three'"):
        model_config_from_json(sizes)
    sizes["vision"] = 3
    with pytest.raises(ValueError, match="vision: wanted an object with fields, got int"):
        model_config_from_json(sizes)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size 60 is not a multiple of patch_size 14"):
        VisionConfig(60, 14, 16, 1, 2, 24)
    with pytest.raises(ValueError, match="num_heads 4 is not a multiple of num_kv_heads 3"):
        GemmaConfig(16, 1, 24, 4, 3, 8)
    deeper = dataclasses.replace(TINY.model.action_expert, depth=3)
    with pytest.raises(ValueError, match=r"language.depth is 2 but action_expert.depth is 3"):
        dataclasses.replace(TINY.model, action_expert=deeper)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_slots": ("base_0_rgb",)}, "names 1 camera slots .* of 2 cameras"),
        ({"relative_actions": (True,)}, "relative_actions has 1 entries for 3 action dimensions"),
        ({"normalisation": "minmax"}, "choose one of: quantile, zscore"),
        ({"action_dt_s": 0.0}, "action_dt_s must be positive"),
        ({"state_dim": 1}, "beyond state dimension 1 cannot be relative"),
        ({"action_dim": 33, "relative_actions": (False,) * 33}, "do not fit the model's 32"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)  # type: ignore[arg-type]


def test_a_folder_says_its_own_policy_inline_or_by_name(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"policy": to_json(TINY)}))
    assert load_policy_config(tmp_path) == TINY
    config.write_text(json.dumps({"policy": "pi05_droid"}))
    assert load_policy_config(tmp_path) == NAMED["pi05_droid"]
    assert load_policy_config(tmp_path, "pi05_libero") == NAMED["pi05_libero"]
    assert load_policy_config(tmp_path, TINY) is TINY
    fields = tmp_path / "my_robot.json"
    fields.write_text(json.dumps(to_json(TINY)))
    assert load_policy_config(tmp_path, fields) == TINY


def test_a_folder_that_does_not_say_wants_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'has no "policy" entry.*name the config: one of demo'):
        load_policy_config(TOY_LEROBOT)
    with pytest.raises(ValueError, match="unknown policy config 'pi06'; choose one of: demo"):
        load_policy_config(tmp_path, "pi06")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_policy_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"policy": "pi06"}')
    with pytest.raises(ValueError, match="names an unknown policy 'pi06'"):
        load_policy_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_policy_config(tmp_path)
