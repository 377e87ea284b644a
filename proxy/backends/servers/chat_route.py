"""Passes chat requests on to a server's own chat route, and its answers back.

API: https://platform.openai.com/docs/api-reference/chat/create, with whatever the server adds to
it. The server decides what it accepts; its refusals of a request are the client's.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import orjson

from proxy.backends.base import Call
from proxy.backends.tokens.wire_values import error_in
from proxy.backends.transport.http import DONE, UpstreamClient
from proxy.errors import RequestError, UpstreamRefused

_PATH = "/v1/chat/completions"
_VARIABLES = "chat_template_kwargs"
_ABOUT_REQUEST = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}


class ChatRoute:
    """A server's chat route, asked for one model."""

    def __init__(
        self, client: UpstreamClient, model: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """`defaults` are fields for requests that leave them out or null: the server would take its
        own, or the model's.
        """
        self._client = client
        self._model = model
        self._defaults = defaults or {}

    async def complete(self, body: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """See `PlainChat`."""
        with _refusing():
            reply = await self._client.post(_PATH, self._whole(body), call)
        with self._client.expecting(_PATH):
            if not reply["choices"]:
                raise ValueError("it has no choices")
            return dict(reply)

    async def stream(self, body: Mapping[str, Any], call: Call) -> AsyncGenerator[dict[str, Any]]:
        """See `PlainChat`."""
        is_over = False
        with _refusing():
            async with self._client.stream(_PATH, self._whole(body), call) as events:
                async for payload in events:
                    if payload == DONE:
                        is_over = True
                        continue
                    with self._client.expecting("a stream event"):
                        row = orjson.loads(payload)
                        if error := error_in(row):
                            raise self._client.stream_failure(error)
                    yield dict(row)
        if not is_over:
            raise self._client.broken_off()

    def _whole(self, body: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in body.items() if value is not None}
        whole = {**self._defaults, **given, "model": self._model}
        if variables := {**self._defaults.get(_VARIABLES, {}), **given.get(_VARIABLES, {})}:
            whole[_VARIABLES] = variables
        return whole


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except UpstreamRefused as error:
        if error.http_status not in _ABOUT_REQUEST:
            raise
        raise RequestError(str(error)) from error
