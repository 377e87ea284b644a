import pytest

from proxy.core.params import Params
from proxy.core.stitch import quality, stitch
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


def flags(
    text: str = "x",
    flawed: tuple[str, ...] = ("B b.\n\n", "C c.\n\n"),
    correction: str | None = "Right.",
    *,
    in_thought: bool = False,
) -> tuple[str, ...]:
    return quality(text, flawed, correction, ".\n\n", in_thought=in_thought)


@pytest.mark.parametrize("blank", ["", " ", "\n\n", " \n\t\u3000"])
def test_a_correction_without_a_word_is_empty(blank: str) -> None:
    assert flags(correction=blank) == ("empty_correction",)


@pytest.mark.parametrize(
    "correction",
    [
        "B b.\n\nRight.",
        "B b.",
        "\n\nC c.\n\n",
        "Hm.\n\nB  b.\n\nRight.",
        "B b. And so on",
        "Right.\n\nC c.",
    ],
)
def test_a_correction_that_has_a_flawed_step_word_for_word_repeats_it(correction: str) -> None:
    assert flags(correction=correction) == ("repeated_step",)


@pytest.mark.parametrize(
    ("flawed", "correction"),
    [
        (("B b.\n\n",), "Bb.\n\n"),
        (("B b.\n\n",), "b.\n\nB.\n\n"),
        (("B b.\n\n",), "Not B b.\n\n"),
        (("B",), "Bb"),
        (("\n\n",), "\n\nRight."),
        ((), "B b.\n\n"),
    ],
)
def test_other_words_repeat_nothing(flawed: tuple[str, ...], correction: str) -> None:
    assert flags(flawed=flawed, correction=correction) == ()


def test_where_nothing_was_to_be_corrected_nothing_is_missing() -> None:
    assert flags(flawed=(), correction=None) == ()


@pytest.mark.parametrize(
    ("text", "in_thought", "expected"),
    [
        ("<think>a</think>b", False, ()),
        ("a</think>b", True, ()),
        ("a</think>b", False, ()),
        ("no thought", False, ()),
        ("<think>a", False, ("thought_left_open",)),
        ("a", True, ("thought_left_open",)),
        ("", True, ("thought_left_open",)),
        ("<think>a</think>b</think>c", False, ("thought_closed_twice",)),
        ("a</think>b</think>", True, ("thought_closed_twice",)),
        ("<think>a<think>b</think>c", False, ("thought_opened_twice",)),
        ("<think>a</think>b", True, ("thought_opened_twice",)),
        (
            "<think>a</think><think>b</think>",
            False,
            ("thought_opened_twice", "thought_closed_twice"),
        ),
        ("<think>a</think>b<think>", False, ("thought_opened_twice", "thought_left_open")),
        ("<thinking>a < think></ think>", False, ()),
    ],
)
def test_a_thought_is_opened_once_and_closed_once(
    text: str, in_thought: bool, expected: tuple[str, ...]
) -> None:
    assert flags(text, in_thought=in_thought) == expected


def test_all_that_is_wrong_is_named_once() -> None:
    assert flags("<think></think></think><think>", correction="") == (
        "empty_correction",
        "thought_opened_twice",
        "thought_closed_twice",
        "thought_left_open",
    )
