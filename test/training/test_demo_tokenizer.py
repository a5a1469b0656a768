"""The demo's tokenizer: fixed pieces, the same file every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from thor_policy_ros.model.named_configs import DEMO
from thor_policy_ros.model.tokenizer import prompt_text
from thor_policy_ros.training.demo_tokenizer import build_demo_tokenizer, write_demo_tokenizer
from thor_policy_ros.training.prompts import instruction_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=build_demo_tokenizer())


def test_it_is_the_committed_one(tmp_path: Path) -> None:
    written = write_demo_tokenizer(tmp_path / "new" / "tokenizer.model").read_bytes()
    assert written == (ROOT / "checkpoints" / "demo" / "tokenizer.model").read_bytes()
    assert written == build_demo_tokenizer()


def test_its_size_is_the_models(processor: sentencepiece.SentencePieceProcessor) -> None:
    assert processor.vocab_size() == DEMO.model.vocab_size


def test_control_pieces_are_paligemmas(processor: sentencepiece.SentencePieceProcessor) -> None:
    ids = (processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id())
    assert ids == (0, 1, 2, 3)


@pytest.mark.parametrize("state", [[-3.0] * 5, [0.0, 0.1, -0.1, 0.999, 7.0]])
def test_every_instruction_is_whole_words_and_numbers(
    processor: sentencepiece.SentencePieceProcessor, state: list[float]
) -> None:
    for instruction in instruction_rows():
        tokens = processor.encode(prompt_text(instruction, state), add_bos=True)
        assert not any(processor.is_byte(t) or processor.is_unknown(t) for t in tokens)
        assert len(tokens) <= 14


def test_any_other_text_survives_in_bytes(
    processor: sentencepiece.SentencePieceProcessor,
) -> None:
    text = "Task: öffne die Klappe 7!, State: 12 -1;\nAction: "
    tokens = processor.encode(text)
    assert not any(processor.is_unknown(t) for t in tokens)
    assert processor.decode(tokens) == text
