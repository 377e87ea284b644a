"""Streams of real servers, with an event a token and with several tokens in an event."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from motab.demo import demo_questions
from proxy.backends.base import Call, Context, Draft, Message, Question, Sampling, Segment
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from tests.servers.real import MODEL, Real

STREAMS = {"vllm": 1, "sglang": 1, "sglang8": 8, "student": 1, "teacher": 8}
"""The tokens in an event of each server; more where the reader is late."""
OF_SMOLLM2 = ("vllm", "sglang", "sglang8")
CALL = Call("s")


class Written:
    """A whole stream."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self.text = "".join(piece for draft in drafts for piece in draft.pieces)
        self.num_tokens = sum(len(draft.pieces) for draft in drafts)
        self.most_in_an_event = max(len(draft.pieces) for draft in drafts)
        self.end = drafts[-1].end


@asynccontextmanager
async def connected(real: Real) -> AsyncIterator[Vllm | SGLang]:
    async with real.client() as client:
        yield await real.connect(client)


async def written(
    server: Vllm | SGLang, prompt: Segment, max_tokens: int, sampling: Sampling
) -> Written:
    drafts = [draft async for draft in server.write(Context(prompt), sampling, max_tokens, CALL)]
    return Written(drafts)


def greedy(*stop: str, special_tokens: bool = False) -> Sampling:
    return Sampling(0.0, stop=stop, special_tokens=special_tokens)


async def question_of(real: Real, server: Vllm | SGLang) -> Segment:
    text = "Count from 7 to 30." if real.model == MODEL else demo_questions()[0].messages[0].content
    return await server.render(Question((Message("user", text),)), CALL)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_has_the_tokens_of_an_answer_that_does_not_stream(
    servers: dict[str, Real], name: str
) -> None:
    async with connected(servers[name]) as server:
        prompt = await question_of(servers[name], server)
        streamed = await written(server, prompt, 40, greedy())
        whole = await server.decode(Context(prompt), 40, CALL)
    text = "".join(piece.text for piece in whole.pieces)
    assert streamed.text == text
    assert streamed.num_tokens == sum(len(piece.token_ids) for piece in whole.pieces) > 20
    assert streamed.most_in_an_event >= STREAMS[name]


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stop_string_ends_the_text_before_it(servers: dict[str, Real], name: str) -> None:
    async with connected(servers[name]) as server:
        prompt = await question_of(servers[name], server)
        whole = await written(server, prompt, 40, greedy())
        for start, length in ((5, 1), (12, 2), (17, 5)):
            stop = whole.text[start : start + length]
            stopped = await written(server, prompt, 40, greedy("never", stop))
            assert stopped.text == whole.text[: whole.text.index(stop)]
            assert stopped.end == "stop"
        # Its beginning comes again and again, and is text at the end.
        almost = await written(server, prompt, 40, greedy(whole.text[-1] + "never"))
    assert (almost.text, almost.num_tokens, almost.end) == (
        whole.text,
        whole.num_tokens,
        whole.end,
    )


@pytest.mark.parametrize("name", OF_SMOLLM2)
async def test_special_tokens_are_text_only_where_they_are_asked_for(
    servers: dict[str, Real], name: str
) -> None:
    turns = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>user\nHo<|im_end|>"
    async with connected(servers[name]) as server:
        prompt = await server.markup(turns, CALL)
        hidden = await written(server, prompt, 6, greedy())
        shown = await written(server, prompt, 6, greedy(special_tokens=True))
    assert shown.text.startswith("\n<|im_start|>assistant")
    assert shown.text.replace("<|im_start|>", "") == hidden.text
    assert shown.num_tokens == hidden.num_tokens == 6


@pytest.mark.parametrize("name", OF_SMOLLM2)
async def test_half_a_character_is_no_text(servers: dict[str, Real], name: str) -> None:
    line = "So 🚀 é 12\n"
    async with connected(servers[name]) as server:
        prompt = await server.markup(line * 6, CALL)
        cuts = [await written(server, prompt, limit, greedy()) for limit in range(1, 10)]
    for num_tokens, cut in enumerate(cuts, start=1):
        assert line.startswith(cut.text)
        assert (cut.num_tokens, cut.end) == (num_tokens, "length")
    assert cuts[-1].text == line


async def test_all_servers_of_a_model_write_the_same_text(servers: dict[str, Real]) -> None:
    texts = set()
    for name in OF_SMOLLM2:
        async with connected(servers[name]) as server:
            prompt = await server.markup("Count: 7, 8, 9,", CALL)
            texts.add((await written(server, prompt, 40, greedy())).text)
    assert len(texts) == 1
