"""The operator's words, before a tokenizer sees them."""

from __future__ import annotations

import unicodedata

MAX_CHARACTERS = 1000  # the longest prompt of pi0.5 has 200 tokens


def clean_instruction(text: str) -> tuple[str, str]:
    """The words in one line, and '' or why they are refused.

    Control and format characters become spaces, runs of spaces one. Words that are too long are
    refused rather than cut: half an instruction is another one.
    """
    if len(text) > MAX_CHARACTERS:
        return "", (
            f"instruction of {len(text)} characters is refused (at most {MAX_CHARACTERS}); "
            "the one before goes on"
        )
    plain = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)
    return " ".join(plain.split()), ""
