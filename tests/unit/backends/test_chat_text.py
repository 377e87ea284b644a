import pytest

from proxy.backends.base import Call, Message, Question
from proxy.backends.servers.chat_text import ChatText, CountingReader, counted_pieces, seam_of
from proxy.errors import RequestError
from tests.support.scripted import ScriptedBackend

CALL = Call("trajectory")


def joined(so_far: str, *parts: tuple[str, str], keep: bool = True) -> str:
    text = ChatText(so_far, keep_reasoning=keep)
    return "".join(text.feed(reasoning, content) for reasoning, content in parts)


def test_a_begun_answer_is_sent_without_the_whitespace_at_its_end() -> None:
    assert seam_of("One.\n\nTwo.\n\n") == "One.\n\nTwo."


@pytest.mark.parametrize("first", ["\n\nThree", " \nThree", "Three"])
def test_whitespace_that_the_text_has_already_is_not_written_twice(first: str) -> None:
    assert joined("Two.\n\n", ("", first[:1]), ("", first[1:]), ("", " x")) == "Three x"


@pytest.mark.parametrize(
    ("so_far", "answer", "text"),
    [
        ("def f():\n    return 1.\n\n", "    x = 1\n    y = 2", "    x = 1\n    y = 2"),
        ("Code:\n", "    indented", "    indented"),
        ("Code:\n", "\n    indented", "    indented"),
        ("Code:\n", "\tindented", "\tindented"),
        ("Code:\n", "  - a point", "  - a point"),
        ("One.\n\n", " Two", "Two"),
        ("One. ", " Two", "Two"),
        ("One. ", "\n\n  Two", "\n\n  Two"),
        ("One. ", " \nTwo", "\nTwo"),
        ("One.\n", "\n\n", ""),
    ],
)
def test_indentation_stays(so_far: str, answer: str, text: str) -> None:
    assert joined(so_far, ("", answer)) == text
    assert joined(so_far, *(("", character) for character in answer)) == text


def test_where_nothing_was_cut_off_whitespace_is_text() -> None:
    assert joined("", ("", "\n"), ("", " One")) == "\n One"
    assert joined("Tw", ("", " o")) == " o"


def test_thoughts_stand_in_think_tags_before_the_answer() -> None:
    parts = (("Is it", ""), (" 42?", ""), ("", "It "), ("", "is."))
    assert joined("", *parts) == "<think>\nIs it 42?\n</think>\n\nIt is."
    assert joined("", *parts, keep=False) == "It is."


def test_thoughts_and_answer_may_come_in_one_part() -> None:
    assert joined("", ("Hm.", "It is.")) == "<think>\nHm.\n</think>\n\nIt is."


def test_thoughts_that_go_on_with_begun_ones_open_none() -> None:
    assert joined("<think>\nIs it", (" 42?", ""), ("", "Yes.")) == " 42?\n</think>\n\nYes."
    assert joined("<think>\na</think>\n\nOne. ", ("b", ""), ("", "c")) == (
        "<think>\nb\n</think>\n\nc"
    )


def test_an_answer_that_goes_on_with_begun_thoughts_closes_none_by_itself() -> None:
    assert joined("<think>\nIs it", ("", " 42?\n</think>\n\nYes.")) == " 42?\n</think>\n\nYes."


@pytest.mark.parametrize("text", ["Hi.\n\nOne  two\n", " x", "\n\n", "a\tb \n c", "😀"])
async def test_a_text_is_cut_into_as_many_pieces_as_its_words_have_tokens(text: str) -> None:
    pieces = await counted_pieces(text, ScriptedBackend(), CALL)  # a character is a token
    assert "".join(pieces) == text
    assert len(pieces) == len(text)


async def test_no_piece_holds_a_steps_end_and_more() -> None:
    pieces = await counted_pieces("One.\n\nTwo", ScriptedBackend(), CALL)
    assert [piece for piece in pieces if piece] == ["One.", "\n\n", "Two"]


async def test_a_raw_prompt_is_refused_where_only_messages_can_be_sent() -> None:
    reader = CountingReader("hosted", ScriptedBackend())
    with pytest.raises(RequestError, match="upstream 'hosted' takes messages only") as refusal:
        await reader.render(Question(prompt="Q"), CALL)
    assert refusal.value.param == "prompt"
    rendered = await reader.render(Question((Message("user", "Q"),)), CALL)
    assert len(rendered.token_ids) == len("<user>Q<answer>")
