"""Texts are cut where they spell control tokens, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.tokens.control_text import LearntControls, cut


def split_control(text: str) -> list[str]:
    """Cut a text at the control tokens of known families, before any server was asked."""
    return cut(text, LearntControls(families=True).starts(text))


@given(st.text("a<|im_end>/s "))
def test_text_split_at_control_tokens_is_the_text(text: str) -> None:
    parts = split_control(text)
    assert "".join(parts) == text
    assert all(parts)


@pytest.mark.parametrize("control", ["<|im_end|>", "</s>", "<eos>", "<start_of_turn>"])
def test_no_part_holds_a_control_token(control: str) -> None:
    assert split_control(f"x{control}{control}y") == ["x<", f"{control[1:]}<", f"{control[1:]}y"]


def test_text_without_control_tokens_is_not_split() -> None:
    for text in ("1 < 2 and a|b > 3", "<div>", "<|", "x"):
        assert split_control(text) == [text]
