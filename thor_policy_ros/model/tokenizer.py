"""From an instruction (and the state) to the prompt tokens of pi0.5."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import I32, Bool

FILE_NAMES = ("tokenizer.model", "paligemma_tokenizer.model")
STATE_BIN_EDGES = np.linspace(-1, 1, 256 + 1)[:-1]
WHERE_TO_GET_IT = (
    "get the PaliGemma sentencepiece model and put it into the checkpoint folder as"
    " tokenizer.model, or pass its path as `tokenizer`. It is"
    " gs://big_vision/paligemma_tokenizer.model"
    " (https://storage.googleapis.com/big_vision/paligemma_tokenizer.model), which openpi"
    " caches as ~/.cache/openpi/big_vision/paligemma_tokenizer.model, and `tokenizer.model` of"
    " google/paligemma-3b-pt-224 on the Hugging Face hub, which LeRobot uses"
)


class PromptTooLongError(ValueError):
    """The prompt has more tokens than the model was built for."""


def clean_instruction(text: str) -> str:
    """Strip, and turn underscores and newlines into spaces, as in training."""
    return text.strip().replace("_", " ").replace("\n", " ")


def state_bins(state: npt.NDArray[Any]) -> list[int]:
    """Normalised state f[S] to 256 bins over [-1,1]: -1 below the range, 255 from its end on."""
    return [int(b) for b in np.digitize(state, bins=STATE_BIN_EDGES) - 1]


def prompt_text(instruction: str, state: npt.NDArray[Any] | None) -> str:
    """The text that is tokenised; `state` is normalised, None where the config leaves it out."""
    cleaned = clean_instruction(instruction)
    if state is None:
        return cleaned
    return f"Task: {cleaned}, State: {' '.join(map(str, state_bins(state)))};\nAction: "


def find_tokenizer(folder: Path | str, explicit: Path | str | None = None) -> Path:
    """The tokenizer file: `explicit`, else in the checkpoint folder, else in openpi's cache.

    Raises FileNotFoundError that says where the file can be had.
    """
    if explicit is not None:
        places = [Path(explicit)]
    else:
        # A user without a home has none of it, which Path.expanduser would raise for.
        cache = Path(os.path.expanduser(os.environ.get("OPENPI_DATA_HOME", "~/.cache/openpi")))
        places = [Path(folder) / name for name in FILE_NAMES]
        places.append(cache / "big_vision" / "paligemma_tokenizer.model")
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        looked = ", ".join(str(p) for p in places)
        raise FileNotFoundError(f"no tokenizer file; looked for {looked}; {WHERE_TO_GET_IT}")
    return found


class PromptTokenizer:
    """A sentencepiece model with pi0.5's prompt rules. Not tied to a thread."""

    def __init__(self, path: Path | str) -> None:
        import sentencepiece

        if not Path(path).is_file():
            raise FileNotFoundError(f"no tokenizer file {path}; {WHERE_TO_GET_IT}")
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._newline: list[int] = self._pieces.encode("\n")
        self._encode = lru_cache(maxsize=64)(self._encode_text)

    @property
    def vocab_size(self) -> int:
        return int(self._pieces.vocab_size())

    def tokens(self, instruction: str, state: npt.NDArray[Any] | None) -> tuple[int, ...]:
        """Token ids with BOS. Without a state the newline is encoded on its own, at the end."""
        text = self._encode(prompt_text(instruction, state))
        return text if state is not None else (*text, *self._newline)

    def padded(
        self, instruction: str, state: npt.NDArray[Any] | None, length: int
    ) -> tuple[I32, Bool]:
        """Tokens i32[length], right-padded with 0, and their mask.

        Raises PromptTooLongError: cutting the end would cut the state and the answer mark.
        """
        ids = self.tokens(instruction, state)
        if len(ids) > length:
            raise PromptTooLongError(
                f"the prompt takes {len(ids)} tokens, the model has room for {length};"
                f" shorten the instruction {instruction[:60]!r}"
            )
        tokens = np.zeros(length, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(length) < len(ids)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._pieces.encode(text, add_bos=True))
