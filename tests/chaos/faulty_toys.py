"""Serves toy models that answer a share of all calls wrongly, in as many ways as servers have."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from tests.support.toy_servers import Toy

HTML: Final = "<html><body><h1>502 Bad Gateway</h1></body></html>"
_TOKENIZE: Final = ("/tokenize", "/v1/tokenize")
_PROBABILITIES: Final = {
    "prompt_logprobs",
    "logprobs",
    "input_token_logprobs",
    "input_top_logprobs",
    "output_top_logprobs",
    "completion_probabilities",
}


@dataclass
class Call:
    """A call that a fault is about to meet, and the right answer to it."""

    request: web.Request
    events: list[bytes]
    streams: bool
    draw: random.Random

    @property
    def is_tokenizing(self) -> bool:
        return self.request.path in _TOKENIZE

    async def send(
        self,
        parts: list[bytes],
        *,
        size: int | None = None,
        pause: bool = False,
        **headers: str,
    ) -> web.StreamResponse:
        """A response of these parts; a `size` may be a lie."""
        response = web.StreamResponse(headers={k.replace("_", "-"): v for k, v in headers.items()})
        response.content_length = size
        await response.prepare(self.request)
        for part in parts:
            await response.write(part)
            if pause:
                await asyncio.sleep(0)
        return response

    def abort(self) -> web.StreamResponse:
        if self.request.transport is not None:
            self.request.transport.abort()
        return web.Response()

    def some(self) -> list[bytes]:
        return self.events[: self.draw.randrange(len(self.events) + 1)]

    def half(self) -> list[bytes]:
        """Some events, and a part of the next."""
        cut = self.draw.randrange(len(self.events))
        last = self.events[cut]
        return [*self.events[:cut], last[: self.draw.randrange(len(last))]]

    def twice(self) -> list[bytes]:
        """All events, and one of them a second time."""
        again = self.draw.randrange(len(self.events))
        return [*self.events[: again + 1], *self.events[again:]]

    async def changed(self, change: Callable[[Any], Any]) -> web.StreamResponse:
        """The right answer with every JSON value changed."""
        return await self.send([_changed(event, change) for event in self.events])


def _changed(event: bytes, change: Callable[[Any], Any]) -> bytes:
    start = b"data: " if event.startswith(b"data: ") else b""
    content = event.removeprefix(start)
    if content.startswith(b"[DONE]"):
        return event
    end = b"\n\n" if start else b""
    return start + json.dumps(change(json.loads(content))).encode() + end


def _walked(value: Any, change: Callable[[str, Any], Any]) -> Any:
    """The value with each field of each object replaced; a field that becomes ... is left out."""
    if isinstance(value, list):
        return [_walked(item, change) for item in value]
    if isinstance(value, dict):
        found = {key: change(key, _walked(item, change)) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not ...}
    return value


def _numbers(value: Any, number: Any) -> Any:
    """The value with every probability replaced."""
    if isinstance(value, float):
        return number
    if isinstance(value, list):
        return [_numbers(item, number) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item, number) for key, item in value.items()}
    return value


def _with_other_ids(key: str, value: Any) -> Any:
    """Each row of a score about another token than the one that was asked for."""
    if key == "prompt_logprobs":
        return [row and {str(int(i) + 5_000_000): x for i, x in row.items()} for row in value]
    if key == "input_token_logprobs":
        return [[x, i + 5_000_000, text] for x, i, text in value]
    if key == "completion_probabilities":
        return [{**row, "id": 5_000_000} if "id" in row else row for row in value]
    return value


def _of_probabilities(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: _walked(value, lambda k, v: change(v) if k in _PROBABILITIES else v)


def _without_last(value: Any) -> Any:
    return value[:-1] if isinstance(value, list) else value


def _pieces(content: bytes, draw: random.Random) -> Iterator[bytes]:
    while content:
        size = draw.randint(1, 40)
        yield content[:size]
        content = content[size:]


Meets = Callable[[Call], Any]


async def _stall(call: Call, parts: list[bytes]) -> web.StreamResponse:
    await call.send(parts)
    await asyncio.Event().wait()
    raise AssertionError


async def _raw(call: Call, content: bytes) -> web.StreamResponse:
    """These bytes in place of a response, and the end of the connection."""
    assert call.request.transport is not None
    call.request.transport.write(content)
    call.request.transport.close()
    return web.Response()


async def _silent(call: Call) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def _reset(call: Call) -> web.StreamResponse:
    return call.abort()


async def _dropped(call: Call, parts: list[bytes]) -> web.StreamResponse:
    await call.send(parts)
    return call.abort()


async def _dropped_at_length(call: Call) -> web.StreamResponse:
    whole = b"".join(call.events)
    await call.send([whole[: len(whole) // 2]], size=len(whole) + 7)
    return call.abort()


async def _status(_: Call, status: int, text: str = "not now", **headers: str) -> web.Response:
    kind = "text/html" if text == HTML else "text/plain"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, text=text, content_type=kind, headers=named)


FAILURE: Final = b'{"error": {"message": "out of memory", "code": 500}}'

ANY: Final[dict[str, Meets]] = {
    "reset": _reset,
    "dropped between events": lambda c: _dropped(c, c.some()),
    "dropped in an event": lambda c: _dropped(c, c.half()),
    "silence": _silent,
    "stall between events": lambda c: _stall(c, c.some()),
    "stall in an event": lambda c: _stall(c, c.half()),
    "an early end": lambda c: c.send(c.half()),
    "too short for its length": _dropped_at_length,
    "one byte after the other": lambda c: c.send(
        [bytes([b]) for b in b"".join(c.events)], pause=True
    ),
    "torn packets": lambda c: c.send([*_pieces(b"".join(c.events), c.draw)], pause=True),
    "broken chunks": lambda c: _raw(
        c, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
    ),
    "no HTTP": lambda c: _raw(c, b"\x15\x03\x01\x00\x02\x02\x16"),
    "a head without an end": lambda c: _raw(c, b"HTTP/1.1 200 OK\r\nContent-Type: text"),
    "408": lambda c: _status(c, 408),
    "429": lambda c: _status(c, 429, retry_after="0"),
    "500": lambda c: _status(c, 500),
    "502 and a page": lambda c: _status(c, 502, HTML),
    "503": lambda c: _status(c, 503, retry_after="0"),
    "504 and nothing": lambda c: _status(c, 504, ""),
    "200 and a page": lambda c: _status(c, 200, HTML),
    "200 and nothing": lambda c: _status(c, 200, ""),
    "200 and an error": lambda c: c.send([b"data: " + FAILURE + b"\n\n" if c.streams else FAILURE]),
    "a redirect": lambda c: _status(c, 302, location="http://127.0.0.1:9/"),
    "another content type": lambda c: c.send(c.events, content_type="text/plain"),
    "gzip that is none": lambda c: c.send(c.events, content_encoding="gzip"),
    "a byte order mark": lambda c: c.send([b"\xef\xbb\xbf", *c.events]),
    "half a character": lambda c: c.send([e.replace(b'"', b'\xf0\x9f"', 1) for e in c.events]),
    "null": lambda c: c.changed(lambda _: None),
    "a list": lambda c: c.changed(lambda value: [value]),
    "JSON without its end": lambda c: c.send([e.replace(b"}", b"", 1) for e in c.events]),
}
"""Faults that meet every call."""
PROBABILITIES: Final[dict[str, Meets]] = {
    "NaN": lambda c: c.changed(_of_probabilities(lambda v: _numbers(v, float("nan")))),
    "infinite": lambda c: c.changed(_of_probabilities(lambda v: _numbers(v, float("inf")))),
    "null probabilities": lambda c: c.changed(_of_probabilities(lambda v: _numbers(v, None))),
    "texts for numbers": lambda c: c.changed(_of_probabilities(lambda v: _numbers(v, "-0.5"))),
    "positive": lambda c: c.changed(_of_probabilities(lambda v: _numbers(v, 0.7))),
    "no probabilities": lambda c: c.changed(_of_probabilities(lambda _: ...)),
    "a row too few": lambda c: c.changed(_of_probabilities(_without_last)),
    "no rows": lambda c: c.changed(_of_probabilities(lambda v: type(v)())),
    "other tokens": lambda c: c.changed(lambda v: _walked(v, _with_other_ids)),
}
"""Faults that meet scores."""
STREAMS: Final[dict[str, Meets]] = {
    "an error as an event": lambda c: c.send([*c.some(), b"data: " + FAILURE + b"\n\n"]),
    "an error by its name": lambda c: c.send(
        [*c.some(), b"event: error\ndata: " + FAILURE + b"\n\n"]
    ),
    "an early [DONE]": lambda c: c.send([*c.some(), b"data: [DONE]\n\n"]),
    "a repeated [DONE]": lambda c: c.send([*c.events, b"data: [DONE]\n\n", b"data: [DONE]\n\n"]),
    "events after the end": lambda c: c.send([*c.events, *c.events[:1]]),
    "no usage": lambda c: c.changed(lambda v: {k: x for k, x in v.items() if k != "usage"}),
    "comments": lambda c: c.send([b": ping\n\n" + e for e in c.events]),
    "line ends of Windows": lambda c: c.send([e.replace(b"\n", b"\r\n") for e in c.events]),
}
"""Faults that meet streams."""
COUNTED_STREAMS: Final[dict[str, Meets]] = {"an event twice": lambda c: c.send(c.twice())}
"""Faults that meet streams whose events are counted: vLLM's and llama.cpp's events in the middle of
a text have nothing by which a second copy is known.
"""


@dataclass(slots=True)
class FaultyToy(Toy):
    """A toy that answers wrongly where `draw` says so."""

    draw: random.Random = field(default_factory=random.Random)
    share: float = 0.0
    met: Counter[str] = field(default_factory=Counter)

    async def answer(
        self, request: web.Request, events: list[bytes], *, streams: bool
    ) -> web.StreamResponse:
        if self.draw.random() >= self.share:
            return await Toy.answer(self, request, events, streams=streams)
        call = Call(request, events, streams, self.draw)
        possible = dict(ANY)
        if streams:
            possible |= STREAMS
            if self.kind == "sglang":
                possible |= COUNTED_STREAMS
        elif not call.is_tokenizing:
            possible |= PROBABILITIES
        name = self.draw.choice(sorted(possible))
        self.met[name] += 1
        try:
            response: web.StreamResponse = await possible[name](call)
        except ConnectionError:  # the proxy had seen enough
            return call.abort()
        return response
