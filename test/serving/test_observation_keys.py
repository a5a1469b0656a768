"""Names of observations: openpi's clients as they are, both ways, and errors that list both."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from support.toy_checkpoint import TINY, toy_observation

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.named_configs import NAMED
from thor_policy_ros.model.transforms import resize_with_pad
from thor_policy_ros.serving.observation_keys import KEYS, keys_of, message_of, observation_of
from thor_policy_ros.types import Observation

RANDOM = np.random.default_rng(0)
BASE, LEFT, RIGHT = (RANDOM.integers(0, 256, (224, 224, 3), np.uint8) for _ in range(3))
STATE14 = RANDOM.normal(size=14)

# As openpi's own examples build them (policies/*_policy.py, examples/*/main.py).
EXAMPLES: dict[str, dict[str, Any]] = {
    "pi05_libero": {
        "observation/state": RANDOM.random(8),
        "observation/image": BASE,
        "observation/wrist_image": LEFT,
        "prompt": "do something",
    },
    "pi05_droid": {
        "observation/exterior_image_1_left": BASE,
        "observation/wrist_image_left": LEFT,
        "observation/joint_position": RANDOM.random(7),
        "observation/gripper_position": RANDOM.random(1),
        "prompt": "do something",
    },
    "pi05_aloha": {
        "state": STATE14,
        "images": {
            "cam_high": BASE.transpose(2, 0, 1),
            "cam_low": np.zeros((3, 224, 224), np.uint8),
            "cam_left_wrist": LEFT.transpose(2, 0, 1),
            "cam_right_wrist": RIGHT.transpose(2, 0, 1),
        },
        "prompt": "do something",
    },
}


def without(message: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in names}


def read(name: str, message: dict[str, Any]) -> Observation:
    return observation_of(message, keys_of(NAMED[name]), 12.5)


def test_every_named_config_has_its_names() -> None:
    assert set(KEYS) == set(NAMED)
    for config in NAMED.values():
        keys_of(config)  # raises where slots or state do not fit


@pytest.mark.parametrize("name", EXAMPLES)
def test_openpis_own_example_is_read(name: str) -> None:
    seen = read(name, EXAMPLES[name])
    assert np.array_equal(seen.images["base_0_rgb"], BASE)
    assert np.array_equal(seen.images["left_wrist_0_rgb"], LEFT)
    assert seen.prompt == "do something" and seen.stamp_s == 12.5
    assert seen.state.shape == (NAMED[name].state_dim,) and seen.state.dtype == np.float32


def test_states_are_put_together_in_the_order_of_the_statistics() -> None:
    seen = read("pi05_droid", EXAMPLES["pi05_droid"])
    joints, gripper = (
        EXAMPLES["pi05_droid"][f"observation/{n}_position"] for n in ("joint", "gripper")
    )
    assert np.allclose(seen.state, [*joints, *gripper])
    scalar = {**EXAMPLES["pi05_droid"], "observation/gripper_position": np.float64(gripper[0])}
    assert np.allclose(read("pi05_droid", scalar).state, seen.state)
    assert np.allclose(read("pi05_aloha", EXAMPLES["pi05_aloha"]).state, STATE14)


def test_aloha_takes_three_of_its_four_cameras_and_may_lack_a_wrist() -> None:
    seen = read("pi05_aloha", EXAMPLES["pi05_aloha"])
    assert np.array_equal(seen.images["right_wrist_0_rgb"], RIGHT) and len(seen.images) == 3
    images = without(EXAMPLES["pi05_aloha"]["images"], "cam_left_wrist", "cam_low")
    fewer = read("pi05_aloha", {**EXAMPLES["pi05_aloha"], "images": images})
    assert sorted(fewer.images) == ["base_0_rgb", "right_wrist_0_rgb"]


@pytest.mark.parametrize(
    "image", [BASE.transpose(2, 0, 1), BASE / 255.0, (BASE / np.float32(255)).transpose(2, 0, 1)]
)
def test_images_may_come_as_floats_or_channels_first(image: np.ndarray) -> None:
    seen = read("pi05_libero", {**EXAMPLES["pi05_libero"], "observation/image": image})
    got = seen.images["base_0_rgb"].astype(int)
    assert got.shape == BASE.shape and np.abs(got - BASE).max() <= 1  # openpi cuts off fractions


def test_further_names_are_left_alone_and_lists_are_numbers() -> None:
    state = EXAMPLES["pi05_libero"]["observation/state"].tolist()
    more = {**EXAMPLES["pi05_libero"], "observation/state": state, "episode": 3, "extra": {"a": 1}}
    assert np.allclose(read("pi05_libero", more).state, state)


def test_a_prompt_may_be_bytes_or_the_servers_own() -> None:
    message = EXAMPLES["pi05_libero"]
    keys = keys_of(NAMED["pi05_libero"])
    assert observation_of({**message, "prompt": b"fold"}, keys, 0.0).prompt == "fold"
    assert observation_of(without(message, "prompt"), keys, 0.0, "wave").prompt == "wave"
    assert observation_of(message, keys, 0.0, "wave").prompt == "do something"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "pi05_libero",
            {"observation/wrist_image": None},
            r"observation/wrist_image: wanted an image .* got NoneType",
        ),
        ("pi05_libero", {"observation/image": BASE[..., 0]}, r"got \[224, 224\]"),
        ("pi05_libero", {"observation/image": BASE[..., :2]}, r"got \[224, 224, 2\]"),
        ("pi05_libero", {"observation/image": BASE[:0]}, r"got \[0, 224, 3\]"),
        ("pi05_libero", {"observation/image": BASE * 1.0}, "float image from 0 to 1"),
        ("pi05_libero", {"observation/image": BASE / -255.0}, "float image from 0 to 1"),
        ("pi05_libero", {"observation/image": BASE * np.nan}, "float image from 0 to 1"),
        ("pi05_libero", {"observation/image": BASE.astype(np.int64)}, "wanted uint8.* got int64"),
        ("pi05_libero", {"observation/state": np.zeros(7)}, r"wanted 8 numbers, got shape \[7\]"),
        ("pi05_libero", {"observation/state": "x"}, "observation/state: wanted 8 numbers, got str"),
        ("pi05_libero", {"observation/state": [[1], [2, 3]]}, "wanted 8 numbers, got list"),
        ("pi05_libero", {"prompt": 3}, "prompt: wanted text, got int"),
        ("pi05_aloha", {"images": {"cam_high": BASE}}, r"wanted \[3, height, width\]"),
        (
            "pi05_aloha",
            {"images": {"cam_hi": BASE}},
            r"missing \['images/cam_high'\]; unknown \['images/cam_hi'\].*got \['images/cam_hi',",
        ),
        ("pi05_aloha", {"images": {b"cam_high": BASE}}, "wanted names as keys below 'images/'"),
    ],
)
def test_wrong_observations_say_wanted_and_got(
    name: str, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read(name, {**EXAMPLES[name], **change})


def test_missing_names_are_listed_with_all_that_are_wanted_and_all_that_came() -> None:
    with pytest.raises(ValueError) as caught:
        read("pi05_libero", {"observation/image": BASE, "state": np.zeros(8)})
    missing = ["observation/wrist_image", "observation/state", "prompt"]
    assert f"missing {missing}" in str(caught.value)
    assert "got ['observation/image', 'state']" in str(caught.value)
    assert all(name in str(caught.value) for name in keys_of(NAMED["pi05_libero"]).names)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_the_client_half_sends_the_server_half_reads(name: str) -> None:
    seen = read(name, EXAMPLES[name])
    again = read(name, message_of(seen, keys_of(NAMED[name]), 224))
    assert np.array_equal(again.state, seen.state) and again.prompt == seen.prompt
    assert {s: i.tobytes() for s, i in again.images.items()} == {
        s: i.tobytes() for s, i in seen.images.items()
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_client_half_sends_openpis_names_in_openpis_nesting(name: str) -> None:
    sent = message_of(read(name, EXAMPLES[name]), keys_of(NAMED[name]), 224)
    expected = json.loads(json.dumps(EXAMPLES[name], default=lambda array: list(array.shape)))
    expected.get("images", {}).pop("cam_low", None)  # not used by any pi0.5
    assert json.loads(json.dumps(sent, default=lambda array: list(array.shape))) == expected


def test_images_are_resized_before_they_are_sent_as_the_server_would() -> None:
    seen = toy_observation()
    sent = message_of(seen, keys_of(TINY), 28)
    for slot, image in seen.images.items():
        assert np.array_equal(sent[f"observation/{slot}"], resize_with_pad(image, 28))


def test_a_config_of_ones_own_has_names_by_its_slots() -> None:
    keys = keys_of(TINY)
    assert keys.names == (
        "observation/base_0_rgb",
        "observation/left_wrist_0_rgb",
        "observation/state",
        "prompt",
    )
    seen = toy_observation()
    assert observation_of(message_of(seen, keys, 28), keys, 1.0).prompt == seen.prompt


def test_names_of_another_config_may_be_chosen_where_they_fit() -> None:
    mine: PolicyConfig = dataclasses.replace(NAMED["pi05_libero"], name="my_libero")
    assert keys_of(mine, "pi05_libero") is KEYS["pi05_libero"]
    with pytest.raises(ValueError, match=r"a state of 14; config 'my_libero' wants .* and 8"):
        keys_of(mine, "pi05_aloha")
    with pytest.raises(ValueError, match="no observation keys 'pi06'; choose one of: demo"):
        keys_of(mine, "pi06")


def test_an_observation_that_the_server_would_refuse_is_not_sent() -> None:
    seen = read("pi05_libero", EXAMPLES["pi05_libero"])
    keys = keys_of(NAMED["pi05_libero"])
    one = dataclasses.replace(seen, images={"base_0_rgb": BASE})
    with pytest.raises(ValueError, match=r"wants observation/wrist_image \(slot left_wrist_0_rgb"):
        message_of(one, keys, 224)
    with pytest.raises(ValueError, match=r"state of 8 values, got \[2\]"):
        message_of(dataclasses.replace(seen, state=np.zeros(2, np.float32)), keys, 224)
