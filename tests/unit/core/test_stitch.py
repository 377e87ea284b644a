import pytest

from proxy.core.params import Params
from proxy.core.stitch import stitch
from proxy.core.types import Span


def test_flawed_stitching_keeps_the_attempt_and_turns_after_it() -> None:
    out = stitch("Safe.\n\n", "Flawed.\n\n", "Better.", Params())
    assert out.text == "Safe.\n\nFlawed.\n\nHowever,\n\nBetter."
    assert out.spans == (
        Span("student", 0, 7),
        Span("flawed", 7, 16),
        Span("revise", 16, 26),
        Span("teacher", 26, 33),
    )


def test_clean_stitching_leaves_the_attempt_out() -> None:
    out = stitch("Safe.\n\n", "Flawed.\n\n", "Better.", Params(stitch="clean"))
    assert out.text == "Safe.\n\nBetter."
    assert out.spans == (Span("student", 0, 7), Span("teacher", 7, 14))


def test_an_empty_prefix_has_no_span() -> None:
    out = stitch("", "Flawed", "Better", Params())
    assert [span.role for span in out.spans] == ["flawed", "revise", "teacher"]


@pytest.mark.parametrize("ending", ["x", "x\n", "x\n\n"])
@pytest.mark.parametrize("beginning", ["y", "\ny", "\n\ny"])
def test_the_revise_token_has_exactly_one_blank_line_on_either_side(
    ending: str, beginning: str
) -> None:
    assert stitch("", ending, beginning, Params()).text == "x\n\nHowever,\n\ny"


def test_newlines_that_were_written_are_never_removed() -> None:
    out = stitch("", "x\n\n\n", "\n\n\ny", Params(revise="Wait,"))
    assert out.text == "x\n\n\nWait,\n\n\ny"


def test_the_prefix_ends_the_line_where_the_attempt_is_a_newline_only() -> None:
    assert stitch("x\n", "\n", "y", Params()).text == "x\n\nHowever,\n\ny"
