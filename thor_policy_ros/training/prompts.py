"""Prompt tokens of whole batches on the device: words looked up, state bins filled in.

The runtime writes and tokenises one prompt at a time; a batch of a thousand is made here
by a table of every instruction with slots for the state's numbers. Same tokens, as tested.
"""

from __future__ import annotations

import sentencepiece
import torch
from torch import Tensor

from thor_policy_ros.sim.instructions import COLOURS, SHAPES, VERBS, instruction_text

NOUNS = (*SHAPES, "object")
NUM_BINS = 256
BLANK = 0
"""Row of the blank instruction in the table."""


def instruction_rows() -> list[str]:
    """Every instruction, the blank one first, in the order of `instruction_row`."""
    spoken = range(len(VERBS) - 1)
    return [
        "",
        *(
            instruction_text(verb, colour, noun)
            for verb in spoken
            for colour in range(len(COLOURS))
            for noun in NOUNS
        ),
    ]


def instruction_row(verb: Tensor, colour: Tensor, noun: Tensor) -> Tensor:
    """Row of each instruction: verb, colour, noun are int[B]; noun indexes NOUNS."""
    return 1 + (verb * len(COLOURS) + colour) * len(NOUNS) + noun


def state_bins(state: Tensor) -> Tensor:
    """f32[B,S] normalised -> int64[B,S] in -1..255, as `digitize(s, linspace(-1,1,257)[:-1]) - 1`.

    The edges are float64, as NumPy's are.
    """
    edges = torch.linspace(-1, 1, NUM_BINS + 1, dtype=torch.float64, device=state.device)[:-1]
    return torch.bucketize(state.double(), edges, right=True) - 1


class PromptTable:
    """Token rows of every instruction; `tokens` fills the state in.

    tokenizer: a serialised sentencepiece model; state_dim: numbers in a prompt;
    max_token_len: padded length L.
    """

    def __init__(self, tokenizer: bytes, state_dim: int, max_token_len: int, device: str) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
        rows = [_row(processor, text, state_dim, max_token_len) for text in instruction_rows()]
        self._words = torch.tensor([words for words, _ in rows], device=device)
        self._slots = torch.tensor([slots for _, slots in rows], device=device)
        numbers = [processor.piece_to_id(f"▁{bin_}") for bin_ in range(-1, NUM_BINS)]
        self._numbers = torch.tensor(numbers, device=device)

    def tokens(self, row: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """row: int[B]; state: f32[B,S] normalised. Returns tokens int64[B,L], mask bool[B,L]."""
        numbers = self._numbers[state_bins(state) + 1]
        tokens = self._words[row].scatter(1, self._slots[row], numbers)
        return tokens, tokens != 0


def _row(
    processor: sentencepiece.SentencePieceProcessor, text: str, state_dim: int, length: int
) -> tuple[list[int], list[int]]:
    """Padded tokens of one instruction at bins 0, and where its numbers are."""
    prompt = f"Task: {text}, State: {' '.join(['0'] * state_dim)};\nAction: "
    tokens = processor.encode(prompt, add_bos=True)
    number = processor.piece_to_id("▁0")
    slots = [i for i, token in enumerate(tokens) if token == number]
    if len(slots) != state_dim or len(tokens) > length:
        raise ValueError(
            f"the prompt {prompt!r} should hold {state_dim} number tokens and at most {length}"
            f" in all; it holds {len(slots)} of {len(tokens)}"
        )
    return tokens + [0] * (length - len(tokens)), slots
