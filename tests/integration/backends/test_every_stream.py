"""Holds every kind of server to one reading of streams: what says nothing changes nothing."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import pytest

from proxy.errors import UpstreamMalformed
from tests.support.replay import Replay
from tests.support.servers.contract import (
    QUIET_COMPLETIONS,
    WritingContract,
    drafts_of,
)
from tests.support.servers.every import WRITING, over, over_cases
from tests.support.servers.litellm import OWN_WARNINGS

pytestmark = OWN_WARNINGS

BOM = b"\xef\xbb\xbf"
# A library of others reads the events of hosted servers.
READ_HERE = {kind: server for kind, server in WRITING.items() if server.odd_events}
COMPLETIONS = {kind: server for kind, server in WRITING.items() if kind in {"vllm", "openai"}}


def with_events(between: bytes) -> Callable[[bytes], bytes]:
    return lambda body: between + body.replace(b"\n\n", b"\n\n" + between)


REWRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "empty data": with_events(b"data:\n\n"),
    "blank data": with_events(b"data: \n\n"),
    "a comment": with_events(b": ping\n\n"),
    "an id and a name": with_events(b"id: 7\nevent: message\nretry: 10\n"),
    "a byte order mark": lambda body: BOM + body,
    "line ends of two characters": lambda body: body.replace(b"\n", b"\r\n"),
    "line ends of old": lambda body: body.replace(b"\n", b"\r"),
    "no line end at the end": lambda body: body.rstrip(b"\n"),
}


@over_cases(READ_HERE, lambda _: REWRITTEN)
async def test_a_stream_is_read_the_same_in_every_legal_form(
    up: Replay, server: WritingContract, case: Callable[[bytes], bytes]
) -> None:
    for stream in server.streams.values():
        whole = await drafts_of(up, server, stream.body, asked=stream.asked)
        body = case(stream.body)
        assert await drafts_of(up, server, body, asked=stream.asked) == whole
        alone = [body[i : i + 1] for i in range(min(len(body), 400))] + [body[400:]]
        assert await drafts_of(up, server, *alone, asked=stream.asked) == whole


@over_cases(COMPLETIONS, lambda _: QUIET_COMPLETIONS)
async def test_an_event_that_says_nothing_changes_nothing(
    up: Replay, server: WritingContract, case: bytes
) -> None:
    stream = next(iter(server.streams.values()))
    whole = await drafts_of(up, server, stream.body, asked=stream.asked)
    body = stream.body.replace(b"\n\n", b"\n\ndata: " + case + b"\n\n", 2)
    assert await drafts_of(up, server, body, asked=stream.asked) == whole


@over(WRITING)
async def test_text_after_the_end_is_refused(up: Replay, server: WritingContract) -> None:
    stream = next(iter(server.streams.values()))
    events = stream.body.removesuffix(b"\n\n").split(b"\n\n")
    text = next(event for event in events if re.search(rb'"(text|content)": ?"[^"]', event))
    where = len(events) - (events[-1] == b"data: [DONE]")
    body = b"\n\n".join([*events[:where], text, *events[where:], b""])
    with pytest.raises(UpstreamMalformed):
        await drafts_of(up, server, body, asked=stream.asked)


async def test_an_end_that_comes_twice_does_not_replace_the_text_before_it(up: Replay) -> None:
    server = WRITING["sglang"]
    stream = next(iter(server.streams.values()))
    *_, end, done = stream.body.removesuffix(b"\n\n").split(b"\n\n")
    body = b"\n\n".join([end, end, done, b""])
    with pytest.raises(UpstreamMalformed):
        await drafts_of(up, server, body, asked=stream.asked)


@dataclass(frozen=True)
class Word:
    """A finish reason of some server, and what it means."""

    written: str
    means: str


WORDS = [
    Word("eos", "stop"),
    Word("stop_sequence", "stop"),
    Word("tool_calls", "stop"),
    Word("content_filter", "content_filter"),
    Word("SAFETY", "content_filter"),
    Word("max_tokens", "length"),
    Word("model_length", "length"),
    Word("tired", "stop"),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.written)
@over(COMPLETIONS)
async def test_every_word_for_the_end_of_a_text_is_understood(
    up: Replay, server: WritingContract, word: Word
) -> None:
    (stream, *_) = (one for one in server.streams.values() if one.end == "length")
    body = stream.body.replace(b'"length"', orjson.dumps(word.written))
    assert body != stream.body
    drafts = await drafts_of(up, server, body, asked=stream.asked)
    assert drafts[-1].end == word.means


@over(COMPLETIONS)
async def test_a_missing_text_is_no_word(up: Replay, server: WritingContract) -> None:
    stream = next(iter(server.streams.values()))
    whole = await drafts_of(up, server, stream.body, asked=stream.asked)
    null = stream.body.replace(b'"text":""', b'"text":null')
    assert await drafts_of(up, server, null, asked=stream.asked) == whole
    pieces = "".join(piece for draft in whole for piece in draft.pieces)
    assert "None" not in pieces
