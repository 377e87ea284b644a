"""Passes requests that ask for tools or a format on to a model that is served alone.

The proxy's own writing knows neither, but such a model's server may. Its answer comes back as it
is, without a trace.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.api.acceptance import OF_REQUESTS
from proxy.api.service import Service
from proxy.api.sse import DONE, Outbox
from proxy.backends.base import Call, PlainChat, UpstreamClock
from proxy.complaints import shortened
from proxy.core.types import Author
from proxy.engine.served_model import check_candidates
from proxy.engine.upstream import Upstream
from proxy.engine.usage import Usage
from proxy.errors import RequestError

_ASKING = ("tools", "functions", "response_format")
# A server that is asked for more candidates than it has tokens may die.
_MOST_CANDIDATES = 1000
_CANDIDATES = ("logprobs", "top_logprobs", "prompt_logprobs", "top_logprobs_num", "n_probs")
_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class PlainCall:
    """A request for a model's server, as the client sent it."""

    service: Service
    name: str
    author: Author
    upstream: Upstream
    chat: PlainChat
    body: dict[str, Any]
    num_choices: int
    call: Call

    @property
    def is_stream(self) -> bool:
        return self.body.get("stream") is True

    async def complete(self) -> dict[str, Any]:
        """Return the server's answer, under our name of the model."""
        with self.service.admission.admit(self.num_choices):
            return await self.service.within_deadline(self._answer())

    async def stream(self, outbox: Outbox) -> None:
        """Send the server's chunks as they come."""
        with self.service.admission.admit(self.num_choices):
            await self.service.within_deadline(self._send_chunks(outbox))

    async def _answer(self) -> dict[str, Any]:
        async with self._place():
            reply = await self.chat.complete(self.body, self.call)
        self._count(reply)
        return {**reply, "model": self.name}

    async def _send_chunks(self, outbox: Outbox) -> None:
        async with self._place(), aclosing(self.chat.stream(self.body, self.call)) as chunks:
            async for chunk in chunks:
                self._count(chunk)
                outbox.put(b"data: %s\n\n" % orjson.dumps({**chunk, "model": self.name}))
                await outbox.has_room()
        outbox.put(DONE)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Hold a place among the texts that the server writes."""
        place = self.upstream.writing.ask(continues=False)
        try:
            await place
            yield
        finally:
            self.upstream.writing.leave(place)

    def _count(self, reply: Mapping[str, Any]) -> None:
        """Count what the server says that it wrote; a stream may leave that out."""
        usage = reply.get("usage") or {}
        if num_tokens := usage.get("completion_tokens"):
            spent = Usage()
            spent.count_call(self.author, usage.get("prompt_tokens", 0))
            spent.count_tokens(self.author, num_tokens)
            self.service.metrics.usage(self.name, spent, None)


def plain_call(
    service: Service, content: bytes, request_id: str, clock: UpstreamClock
) -> PlainCall | None:
    """Return the call for a body that asks for tools or a format; None if it does not, or if its
    model's server cannot be asked alone.

    Raises `RequestError` for fields that a plain call cannot have.
    """
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict) or not _asks(body):
        return None
    name = body.get("model")
    model = service.models.get(name) if isinstance(name, str) else None
    if model is None or (model.pair.student and model.pair.teacher):
        return None
    upstream = model.pair.visible
    if upstream.chat is None:
        return None
    if body.pop("motab", None):
        message = "motab has no effect on tools and formats, which the model's server alone answers"
        raise RequestError(message, param="motab")
    num_choices = body.get("n") or 1
    most = service.config.max_n
    if not isinstance(num_choices, int) or not 1 <= num_choices <= most:
        raise RequestError(f"n must be a number from 1 to {most} here", param="n")
    _check_numbers(body, upstream)
    author: Author = "student" if model.pair.student else "teacher"
    call = Call(request_id, clock)
    return PlainCall(service, str(name), author, upstream, upstream.chat, body, num_choices, call)


def _check_numbers(body: Mapping[str, Any], upstream: Upstream) -> None:
    """Refuse numbers that no server has a use for, because some die of them."""
    for name, value in body.items():
        if not isinstance(value, int | float):
            continue
        if name in _CANDIDATES and value > _MOST_CANDIDATES:
            raise RequestError(f"{name} must be at most {_MOST_CANDIDATES}", param=name)
        if name in _CANDIDATES:
            check_candidates(value, upstream, name)
        if not -_INT64 <= value < _INT64:
            raise RequestError(f"{shortened(name)} must be below 2^63", param=shortened(name))


def _asks(body: Mapping[str, Any]) -> bool:
    return any(
        body.get(field) is not None and OF_REQUESTS[field].asks(body[field], body)
        for field in _ASKING
    )
