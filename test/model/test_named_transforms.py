"""The transforms of the published policies, whole: as recorded from openpi, or as its code says.

What is recorded: resized pictures, normalised states, prompts and unnormalised actions. Aloha's
conventions are written out again here, joint by joint, from openpi's `aloha_policy.py`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.golden import GOLDEN
from support.toy_checkpoint import write_tokenizer

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.named_configs import ALOHA, DROID, LIBERO
from thor_policy_ros.model.norm_stats import NormStats
from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.model.tokenizer import PromptTokenizer
from thor_policy_ros.model.transforms import Preprocessor
from thor_policy_ros.types import Observation

F64 = npt.NDArray[np.float64]
RESIZED = np.load(GOLDEN / "preprocess" / "resize.npz")
RECORDED = np.load(GOLDEN / "preprocess" / "normalize.npz")
PROMPTS = json.loads((GOLDEN / "preprocess" / "prompts.json").read_text())
STATS = json.loads((GOLDEN / "preprocess" / "norm_stats.json").read_text())["norm_stats"]


class Texts(PromptTokenizer):
    """Keeps the texts that are encoded."""

    texts: list[str]

    def _encode_text(self, text: str) -> tuple[int, ...]:
        self.texts.append(text)
        return super()._encode_text(text)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Texts:
    made = Texts(write_tokenizer(tmp_path / "tokenizer.model"))
    made.texts = []
    return made


def vectors(part: str, dims: int) -> dict[str, F64]:
    """Recorded statistics; dimensions beyond the recorded ones are those of the state."""
    held = {name: [*STATS[part][name], *STATS["state"][name] * 2][:dims] for name in STATS[part]}
    return {name: np.array(values, np.float64) for name, values in held.items()}


def preprocessor(config: PolicyConfig, tokenizer: PromptTokenizer) -> Preprocessor:
    state, actions = vectors("state", config.state_dim), vectors("actions", config.action_dim)
    return Preprocessor(config, NormStats(state, actions, "recorded"), tokenizer)


def observation(config: PolicyConfig, state: F64, prompt: str, *pictures: str) -> Observation:
    slots = dict(zip(config.camera_slots, pictures, strict=False))
    images = {slot: RESIZED[f"{picture}_in"] for slot, picture in slots.items()}
    return Observation(images, state, prompt, 0.0)


@pytest.mark.parametrize("config", [LIBERO, DROID, ALOHA], ids=lambda c: c.name)
def test_pictures_of_any_size_reach_their_inputs_as_recorded(
    config: PolicyConfig, tokenizer: Texts
) -> None:
    seen = observation(config, np.zeros(config.state_dim), "stack", "vga", "portrait")
    inputs = preprocessor(config, tokenizer)(seen)
    assert inputs.images.shape == (3, 3, 224, 224)
    assert inputs.image_mask.tolist() == [True, True, False]
    for index, name in enumerate(("vga", "portrait")):
        wanted = RESIZED[f"{name}_resized"].astype(np.float32) / 255.0 * 2.0 - 1.0
        assert np.array_equal(in_model_range(inputs.images[index]), wanted.transpose(2, 0, 1))
    assert (in_model_range(inputs.images[2]) == -1).all()


def test_libero_reads_words_alone(tokenizer: Texts) -> None:
    (recorded,) = [one for one in PROMPTS if one["state"] is None]
    transforms = preprocessor(LIBERO, tokenizer)
    for state in RECORDED["state"]:
        inputs = transforms(observation(LIBERO, state, recorded["task"], "vga", "hd"))
    assert set(tokenizer.texts) == {recorded["text"]}
    length = int(inputs.token_mask.sum())
    newline = tuple(inputs.tokens[length - 1 : length])
    assert newline == tuple(tokenizer._pieces.encode(recorded["then_separately"]))
    assert inputs.tokens.shape == (200,) and not inputs.tokens[length:].any()


def test_droid_reads_the_recorded_states_as_the_recorded_words(tokenizer: Texts) -> None:
    """Robot units to words: the recorded prompts hold the recorded states, normalised."""
    transforms, told = preprocessor(DROID, tokenizer), 0
    for raw, normalised in zip(RECORDED["state"], RECORDED["quantile"], strict=True):
        assert np.allclose(transforms.normalise_state(raw), normalised, rtol=1e-9, atol=1e-9)
        for one in PROMPTS:
            state = one["state"] or ()
            if len(state) == 8 and np.allclose(state, normalised, rtol=1e-9):
                transforms(observation(DROID, raw, one["task"], "vga", "hd"))
                assert tokenizer.texts[-1] == one["text"]
                told += 1
    assert told >= 2


@pytest.mark.parametrize("config", [LIBERO, DROID], ids=lambda c: c.name)
def test_libero_and_droid_give_actions_as_they_are_unnormalised(
    config: PolicyConfig, tokenizer: Texts
) -> None:
    """Whatever the state: nothing is added to them."""
    transforms = preprocessor(config, tokenizer)
    given = RECORDED["actions"].astype(np.float32)
    wanted = RECORDED["actions_unnormalized"][:, :7]
    for state in (np.zeros(8), RECORDED["state"][0]):
        commands = transforms.unnormalise(given, state)
        assert commands.shape == (10, config.action_dim) and commands.dtype == np.float32
        assert np.allclose(commands[:, :7], wanted, rtol=1e-5, atol=1e-5)


# Aloha, from openpi's aloha_policy.py

FLIPPED = (1, 2, 8, 9)  # shoulder and elbow of each arm
GRIPPERS = (6, 13)


def to_model(state: F64) -> F64:
    found = state.copy()
    for joint in FLIPPED:
        found[joint] *= -1
    for joint in GRIPPERS:
        metres = found[joint] * (0.05800 - 0.01844) + 0.01844
        sine = (0.022**2 + metres**2 - 0.036**2) / (2 * 0.022 * metres)
        found[joint] = (math.asin(max(-1.0, min(1.0, sine))) - 0.5476) / (1.6296 - 0.5476)
    return found


def to_robot(actions: F64) -> F64:
    found = actions.copy()
    for row in found:
        for joint in FLIPPED:
            row[joint] *= -1
        for joint in GRIPPERS:
            row[joint] = (row[joint] + 0.5476 + 0.6213) / (1.4910 + 0.6213)
    return found


def test_aloha_reads_its_state_in_the_models_units(tokenizer: Texts) -> None:
    state = np.random.default_rng(0).uniform(0, 1, 14)
    transforms, held = preprocessor(ALOHA, tokenizer), vectors("state", 14)
    wanted = (to_model(state) - held["q01"]) / (held["q99"] - held["q01"] + 1e-6) * 2 - 1
    assert np.allclose(transforms.normalise_state(state), wanted)
    transforms(observation(ALOHA, state, "fold_it", "vga", "hd", "square"))
    bins = np.digitize(wanted, np.linspace(-1, 1, 257)[:-1]) - 1
    words = " ".join(str(int(value)) for value in bins)
    assert tokenizer.texts == [f"Task: fold it, State: {words};\nAction: "]


def test_aloha_adds_the_state_where_actions_are_relative_and_speaks_its_own_units(
    tokenizer: Texts,
) -> None:
    """Unnormalise, add the state (not for grippers), then units: in this order."""
    random = np.random.default_rng(1)
    state, given = random.uniform(0, 1, 14), random.uniform(-1, 1, (50, 32)).astype(np.float32)
    held, seen = vectors("actions", 14), to_model(state)
    scale = held["q99"] - held["q01"] + 1e-6
    wanted = (given[:, :14].astype(np.float64) + 1) / 2 * scale + held["q01"]
    for joint in range(14):
        if joint not in GRIPPERS:
            wanted[:, joint] += seen[joint]
    commands = preprocessor(ALOHA, tokenizer).unnormalise(given, state)
    assert np.allclose(commands, to_robot(wanted), rtol=1e-5, atol=1e-5)
    assert commands.shape == (50, 14)
