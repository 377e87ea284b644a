import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.params import Delimiters
from proxy.core.segmenter import Segmenter, split_steps
from proxy.core.types import Step

PIECES = st.lists(
    st.sampled_from(["a", ".", "\n", ".\n", "\n\n", ".\n\n", "é", "", "x.\n\ny", "```\n", "\n``"])
)


def several(*texts: str, keep_code: bool = False) -> Delimiters:
    return Delimiters(any=texts, keep_code=keep_code)


def feed_all(segmenter: Segmenter, pieces: list[str]) -> list[Step]:
    return [step for piece in pieces for step in segmenter.feed(piece)]


def unlimited(delimiter: str = ".\n\n") -> Segmenter:
    return Segmenter(delimiter, 10_000, 10_000)


def test_a_delimiter_split_over_tokens_ends_the_step_that_it_belongs_to() -> None:
    segmenter = unlimited()
    assert feed_all(segmenter, ["One", ".", "\n", "\n", "Two"]) == [Step("One.\n\n", 4)]
    assert segmenter.close() == [Step("Two", 1)]


def test_a_token_that_straddles_two_steps_counts_for_the_one_it_ends_in() -> None:
    segmenter = unlimited()
    assert feed_all(segmenter, ["One", ".\n\nTwo", "."]) == [Step("One.\n\n", 1)]
    assert segmenter.close() == [Step("Two.", 2)]


def test_one_token_may_end_several_steps() -> None:
    assert unlimited().feed("a.\n\nb.\n\n") == [Step("a.\n\n", 0), Step("b.\n\n", 1)]


def test_delimiters_do_not_overlap() -> None:
    segmenter = unlimited("aa")
    assert feed_all(segmenter, ["a"] * 5) == [Step("aa", 2), Step("aa", 2)]
    assert segmenter.close() == [Step("a", 1)]


def test_an_empty_step_does_not_exist() -> None:
    segmenter = unlimited()
    assert feed_all(segmenter, ["x.\n\n"]) == [Step("x.\n\n", 1)]
    assert segmenter.close() == []


def test_a_step_is_cut_at_its_token_cap_and_its_author_does_not_know() -> None:
    segmenter = Segmenter(".\n\n", 3, 100)
    assert feed_all(segmenter, ["a", "b", "c"]) == [Step("abc", 3)]
    assert segmenter.exhausted
    assert segmenter.step_was_cut


def test_a_delimiter_at_the_cap_ends_the_step_without_cutting_it() -> None:
    segmenter = Segmenter(".\n\n", 2, 100)
    assert feed_all(segmenter, ["a", ".\n\n"]) == [Step("a.\n\n", 2)]
    assert not segmenter.exhausted


def test_the_trajectory_is_cut_at_the_total_cap() -> None:
    segmenter = Segmenter(".\n\n", 100, 3)
    assert feed_all(segmenter, ["a.\n\n", "b", "c"]) == [Step("a.\n\n", 1), Step("bc", 2)]
    assert segmenter.exhausted
    assert not segmenter.step_was_cut


def test_tokens_of_half_a_character_are_counted() -> None:
    segmenter = unlimited()
    assert feed_all(segmenter, ["", "", "\U0001f680", ".\n\n"]) == [Step("\U0001f680.\n\n", 4)]


@given(PIECES)
def test_the_steps_joined_are_the_text(pieces: list[str]) -> None:
    segmenter = unlimited()
    steps = feed_all(segmenter, pieces) + segmenter.close()
    assert "".join(step.text for step in steps) == "".join(pieces)
    assert all(step.text for step in steps)


@given(PIECES)
def test_a_whole_text_is_split_as_its_tokens_are(pieces: list[str]) -> None:
    segmenter = unlimited()
    steps = feed_all(segmenter, pieces) + segmenter.close()
    assert split_steps("".join(pieces), ".\n\n") == [step.text for step in steps]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", ".", "\n", "\n\n", ".\n\n", "b.", "", "\n.", "```", "`"]))
    ),
    st.integers(1, 12),
    st.integers(1, 30),
    st.sampled_from([".\n\n", several("\n", "b.", "``", keep_code=True), several("\n\n", "a")]),
)
def test_pieces_taken_at_once_are_the_same_as_one_by_one(
    batches: list[list[str]],
    max_step_tokens: int,
    max_total_tokens: int,
    delimiter: str | Delimiters,
) -> None:
    plain = Segmenter(delimiter, max_step_tokens, max_total_tokens)
    batched = Segmenter(delimiter, max_step_tokens, max_total_tokens)
    for batch in batches:
        steps: list[Step] = []
        for piece in batch:
            steps += plain.feed(piece)
            if plain.exhausted:
                break
        assert batched.feed_all(batch) == steps
        assert batched.total_tokens == plain.total_tokens
        assert (batched.open_text(), batched.exhausted) == (plain.open_text(), plain.exhausted)
        if plain.exhausted:
            return
    assert batched.close() == plain.close()


def test_the_delimiter_that_is_complete_first_ends_the_step() -> None:
    assert split_steps("一。二?\n\nthree. four", several("\n\n", "。", ". ")) == [
        "一。",
        "二?\n\n",
        "three. ",
        "four",
    ]
    # One that begins with another never ends a step.
    assert split_steps("a.\n\nb", several(".", ".\n\n")) == ["a.", "\n\nb"]


def test_two_delimiters_share_no_character() -> None:
    assert split_steps("aab", several("aa", "ab")) == ["aa", "b"]


CODE = "So:\n\n```python\nx = 1\n\ny = 2\n```\n\nDone.\n\n"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (CODE, ["So:\n\n", "```python\nx = 1\n\ny = 2\n```\n\n", "Done.\n\n"]),
        ("~~~\na\n\n```\n\n~~~\n\nb", ["~~~\na\n\n```\n\n~~~\n\n", "b"]),
        # A shorter fence, one with words after it, or one that is indented by four ends nothing.
        (
            "````\n```\n\n```` x\n\n    ````\n\n````\n\nb",
            ["````\n```\n\n```` x\n\n    ````\n\n````\n\n", "b"],
        ),
        ("   ```\na\n\n```\n\nb", ["   ```\na\n\n```\n\n", "b"]),
        # Code in a line of text is none that is fenced, wherever in the line it is.
        ("a ```\n\nb", ["a ```\n\n", "b"]),
        ("```a```\n\nb", ["```a```\n\n", "b"]),
        ("    ```\n\nb", ["    ```\n\n", "b"]),
        # A fence that is never closed keeps everything together.
        ("```\na\n\nb\n\n", ["```\na\n\nb\n\n"]),
    ],
)
def test_fenced_code_is_never_cut(text: str, steps: list[str]) -> None:
    assert split_steps(text, several("\n\n", keep_code=True)) == steps
    assert "".join(steps) == text


def test_code_may_begin_in_the_text_before() -> None:
    ends = several("\n\n", keep_code=True)
    assert split_steps("b\n\nc\n```\n\nd", ends, before="```\na") == ["b\n\nc\n```\n\n", "d"]
    assert split_steps("b\n\nc", ends, before="a ```\n\n") == ["b\n\n", "c"]


def test_a_step_in_code_is_cut_at_its_cap() -> None:
    segmenter = Segmenter(several("\n\n", keep_code=True), 3, 100)
    assert feed_all(segmenter, ["```\n", "a", "\n\n", "b"]) == [Step("```\na\n\n", 3)]
    assert segmenter.exhausted
    assert segmenter.last_is_open


ENDS = [
    several("\n\n", ".", keep_code=True),
    several("\n", "b.", "``", keep_code=True),
    several("\n", "b.", ".\n\n"),
]


@given(PIECES, st.sampled_from(ENDS))
def test_several_delimiters_cut_a_whole_text_as_its_tokens(
    pieces: list[str], ends: Delimiters
) -> None:
    segmenter = Segmenter(ends, 10_000, 10_000)
    steps = feed_all(segmenter, pieces) + segmenter.close()
    assert split_steps("".join(pieces), ends) == [step.text for step in steps]
