"""Passes requests that ask for tools or a format on to a model that is served alone.

The proxy's own writing knows neither, but such a model's server may. Its answer comes back as it
is, without a trace.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson

from proxy.api.acceptance import OF_REQUESTS
from proxy.api.service import Service
from proxy.api.sse import DONE, Outbox
from proxy.backends.base import Call, PlainChat
from proxy.backends.clock import UpstreamClock
from proxy.complaints import shortened
from proxy.core.types import Author
from proxy.engine.served_model import check_candidates
from proxy.engine.upstream import Upstream
from proxy.engine.usage import Usage
from proxy.errors import RequestError, code_of
from proxy.options import OptionsError, template_kwargs
from proxy.tracing.attributes import INPUT_TOKENS, OUTPUT_TOKENS, of_request

_ASKING = ("tools", "functions", "response_format")
# A server that is asked for more candidates than it has tokens may die.
_MOST_CANDIDATES = 1000
_CANDIDATES = ("logprobs", "top_logprobs", "prompt_logprobs", "top_logprobs_num", "n_probs")
_SCHEMAS = {*_ASKING, "metadata"}
_INT64 = 2**63
# Servers keep their numbers in tensors of 32 bits, and end where one does not fit.
_INT32 = 2**31
_MOST_DIGITS = 10
# Templates and programs. vLLM takes a template in the template's variables, too.
_CODE = {"chat_template", "custom_logit_processor", "kv_transfer_params", "logits_processors"}
_TEXT = ("function.arguments", "function_call.arguments")
# Fields by which a server fetches pictures, files, adapters or other servers' caches.
_ADDRESS = re.compile(
    r"(?:^|[._])(?:host|port|addr|address|ip|url|uri|endpoint|path)s?(?:\[\d+\])*$",
    re.IGNORECASE,
)


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
        with self.service.admission.admit(self.num_choices), self._observed() as call:
            return await self.service.within_deadline(self._answer(call))

    async def stream(self, outbox: Outbox) -> None:
        """Send the server's chunks as they come."""
        with self.service.admission.admit(self.num_choices), self._observed() as call:
            await self.service.within_deadline(self._send_chunks(outbox, call))

    @contextmanager
    def _observed(self) -> Iterator[Call]:
        """Keep the call on one replica, count it by the way that it ends, and give it a span."""
        tracer, request_id = self.service.tracer, self.call.session_id
        error: BaseException | None = None
        try:
            with (
                self.call.stay.kept(),
                tracer.start(of_request("chat", self.name, request_id, "plain")) as span,
            ):
                yield replace(self.call, span=span)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.service.metrics.plain_call(self.name, code_of(error))

    async def _answer(self, call: Call) -> dict[str, Any]:
        async with self.upstream.writing.held(call.span):
            reply = await self.chat.complete(self.body, call)
        self._count(reply, call)
        return {**reply, "model": self.name}

    async def _send_chunks(self, outbox: Outbox, call: Call) -> None:
        async with (
            self.upstream.writing.held(call.span),
            aclosing(self.chat.stream(self.body, call)) as chunks,
        ):
            async for chunk in chunks:
                self._count(chunk, call)
                outbox.put(b"data: %s\n\n" % orjson.dumps({**chunk, "model": self.name}))
                await outbox.has_room()
        outbox.put(DONE)

    def _count(self, reply: Mapping[str, Any], call: Call) -> None:
        """Count what the server says that it wrote; a stream may leave that out."""
        usage = reply.get("usage") or {}
        if num_tokens := usage.get("completion_tokens"):
            spent = Usage()
            spent.count_call(self.author, usage.get("prompt_tokens", 0))
            spent.count_tokens(self.author, num_tokens)
            self.service.metrics.usage(self.name, spent, None)
            call.span.set({INPUT_TOKENS: spent.prompt_tokens, OUTPUT_TOKENS: num_tokens})


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
    _check(body, upstream)
    author: Author = "student" if model.pair.student else "teacher"
    call = Call(request_id, clock)
    return PlainCall(service, str(name), author, upstream, upstream.chat, body, num_choices, call)


def _check(body: Mapping[str, Any], upstream: Upstream) -> None:
    """Refuse what harms a model's server, or what has it ask others for something."""
    try:
        orjson.dumps(body)
    except TypeError as error:
        raise RequestError(f"the body cannot be passed on: {error}") from error
    for name, value in body.items():
        if name in _CODE and value:
            message = f"{name} cannot be passed on: the model's server would run it"
            raise RequestError(message, param=name)
        for number in value if isinstance(value, list) else (value,):
            if isinstance(number, int | float):
                _check_number(name, number, upstream)
        for token in _token_ids(name, value):
            _check_token(token, upstream, name)
    variables = body.get("chat_template_kwargs")
    try:
        template_kwargs(variables if isinstance(variables, dict) else {}, None)
    except OptionsError as error:
        raise RequestError(str(error), param=error.field) from error
    places = [(name, value) for name, value in body.items() if name not in _SCHEMAS]
    if (place := _address_in(places)) is not None:
        message = f"{shortened(place)} cannot be passed on: the model's server would go there"
        raise RequestError(message, param=shortened(place))


def _check_number(name: str, number: float, upstream: Upstream) -> None:
    """Refuse a number that no server has a use for, because some die of it."""
    param = shortened(name)
    if name in _CANDIDATES:
        if number > _MOST_CANDIDATES:
            raise RequestError(f"{name} must be at most {_MOST_CANDIDATES}", param=name)
        check_candidates(number, upstream, name)
    if not -_INT64 <= number < _INT64:
        raise RequestError(f"{param} must be below 2^63", param=param)
    if name != "seed" and not -_INT32 <= number < _INT32:
        raise RequestError(f"{param} must be below 2^31", param=param)


def _token_ids(name: str, value: object) -> Iterable[object]:
    if name == "logit_bias" and isinstance(value, dict):
        return value
    return value if name.endswith("token_ids") and isinstance(value, list) else ()


def _check_token(token: object, upstream: Upstream, param: str) -> None:
    """Raise `RequestError` if a number, or a key of digits, is no token of the upstream's model."""
    most, digits = upstream.limits.vocabulary, str(token)
    is_number = len(digits) <= _MOST_DIGITS and digits.isascii() and digits.isdecimal()
    if not is_number or int(digits) >= (most or _INT32):
        about = f"upstream '{upstream.name}'" + (f", which has {most}" if most else "")
        message = f"{param} must name tokens of {about}, not {shortened(digits)}"
        raise RequestError(message, param=param)


def _address_in(items: Iterable[tuple[str, object]]) -> str | None:
    """Return the path of a field that holds an address or names a file; None without one.

    Pictures and files in messages may come as `data:`. What a model called a tool with is text.
    """
    waiting = list(items)
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{path}.{name}", part) for name, part in value.items()]
            waiting += [(place, part) for place, part in inner if not place.endswith(_TEXT)]
        elif isinstance(value, list):
            if any(isinstance(part, dict | list) for part in value):
                waiting += [(f"{path}[{index}]", part) for index, part in enumerate(value)]
            elif value and _ADDRESS.search(path):
                return path
        elif value and _ADDRESS.search(path) and not str(value).startswith("data:"):
            return path
    return None


def _asks(body: Mapping[str, Any]) -> bool:
    return any(
        body.get(field) is not None and OF_REQUESTS[field].asks(body[field], body)
        for field in _ASKING
    )
