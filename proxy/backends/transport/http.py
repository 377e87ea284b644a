"""Sends an upstream's requests over pooled HTTP connections, and translates foreign errors."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import aiohttp
import orjson

from proxy.backends.base import Call
from proxy.backends.token_ids import TokenIds
from proxy.backends.transport.calls import (
    NO_TIMEOUTS,
    Calls,
    RequestObserver,
    RetryObserver,
    StallTimer,
    Timeouts,
    call_headers,
)
from proxy.backends.transport.refusals import refusal_of, stream_failure_of, words_of
from proxy.backends.transport.replicas import Replicas
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy, parse_retry_after
from proxy.errors import MotabError, UpstreamError, UpstreamGarbled, UpstreamUnreachable
from proxy.secrets import excerpt, hide, without_userinfo

# Shorter than the 5 s after which uvicorn, and so vLLM and SGLang, closes an idle connection, so
# that no request goes out on a connection that the server is just closing.
_KEEPALIVE_S = 4.0
_CONNECT_TIMEOUT_S = 10.0
_JSON_HEADERS = {"content-type": "application/json"}
DONE = b"[DONE]"
"""The payload after a stream's last event, of the servers that send it."""
# A byte order mark, which the standard for event streams allows before the first line.
_BOM = b"\xef\xbb\xbf"


class UpstreamClient(Calls):
    """Speaks JSON and server-sent events with one server, or with its replicas.

    Create it in a running event loop, and use it as an async context manager. `retry` says how
    often a POST is repeated; all of ours are safe to repeat. Streams are opened once:
    `resume.ResumingWriter` opens them again.
    """

    def __init__(
        self,
        upstream: str,
        servers: str | Replicas,
        api_key: str | None,
        max_connections: int,
        observe: RequestObserver,
        retry: RetryPolicy = NO_RETRIES,
        on_retry: RetryObserver = lambda _upstream, _code: None,
        timeouts: Timeouts = NO_TIMEOUTS,
    ) -> None:
        """`servers` is a base URL, or several."""
        super().__init__(upstream, observe, retry, on_retry, timeouts)
        if isinstance(servers, str):
            servers = Replicas(upstream, [servers])
        self._replicas = servers
        hide([api_key] if api_key else ())  # the server may quote it
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=_KEEPALIVE_S),
            # A router's sticky cookie would bind every trajectory to one replica.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                # A stream is read as it arrives, so nothing may be compressed.
                "accept-encoding": "identity",
                **({"authorization": f"Bearer {api_key}"} if api_key else {}),
            },
            # `connect` would count the wait for a free connection, too.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @property
    def base_url(self) -> str:
        """The URL of its server, or of the replica that is next."""
        return self._replicas.visitor().url()

    def url_for(self, call: Call) -> str:
        """Return the base URL to which a call of that trajectory would go now."""
        return self._replicas.place(call).url()

    async def get(self, path: str) -> Any:  # noqa: ANN401
        """Return the JSON answer to GET `path`, by any replica. Never repeated by the server that
        failed: it asks how the server is now.
        """
        return await self._by_any(lambda url: self._json("GET", url, path, None, {}))

    async def post_once(
        self, path: str, body: dict[str, Any], loads: Callable[[bytes], Any] = orjson.loads
    ) -> Any:  # noqa: ANN401
        """Return the JSON answer to POST `path` as `get` does, with `loads` as for `post`."""
        content, headers = request_bytes(body), _JSON_HEADERS
        return await self._by_any(
            lambda url: self._json("POST", url, path, content, headers, loads)
        )

    async def _by_any(self, ask: Callable[[str], Awaitable[Any]]) -> Any:  # noqa: ANN401
        place, num_left = self._replicas.visitor(), self._replicas.num_in
        while True:
            try:
                with place.serving() as base_url:
                    return await ask(base_url)
            except UpstreamError as error:
                num_left -= 1
                if num_left < 1 or not error.retryable:
                    raise

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        call: Call,
        check: Callable[[Any], None] = lambda _reply: None,
        loads: Callable[[bytes], Any] = orjson.loads,
    ) -> Any:  # noqa: ANN401
        """Return the JSON answer to POST `path`; `check` raises if it reports a failure.

        `loads` parses it, and raises `orjson.JSONDecodeError` if it is not JSON.
        """
        content = request_bytes(body)
        place = self._replicas.place(call)

        async def attempt() -> Any:  # noqa: ANN401
            with self.observed(path, call), place.serving() as base_url:
                reply = await self._json("POST", base_url, path, content, _headers(call), loads)
                with self.expecting(path):
                    check(reply)
                return reply

        return await self.retried(attempt)

    async def _json(
        self,
        method: str,
        base_url: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str],
        loads: Callable[[bytes], Any] = orjson.loads,
    ) -> Any:  # noqa: ANN401
        coming = self._answer(method, base_url, path, content, headers)
        answer = await self.awaited(coming, self.timeouts.answer_s)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise self._refusal(answer)
        try:
            return loads(answer.content)
        except orjson.JSONDecodeError as error:
            message = f"{path} did not answer in JSON: {answer.excerpt!r}"
            raise UpstreamGarbled(self.upstream, message) from error

    async def _answer(
        self,
        method: str,
        base_url: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str],
    ) -> "_Answer":
        async with await self._sent(method, base_url, path, content, headers) as response:
            return await self._whole(response)

    async def _sent(
        self,
        method: str,
        base_url: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str],
    ) -> aiohttp.ClientResponse:
        async def request() -> aiohttp.ClientResponse:
            return await self._session.request(
                method, base_url + path, data=content, headers=headers, allow_redirects=False
            )

        try:
            try:
                return await request()
            except aiohttp.ClientOSError as error:
                # llama.cpp closes a connection after 100 requests, at times just before the next
                # one is written to it. The server is well, and has nothing of this request.
                if not isinstance(error.__cause__, aiohttp.ClientConnectionResetError):
                    raise
                return await request()
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(base_url, error) from error

    async def _whole(self, response: aiohttp.ClientResponse) -> "_Answer":
        try:
            content = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(str(response.url.origin()), error) from error
        retry_after = response.headers.get("retry-after")
        content = content.removeprefix(_BOM)
        return _Answer(response.url.path, response.status, retry_after, content)

    @asynccontextmanager
    async def stream(
        self, path: str, body: dict[str, Any], call: Call
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """POST and read the answer's server-sent events: the payload of each `data:` line.

        Leaving the context closes the connection, which cancels the request at the server.
        """
        content = request_bytes(body)
        del body  # a stream may be open for long
        timeout_s = self.timeouts.answer_s
        serving = self._replicas.place(call).serving()
        with self.observed(path, call), serving as base_url:
            coming = self._sent("POST", base_url, path, content, _headers(call))
            response = await self.awaited(coming, timeout_s)
            del content, coming
            async with response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise self._refusal(await self.awaited(self._whole(response), timeout_s))
                with StallTimer(response.close) as timer:
                    yield self._events(response, timer)

    async def _events(
        self, response: aiohttp.ClientResponse, timer: StallTimer
    ) -> AsyncIterator[bytes]:
        rest = b""
        timeout_s = self.timeouts.answer_s
        has_begun = False
        while chunk := await self._chunk(response, timer, timeout_s):
            read = rest + chunk
            if not has_begun:
                if _BOM.startswith(read):  # perhaps the beginning of one
                    rest = read
                    continue
                has_begun = True
                read = read.removeprefix(_BOM)
            if b"\r" in read:  # a line may end with it, and JSON holds none
                read = read.replace(b"\r", b"\n")
            *lines, rest = read.split(b"\n")
            for line in filter(None, lines):
                if payload := _payload(line):
                    timeout_s = self.timeouts.stall_s
                    yield payload
        if (payload := _payload(rest)) and _is_whole(payload):  # its line end is missing
            yield payload

    async def _chunk(
        self, response: aiohttp.ClientResponse, timer: StallTimer, timeout_s: float
    ) -> bytes:
        """The next bytes of a stream; empty at its end."""
        timer.start(timeout_s)
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            if timer.has_expired:
                raise self.timed_out(timeout_s) from error
            raise self._unreachable(str(response.url.origin()), error) from error
        finally:
            timer.stop()

    def _unreachable(self, url: str, error: Exception) -> UpstreamUnreachable:
        reason = str(error) or type(error).__name__
        where = without_userinfo(url)
        return UpstreamUnreachable(self.upstream, f"no connection to {where}: {reason}")

    def stream_failure(self, error: object) -> MotabError:
        """Translate an error object inside a stream."""
        return stream_failure_of(self.upstream, error)

    def _refusal(self, answer: "_Answer") -> MotabError:
        message = f"{answer.path} answered {answer.status}: {answer.excerpt}"
        wished_s = parse_retry_after(answer.retry_after)
        words = words_of(answer.content)
        return refusal_of(self.upstream, answer.status, words, message, retry_after_s=wished_s)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One that was read whole."""

    path: str
    status: int
    retry_after: str | None
    content: bytes

    @property
    def excerpt(self) -> str:
        return excerpt(self.content.decode("utf-8", "replace"))


def _payload(line: bytes) -> bytes:
    """Return the data of a line; empty if it has none.

    Comments (": ping"), event names, the blank line after each event and events with empty data or
    null, a gateway's keep-alive, carry nothing for us; no supported server splits an event over
    several data lines.
    """
    payload = line[5:].strip() if line.startswith(b"data:") else b""
    return b"" if payload == b"null" else payload


def _is_whole(payload: bytes) -> bool:
    """Return whether a stream's last line came to its end: the connection may have broken."""
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        return payload == DONE
    return True


def request_bytes(body: dict[str, Any]) -> bytes:
    """Write a request. `orjson` keeps 250 bytes of memory for every number of a list until its
    result is freed, so what is held is a copy.
    """
    return bytes(memoryview(orjson.dumps(body, default=_fragment)))


def _fragment(value: object) -> orjson.Fragment:
    if isinstance(value, TokenIds):
        return value.fragment()
    raise TypeError(f"a request cannot hold {type(value).__name__}")


def _headers(call: Call) -> dict[str, str]:
    return {**_JSON_HEADERS, **call_headers(call)}
