"""Images, states and actions: exactly as recorded, and back again."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.golden import GOLDEN
from support.toy_checkpoint import TINY, norm_stats_json, toy_observation, without_state
from support.toy_checkpoint import write_tokenizer as write_tokenizer_file

from thor_policy_ros.model import aloha
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.named_configs import NAMED
from thor_policy_ros.model.norm_stats import NormStats, load_norm_stats
from thor_policy_ros.model.pixels import PIXEL, in_model_range
from thor_policy_ros.model.tokenizer import PromptTokenizer
from thor_policy_ros.model.transforms import Preprocessor, resize_with_pad, resized
from thor_policy_ros.types import Observation

RESIZED = np.load(GOLDEN / "preprocess" / "resize.npz")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    return PromptTokenizer(write_tokenizer_file(tmp_path_factory.mktemp("t") / "tokenizer.model"))


def stats_of(config: PolicyConfig) -> NormStats:
    groups = norm_stats_json(config)["norm_stats"]
    assert isinstance(groups, dict)
    vectors = {
        part: {name: np.array(values) for name, values in group.items()}
        for part, group in groups.items()
    }
    return NormStats(vectors["state"], vectors["actions"], "test")


def preprocessor(config: PolicyConfig, tokenizer: PromptTokenizer) -> Preprocessor:
    return Preprocessor(config, stats_of(config), tokenizer)


@pytest.mark.parametrize("name", ["vga", "hd", "square", "portrait", "exact"])
def test_resize_as_recorded(name: str) -> None:
    assert np.array_equal(resize_with_pad(RESIZED[f"{name}_in"], 224), RESIZED[f"{name}_resized"])


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 48))
def test_resize_keeps_the_aspect_and_pads_with_black(height: int, width: int, size: int) -> None:
    """A white image becomes a centred white rectangle of its own proportions."""
    out = resize_with_pad(np.full((height, width, 3), 255, np.uint8), size)
    assert out.shape == (size, size, 3) and set(np.unique(out)) <= {0, 255}
    rows, columns = np.flatnonzero(out.any((1, 2))), np.flatnonzero(out.any((0, 2)))
    scale = size / max(height, width)
    assert abs(len(rows) - height * scale) <= 1 and abs(len(columns) - width * scale) <= 1
    assert max(len(rows), len(columns)) >= size - 1


def test_pixels_are_rounded_as_in_the_original() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(PIXEL, every.astype(np.float32) / 255.0 * 2.0 - 1.0)


def test_a_present_camera_fills_its_slot_and_a_missing_one_is_black_and_masked(
    tokenizer: PromptTokenizer,
) -> None:
    seen = toy_observation()
    image = np.random.default_rng(3).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    one = dataclasses.replace(seen, images={"left_wrist_0_rgb": image})
    inputs = preprocessor(TINY, tokenizer)(one)
    assert inputs.image_mask.tolist() == [False, True]
    assert (inputs.images[0] == 0).all()
    assert np.array_equal(inputs.images[1], image.transpose(2, 0, 1))
    assert inputs.images.dtype == np.uint8 and inputs.tokens.dtype == np.int32


def test_frames_are_left_as_they_came_for_an_engine_that_resizes(
    tokenizer: PromptTokenizer,
) -> None:
    """In copies, since a subscription's image is not to be written to, and else the same inputs."""
    image = np.random.default_rng(3).integers(0, 256, (17, 31, 3), dtype=np.uint8)
    image.flags.writeable = False
    one = dataclasses.replace(toy_observation(), images={"left_wrist_0_rgb": image})
    transforms = preprocessor(TINY, tokenizer)
    kept, inputs = transforms(one, resize=False), transforms(one)
    missing, frame = kept.frames
    assert missing is None and frame is not None
    assert np.array_equal(frame, image) and not np.shares_memory(frame, image)
    assert kept.images.size == 0 and inputs.frames == ()
    square = dataclasses.replace(one, images={"base_0_rgb": np.ones((28, 28, 3), np.uint8)})
    assert transforms(square, resize=False).frames == (), "nothing to resize"
    tall = dataclasses.replace(one, images={"base_0_rgb": np.ones((31, 30, 3), np.uint8)})
    assert transforms(tall, resize=False).frames == (), "Pillow's order of passes is its own"
    assert np.array_equal(resized(kept.frames, 28), inputs.images)
    for name in ("image_mask", "tokens", "token_mask"):
        assert np.array_equal(getattr(kept, name), getattr(inputs, name))
    with pytest.raises(ValueError, match="this engine does not resize camera frames"):
        in_model_range(kept.images)


def test_the_normalised_state_is_in_the_prompt_where_the_config_says_so(
    tokenizer: PromptTokenizer,
) -> None:
    seen = toy_observation()
    moved = dataclasses.replace(seen, state=seen.state + 0.5)
    with_state, without = preprocessor(TINY, tokenizer), preprocessor(without_state(), tokenizer)
    assert not np.array_equal(with_state(seen).tokens, with_state(moved).tokens)
    assert np.array_equal(without(seen).tokens, without(moved).tokens)
    expected, _ = tokenizer.padded(seen.prompt, with_state.normalise_state(seen.state), 80)
    assert np.array_equal(with_state(seen).tokens, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"wrist": np.zeros((8, 8, 3), np.uint8)}}, r"unknown slots \['wrist'\]"),
        ({"images": {}}, r"wanted images for the slots .* got no image at all"),
        ({"images": {"base_0_rgb": np.zeros((8, 8, 3), np.float32)}}, "uint8 RGB .* got float32"),
        ({"images": {"base_0_rgb": np.zeros((3, 8, 8), np.uint8)}}, r"\[height, width, 3\], got"),
        ({"images": {"base_0_rgb": np.zeros((8, 8), np.uint8)}}, r"got \[8, 8\]"),
        ({"images": {"base_0_rgb": None}}, "uint8 RGB .* got NoneType"),
        ({"images": {"base_0_rgb": np.zeros((0, 8, 3), np.uint8)}}, r"got \[0, 8, 3\]"),
        ({"state": np.zeros(5, np.float32)}, r"state of 4 values .* got shape \(5,\)"),
        ({"state": np.array([0, np.nan, 0, np.inf], np.float32)}, r"not finite at index \[1, 3\]"),
        ({"prompt": "word " * 40}, r"takes \d+ tokens, the model has room for 80"),
    ],
)
@pytest.mark.parametrize("config", [TINY, without_state()], ids=["state in prompt", "without"])
def test_wrong_observations_are_refused(
    tokenizer: PromptTokenizer, config: PolicyConfig, change: dict[str, object], message: str
) -> None:
    wrong: Observation = dataclasses.replace(toy_observation(), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        preprocessor(config, tokenizer)(wrong)


def test_a_tokenizer_of_another_checkpoint_is_refused(tokenizer: PromptTokenizer) -> None:
    small = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, vocab_size=100))
    with pytest.raises(ValueError, match="the model embeds 100"):
        preprocessor(small, tokenizer)


FINITE = st.floats(-50, 50, width=32)


@given(
    hnp.arrays(np.float64, (6, 3), elements=FINITE),
    hnp.arrays(np.float32, 4, elements=FINITE),
    st.sampled_from(["quantile", "zscore"]),
)
def test_actions_survive_normalising_and_back(
    tokenizer: PromptTokenizer, actions: np.ndarray, state: np.ndarray, normalisation: str
) -> None:
    config = dataclasses.replace(TINY, normalisation=normalisation)  # type: ignore[arg-type]
    transforms = preprocessor(config, tokenizer)
    normalised = transforms.normalise_actions(actions, state)
    assert normalised.shape == (6, 32) and not normalised[:, 3:].any()
    assert np.allclose(transforms.unnormalise(normalised, state), actions, atol=2e-4)


@given(hnp.arrays(np.float32, 4, elements=FINITE), hnp.arrays(np.float32, 4, elements=FINITE))
def test_relative_actions_move_with_the_state_and_absolute_ones_do_not(
    tokenizer: PromptTokenizer, state: np.ndarray, shift: np.ndarray
) -> None:
    transforms = preprocessor(TINY, tokenizer)
    actions = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    there = transforms.unnormalise(actions, state + shift)
    moved = there - transforms.unnormalise(actions, state)
    assert np.allclose(moved, np.tile([shift[0], shift[1], 0.0], (6, 1)), atol=1e-4)
    assert np.array_equal(there[:, 2], transforms.unnormalise(actions, state)[:, 2])


@pytest.fixture(scope="module")
def recorded_stats(tmp_path_factory: pytest.TempPathFactory) -> NormStats:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "assets" / "recorded").mkdir(parents=True)
    shutil.copy(GOLDEN / "preprocess" / "norm_stats.json", folder / "assets" / "recorded")
    return load_norm_stats(folder, "recorded")


def test_actions_are_unnormalised_as_recorded(recorded_stats: NormStats) -> None:
    """The recorded statistics have seven action dimensions; openpi leaves the padding alone."""
    recorded = np.load(GOLDEN / "preprocess" / "normalize.npz")
    affine = recorded_stats.affine("actions", "quantile", 7)
    ours = affine.unnormalise(recorded["actions"][:, :7])
    assert np.allclose(ours, recorded["actions_unnormalized"][:, :7], rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalisation", ["quantile", "zscore"])
def test_states_are_normalised_as_recorded(recorded_stats: NormStats, normalisation: str) -> None:
    recorded = np.load(GOLDEN / "preprocess" / "normalize.npz")
    ours = recorded_stats.affine("state", normalisation, 8).normalise(recorded["state"])
    assert np.allclose(ours, recorded[normalisation], rtol=1e-12, atol=0)


@given(hnp.arrays(np.float64, (5, 14), elements=st.floats(-1.5, 1.5)))
def test_aloha_units_survive_both_ways(actions: np.ndarray) -> None:
    assert np.allclose(aloha.actions_to_robot(aloha.actions_to_model(actions)), actions)


def test_aloha_joints_turn_the_other_way_where_they_should() -> None:
    turned = np.array([0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0], bool)
    arm = [i for i in range(14) if i not in aloha.GRIPPERS]
    converted = aloha.state_to_model(np.full(14, 0.3))
    assert np.allclose(converted[arm], np.where(turned, -0.3, 0.3)[arm])


def test_aloha_grippers_become_angles_of_the_servo() -> None:
    """Closed is the lower end of the command range; fully open the linkage is straight."""
    state = np.zeros(14)
    state[13] = 1.0
    low, high = aloha.MODEL_RAD
    closed, opened = aloha.state_to_model(state)[[6, 13]] * (high - low) + low
    assert closed == pytest.approx(aloha.COMMAND_RAD[0], abs=1e-3)
    assert opened == pytest.approx(np.pi / 2, abs=1e-2)


def test_aloha_actions_are_relative_in_the_models_own_units(tokenizer: PromptTokenizer) -> None:
    config = dataclasses.replace(
        NAMED["pi05_aloha"], model=TINY.model, camera_slots=TINY.camera_slots
    )
    transforms = preprocessor(config, tokenizer)
    state = np.random.default_rng(0).uniform(0, 1, 14).astype(np.float32)
    wanted = np.random.default_rng(1).uniform(-1, 1, (6, 14))
    normalised = transforms.normalise_actions(wanted, state)
    assert np.allclose(transforms.unnormalise(normalised, state), wanted, atol=1e-5)
    still = transforms.normalise_actions(np.tile(state, (6, 1)).astype(np.float64), state)
    zero = stats_of(config).affine("actions", "quantile", 14).normalise(np.zeros(14))
    joints = [i for i in range(14) if i not in aloha.GRIPPERS]
    assert np.allclose(still[:, joints], zero[joints], atol=1e-5)
