from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.tokens.normal_form import NormalForm, may_be_rewritten, split_for

MARKS = st.sampled_from(["e", "\u0301", "\u0323", "x", "\u1100", "\u1161", "\u11a8", "é", " "])


@given(st.lists(MARKS, max_size=30).map("".join))
def test_no_part_of_a_split_text_is_rewritten(text: str) -> None:
    parts = split_for("NFC", text)
    assert "".join(parts) == text
    assert all(normalize("NFC", part) == part for part in parts)
    assert all(parts)


def test_a_text_in_its_normal_form_stays_whole() -> None:
    assert split_for("NFC", "café 数学 🚀") == ["café 数学 🚀"]
    assert not may_be_rewritten("café 数学 🚀")


@pytest.mark.parametrize(
    ("form", "text"), [("NFC", "\u212b"), ("NFKC", "x²"), ("NFKC", "ﬁ"), ("NFC", "a\u2126")]
)
def test_a_character_that_is_rewritten_alone_is_refused_by_its_number(
    form: NormalForm, text: str
) -> None:
    assert may_be_rewritten(text)
    with pytest.raises(ValueError, match=rf"rewrites U\+[0-9A-F]{{4}} \({form}\)"):
        split_for(form, text)
