"""Prompts are written and cut into tokens by the rules that pi0.5 was trained with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import GOLDEN
from support.toy_checkpoint import write_tokenizer

from thor_policy_ros.model.tokenizer import (
    PromptTokenizer,
    PromptTooLongError,
    find_tokenizer,
    prompt_text,
    state_bins,
)

PROMPTS = json.loads((GOLDEN / "preprocess" / "prompts.json").read_text())
BOS = 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    return PromptTokenizer(write_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer.model"))


@pytest.mark.parametrize("recorded", PROMPTS, ids=lambda p: p["task"].strip())
def test_prompt_text_as_recorded(recorded: dict[str, object]) -> None:
    state = recorded["state"]
    text = prompt_text(str(recorded["task"]), None if state is None else np.array(state))
    assert text == recorded["text"]


@given(st.integers(-3000, 3000))
def test_bins_are_256_equal_steps_from_minus_one(multiple: int) -> None:
    """Multiples of 1/1024 are exact in binary, the edges of the bins among them."""
    value = multiple / 1024
    (found,) = state_bins(np.array([value]))
    assert found == min(max((multiple + 1024) // 8, -1), 255)


def test_with_a_state_the_prompt_is_one_text_after_bos(tokenizer: PromptTokenizer) -> None:
    state = np.zeros(2)
    tokens = tokenizer.tokens("open the_drawer\n", state)
    assert tokens[0] == BOS and BOS not in tokens[1:]
    pieces = tokenizer._pieces.decode(list(tokens))
    assert pieces == "Task: open the drawer, State: 128 128;\nAction: "


def test_without_a_state_the_newline_is_encoded_on_its_own(tokenizer: PromptTokenizer) -> None:
    newline = tuple(tokenizer._pieces.encode("\n"))
    tokens = tokenizer.tokens("stack", None)
    assert tokens == (BOS, *tokenizer._pieces.encode("stack"), *newline)


def test_padding_is_zeros_on_the_right(tokenizer: PromptTokenizer) -> None:
    used = len(tokenizer.tokens("stack", None))
    tokens, mask = tokenizer.padded("stack", None, 20)
    assert mask.tolist() == [True] * used + [False] * (20 - used)
    assert not tokens[used:].any() and tokens.dtype == np.int32


def test_a_prompt_that_fits_exactly_is_taken_and_one_more_token_is_not(
    tokenizer: PromptTokenizer,
) -> None:
    used = len(tokenizer.tokens("stack", None))
    assert tokenizer.padded("stack", None, used)[1].all()
    with pytest.raises(PromptTooLongError, match=f"takes {used} tokens, .* room for {used - 1}"):
        tokenizer.padded("stack", None, used - 1)


def test_the_tokenizer_is_looked_for_in_the_folder_then_in_openpis_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "big_vision" / "paligemma_tokenizer.model"
    cached.parent.mkdir(parents=True)
    write_tokenizer(cached)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert find_tokenizer(folder) == cached
    own = write_tokenizer(folder / "tokenizer.model")
    assert find_tokenizer(folder) == own
    assert find_tokenizer(folder, cached) == cached


def test_a_missing_tokenizer_says_where_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as missing:
        find_tokenizer(tmp_path)
    message = str(missing.value)
    assert str(tmp_path / "tokenizer.model") in message
    assert "gs://big_vision/paligemma_tokenizer.model" in message
    assert "google/paligemma-3b-pt-224" in message
    with pytest.raises(FileNotFoundError, match=r"nowhere\.model; get the PaliGemma"):
        find_tokenizer(tmp_path, tmp_path / "nowhere.model")


def test_the_checkpoints_own_is_found_by_a_user_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with `user: 1234`."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("OPENPI_DATA_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 61234)
    own = write_tokenizer(tmp_path / "tokenizer.model")
    assert find_tokenizer(tmp_path) == own
    own.unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        find_tokenizer(tmp_path)
