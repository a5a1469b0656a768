"""Words are bounded and cleaned before anything else sees them."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.instruction_text import MAX_CHARACTERS, clean_instruction


@given(st.text(max_size=2 * MAX_CHARACTERS))
def test_any_text_is_one_clean_line_or_refused(text: str) -> None:
    cleaned, refusal = clean_instruction(text)
    assert bool(refusal) == (len(text) > MAX_CHARACTERS)
    assert cleaned.isprintable() and cleaned == " ".join(cleaned.split())
    assert not any(unicodedata.category(c)[0] == "C" for c in cleaned)
    assert len(cleaned) <= MAX_CHARACTERS
    assert clean_instruction(cleaned) == (cleaned, "")


def test_ordinary_words_stay_as_they_are() -> None:
    for text in ("pick up the red cube", "nimm den grünen Würfel", "赤いブロック", ""):
        assert clean_instruction(text) == (text, "")


def test_control_characters_do_not_join_words() -> None:
    assert clean_instruction("pick\nup\x00the\x1b[2Jcube")[0] == "pick up the [2Jcube"
