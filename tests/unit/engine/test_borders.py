"""Places at which every tokenizer cuts, and the text that decides where a step's tokens end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.base import Segment
from proxy.engine.borders import (
    MAX_AHEAD,
    NEWLINES,
    Piece,
    ahead_of,
    behind_of,
    divided,
    newlines_end_tokens,
)

TEXTS = st.text("ab .\n/>")


@pytest.mark.parametrize(
    ("before", "after", "ahead"),
    [
        ("So.\n\n", "", None),
        ("So.\n\n", "  x", None),
        ("So.\n\n", "  x y", "  x "),
        ("So.\n\n", "\n\nx", "\n\nx"),
        ("So.\n\n", "So", ""),
        ("x\n", "y", ""),
        ("x\n", "", None),
        ("x\n", "\n", None),
        ("x\n", "    y", None),
        ("x\n", "    y z", "    y "),
        ("x\n", "// y", "// "),
        ("a. ", "So", None),
        ("a. ", "So we", "So "),
        ("a.", " So", ""),
        ("<b>", " </b>", None),
        ("a.", "b" * (MAX_AHEAD - 1), None),
        ("a.", "b" * MAX_AHEAD + "c", "b" * MAX_AHEAD),
    ],
)
def test_the_text_after_a_step_decides_as_soon_as_it_shows_a_cut(
    before: str, after: str, ahead: str | None
) -> None:
    assert ahead_of(before, after, blank_lines_end=False) == ahead


@pytest.mark.parametrize("after", ["", "  x", "\n", "// y"])
def test_no_text_decides_where_every_blank_line_ends_a_token(after: str) -> None:
    assert ahead_of("So.\n\n", after, blank_lines_end=True) == ""
    assert ahead_of("So.\n", after, blank_lines_end=True) != ""


@pytest.mark.parametrize("joined", ["", "\n\n", "\n ", "\n\t", "\n/", "\n\u3000"])
def test_newlines_end_tokens_unless_a_token_has_text_after_one(joined: str) -> None:
    spelt = [Segment(char, (ord(char),)) for char in NEWLINES]
    for start in range(len(NEWLINES) - 1):
        if joined and "".join(NEWLINES[start : start + 2]) == joined:
            spelt[start] = Segment(NEWLINES[start], ())
    assert newlines_end_tokens(spelt) is not bool(joined)


@given(TEXTS, TEXTS, TEXTS, st.booleans())
def test_later_text_changes_no_decision(before: str, after: str, later: str, ends: bool) -> None:
    found = ahead_of(before, after, blank_lines_end=ends)
    assert found is None or ahead_of(before, after + later, blank_lines_end=ends) == found


@pytest.mark.parametrize(
    ("texts", "after", "behind"),
    [
        (["a. "], "So", " "),
        (["o ", "we ", "So "], "on", " "),
        (["th", "e ", "So "], "r", " th"),
        (["x\n"], "y", ""),
        (["a."], " So", ""),
        ([], "So", ""),
        (["b" * 300], "c", "b" * 256),
    ],
)
def test_a_step_s_first_token_is_sought_from_the_last_cut(
    texts: list[str], after: str, behind: str
) -> None:
    assert behind_of(texts, after) == behind


@pytest.mark.parametrize(
    ("text", "borders", "pieces"),
    [
        ("x\ny\n", [2, 4], [Piece("x\n"), Piece("y\n")]),
        ("So we go", [3, 6], [Piece("So"), Piece(" we go", (1, 4))]),
        ("a b c d", [2], [Piece("a"), Piece(" b", (1,)), Piece(" c d")]),
        ("a b c d", [2, 6], [Piece("a"), Piece(" b", (1,)), Piece(" c"), Piece(" d", (1,))]),
        ("abc", [1, 2, 3], [Piece("abc", (1, 2))]),
        ("abc", [0], [Piece("abc")]),
    ],
)
def test_a_text_is_divided_at_borders_that_are_cuts(
    text: str, borders: list[int], pieces: list[Piece]
) -> None:
    assert divided(text, borders) == pieces


@given(st.text("ab .\n/>", max_size=80), st.text("ab .\n/>", max_size=4))
def test_the_last_cut_is_the_one_that_a_search_of_the_whole_text_finds(
    before: str, after: str
) -> None:
    cuts = [
        place
        for place in range(1, len(before) + 1)
        if ahead_of(before[:place], (before + after)[place:] + "x", blank_lines_end=False) == ""
        and (before + after)[place : place + 1]
    ]
    assert behind_of([before], after) == before[cuts[-1] if cuts else 0 :]


@given(TEXTS, st.data())
def test_the_pieces_are_the_text_and_every_border_lies_in_one_or_between_two(
    text: str, data: st.DataObject
) -> None:
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = divided(text, borders)
    assert "".join(part for piece in pieces for part in piece.parts) == text
    ends, start = {0}, 0
    for piece in pieces:
        for part in piece.parts:
            assert part
            start += len(part)
            ends.add(start)
    assert set(borders) <= ends
