"""The demo's prompt tokenizer: a small sentencepiece model made of fixed pieces.

The demo's prompts are built from a dozen words and the numbers of the discretised state,
so every word and number is one piece and a prompt stays near 15 tokens. Anything else
falls back to bytes: no text is unknown. Ids of the control pieces are PaliGemma's.
"""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

FRAME_PIECES = ("\n", "Task:", ",▁State:", ";\nAction:▁", "▁", ",", ".")
WORDS = (
    *("pick", "up", "follow", "the"),
    *("red", "green", "blue", "yellow"),
    *("cube", "ball", "cylinder", "object"),
)
STATE_BINS = range(-1, 256)  # -1: below the first bin (transforms.py does not clip)


def pieces() -> list[str]:
    """Every user-defined piece, in the order of its id."""
    numbers = [f"▁{bin_}" for bin_ in STATE_BINS]
    return [*FRAME_PIECES, *numbers, *(f"▁{word}" for word in WORDS)]


def build_demo_tokenizer() -> bytes:
    """The serialised sentencepiece model; the same bytes on every call."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a"]),
        model_writer=model,
        model_type="char",
        vocab_size=4 + 256 + len(pieces()) + 1,  # control, bytes, pieces, the sentence's letter
        user_defined_symbols=pieces(),
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_demo_tokenizer(path: Path) -> Path:
    """Write the tokenizer to `path` and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(build_demo_tokenizer())
    return path
