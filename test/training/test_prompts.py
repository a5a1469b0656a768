"""Prompt tokens made by table are the runtime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thor_policy_ros.model import tokenizer as runtime
from thor_policy_ros.sim.instructions import COLOURS, FOLLOW, PICK_UP, instruction_text
from thor_policy_ros.training.demo_tokenizer import build_demo_tokenizer, write_demo_tokenizer
from thor_policy_ros.training.prompts import (
    BLANK,
    NOUNS,
    PromptTable,
    instruction_row,
    instruction_rows,
    state_bins,
)

LENGTH = 24


def test_tokens_are_those_of_the_runtime(tmp_path: Path) -> None:
    tokenizer = runtime.PromptTokenizer(write_demo_tokenizer(tmp_path / "tokenizer.model"))
    table = PromptTable(build_demo_tokenizer(), 5, LENGTH, "cpu")
    texts = instruction_rows()
    rng = np.random.default_rng(0)
    states = rng.uniform(-1.1, 1.1, (len(texts), 5)).astype(np.float32)
    tokens, mask = table.tokens(torch.arange(len(texts)), torch.from_numpy(states))
    for row, text in enumerate(texts):
        wanted_tokens, wanted_mask = tokenizer.padded(text, states[row], LENGTH)
        np.testing.assert_array_equal(tokens[row].numpy(), wanted_tokens, err_msg=text)
        np.testing.assert_array_equal(mask[row].numpy(), wanted_mask, err_msg=text)


def test_rows_are_numbered_as_listed() -> None:
    texts = instruction_rows()
    assert texts[BLANK] == ""
    for verb in (PICK_UP, FOLLOW):
        for colour in range(len(COLOURS)):
            for noun, word in enumerate(NOUNS):
                row = instruction_row(*(torch.tensor([i]) for i in (verb, colour, noun)))
                assert texts[int(row)] == instruction_text(verb, colour, word)


def test_bins_at_their_edges() -> None:
    edges = runtime.STATE_BIN_EDGES
    states = np.concatenate([edges, np.nextafter(edges, -2), [-1.5, 1.0, 1.5]])
    ours = state_bins(torch.from_numpy(states)[None])
    assert ours[0].tolist() == runtime.state_bins(states)


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 10"):
        PromptTable(build_demo_tokenizer(), 5, 10, "cpu")
