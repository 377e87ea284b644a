"""Asks the proxy, or any OpenAI-compatible server, one question over HTTP.

An answer is requested as a whole: streaming a thousand trajectories would cost both sides a parsed
chunk for every few tokens, and only the end is needed. A connection may be silent for an hour, so
the kernel probes it to keep it alive; a gateway's own read timeout must be longer than the longest
trajectory.
"""

import codecs
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import JsonValue

from proxy.secrets import hide, keys_in_url, secrets_of_url, without_userinfo
from synth_client.asking.answer import (
    asked_record,
    excerpt_of,
    is_json,
    plain_record,
    refusal,
    scored_record,
    spent_in,
    traced_record,
)
from synth_client.asking.errors import SynthesisError, parse_retry_after
from synth_client.errors import RunAborted
from synth_client.questions.question import Synthesis, Unit, scoring_body
from trajectory_records.record import Record

_CONNECT_TIMEOUT_S: Final = 10.0
# Shorter than the 5 s after which uvicorn, by default, closes an idle connection.
_KEEPALIVE_S: Final = 4.0
_PROBE_S: Final = 30
_NO_ROUTE: Final = {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED}
_WRONG_ADDRESS: Final = "--base-url ends in /v1, and a server other than motab needs --plain"


class SynthClient:
    """Asks the servers of one run; an asynchronous context manager that owns its connections.

    `base_urls` end in /v1. If there are several, a unit stays with one server until an attempt
    there fails. `transport` replaces the network.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        synthesis: Synthesis,
        *,
        api_key: str | None = None,
        max_connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._synthesis = synthesis
        urls = [base_urls] if isinstance(base_urls, str) else base_urls
        hide(key for url in urls for key in (*secrets_of_url(url), *keys_in_url(url)))
        hide([] if api_key is None else [api_key])
        self._servers = [
            httpx.AsyncClient(
                base_url=url,
                headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
                timeout=httpx.Timeout(synthesis.timeout_s, connect=_CONNECT_TIMEOUT_S, pool=None),
                transport=transport or _transport(url, max_connections),
            )
            for url in urls
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers:
            await server.aclose()

    async def check(self) -> None:
        """Raise `RunAborted` if a server is unreachable, not OpenAI-compatible, or refuses the key.

        Other faults show up with the questions, because not every server lists its models.
        """
        for server in self._servers:
            try:
                response = await server.get("models", timeout=_CONNECT_TIMEOUT_S)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise RunAborted(
                    f"no answer from {_url(server)}: {_words(error)}; is the server running there?"
                ) from error
            except (httpx.HTTPError, aiohttp.ClientError, OSError):
                continue
            if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
                raise RunAborted(f"{_url(server)}: {_refusal(response)}")
            if response.status_code == httpx.codes.OK and not is_json(response.content):
                raise RunAborted(
                    f"{_url(server)} is not an OpenAI-compatible server: it answers GET models with"
                    f" '{excerpt_of(response.content)}'; {_WRONG_ADDRESS}"
                )

    async def synthesise(self, unit: Unit, *, attempt: int = 1) -> Record:
        """Return one trajectory. Raises `SynthesisError` for anything that prevents a record.

        `attempt` counts from 1; after a failed attempt the next server is asked.
        """
        started = time.monotonic()
        synthesis = self._synthesis
        path = "chat/completions" if synthesis.plain else "motab/chat/completions"
        body = synthesis.body(unit.question, unit.sample)
        content = await self._posted(unit, attempt, path, body)
        parse: Callable[..., Record] = traced_record
        if synthesis.plain:
            parse = partial(plain_record, model=synthesis.model)
        try:
            record = parse(
                content,
                unit.question,
                sample=unit.sample,
                attempts=attempt,
                seconds=time.monotonic() - started,
            )
        except SynthesisError as error:
            error.spent = spent_in(content)
            raise
        return asked_record(record, synthesis)

    async def score(self, unit: Unit, record: Record, *, attempt: int = 1) -> Record:
        """Return `record` with its `token_logprobs`. Raises the errors of `synthesise`."""
        body = scoring_body(self._synthesis.model, record)
        return scored_record(await self._posted(unit, attempt, "motab/score", body), record)

    async def _posted(
        self, unit: Unit, attempt: int, path: str, body: Mapping[str, JsonValue]
    ) -> bytes:
        place = int.from_bytes(unit.key[:8], "big") + attempt - 1
        server = self._servers[place % len(self._servers)]
        try:
            response = await server.post(path, json=body)
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise SynthesisError(
                f"no answer from {_url(server)}: {_words(error)}",
                status=None,
                error_type="connection_failed",
            ) from error
        if response.status_code != httpx.codes.OK:
            raise _refusal(response)
        return response.content.removeprefix(codecs.BOM_UTF8)


def _transport(base_url: str, max_connections: int) -> AiohttpTransport:
    def open_session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=max_connections, keepalive_timeout=_KEEPALIVE_S, socket_factory=_probed_socket
        )
        # A proxy from HTTP_PROXY cannot reach a server on our own loopback.
        trust_env = not _is_loopback(httpx.URL(base_url).host)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=trust_env
        )

    # httpx's own pool is quadratic in waiting requests; aiohttp's is not.
    return AiohttpTransport(client=open_session)


def _probed_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = address
    probed = socket.socket(family, kind, protocol)
    probed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        probed.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
        probed.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    return probed


def _refusal(response: httpx.Response) -> SynthesisError:
    """Return the server's own error, or the answer of a gateway in between."""
    excerpt = excerpt_of(response.content)
    error = refusal(
        response.status_code, response.content, otherwise=excerpt or response.reason_phrase
    )
    if response.status_code in _NO_ROUTE and "model" not in error.message:
        error = SynthesisError(
            f"{response.request.url.path}: {error.message}; {_WRONG_ADDRESS}",
            status=error.status,
            error_type=error.error_type,
            param=error.param,
            code=error.code,
        )
    error.retry_after_s = parse_retry_after(response.headers.get("retry-after"))
    error.spent = spent_in(response.content)
    return error


def _url(server: httpx.AsyncClient) -> str:
    return without_userinfo(str(server.base_url)).rstrip("/")


def _words(error: BaseException) -> str:
    """Return the system's message, without the words that aiohttp adds."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientConnectorError):
        system = cause.os_error
        # asyncio puts the address in the place of the reason.
        if isinstance(system, ConnectionError) and system.errno:
            return os.strerror(system.errno)
        return system.strerror or str(system)
    return str(error) or type(error).__name__


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
