"""One pooled HTTP client per upstream; foreign errors become ours here."""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self, TypeVar

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from proxy.backends.base import Call
from proxy.backends.calls import (
    ENDLESS,
    Calls,
    Patience,
    RequestObserver,
    RetryObserver,
    affinity_headers,
)
from proxy.backends.retry import NO_RETRIES, RetryPolicy, parse_retry_after
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamUnreachable,
)

# Shorter than the 5 s after which uvicorn, and so vLLM and SGLang, closes an idle connection: a
# request never goes out on a connection that the server is just closing.
_KEEPALIVE_S = 4.0
_CONNECT_TIMEOUT_S = 10.0
_ERROR_EXCERPT = 500

T = TypeVar("T")


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients: reading the authorities' certificates takes 20 ms."""
    return httpx.create_ssl_context()


class UpstreamClient(Calls):
    """Speaks JSON and server-sent events with one server.

    Use as an async context manager. `retry` says how often a POST is sent again; all that we send
    are safe to repeat. Streams are opened once: `resume.ResumingWriter` opens them again.
    """

    def __init__(
        self,
        upstream: str,
        base_url: str,
        api_key: str | None,
        max_connections: int,
        observe: RequestObserver,
        retry: RetryPolicy = NO_RETRIES,
        on_retry: RetryObserver = lambda _upstream, _code: None,
        patience: Patience = ENDLESS,
    ) -> None:
        super().__init__(upstream, observe, retry, on_retry, patience)
        self.base_url = base_url

        def open_session() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=_KEEPALIVE_S)
            return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

        # httpx's own pool is quadratic in waiting requests; aiohttp's is not.
        self._http = httpx.AsyncClient(
            base_url=base_url,
            transport=AiohttpTransport(verify=_tls(), client=open_session),
            headers={
                # A stream is read as it arrives, so nothing is to be compressed.
                "accept-encoding": "identity",
                **({"authorization": f"Bearer {api_key}"} if api_key else {}),
            },
            # A router's sticky cookie would bind every trajectory to one replica.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
        )
        self._urls: dict[str, httpx.URL] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:  # noqa: ANN401
        """The JSON that GET `path` answers. Never sent again: it asks how the server is now."""
        return await self._json("GET", path, None, {})

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        call: Call,
        check: Callable[[Any], None] = lambda _reply: None,
        loads: Callable[[bytes], Any] = orjson.loads,
    ) -> Any:  # noqa: ANN401
        """The JSON that POST `path` answers; `check` raises for one that tells of a failure.

        `loads` reads it, and raises `orjson.JSONDecodeError` where it is none.
        """
        content = orjson.dumps(body)

        async def attempt() -> Any:  # noqa: ANN401
            with self.observed(path, call):
                reply = await self._json("POST", path, content, _headers(call), loads)
                with self.expecting(path):
                    check(reply)
                return reply

        return await self.retried(attempt)

    async def _json(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str],
        loads: Callable[[bytes], Any] = orjson.loads,
    ) -> Any:  # noqa: ANN401
        with self._translated():
            url = self._url(path)
            request = self._http.request(method, url, content=content, headers=headers)
            response = await self.awaited(request, self.patience.answer_s)
        if response.is_error:
            raise self._refusal(response)
        try:
            return loads(response.content)
        except orjson.JSONDecodeError as error:
            message = f"{path} answered no JSON: {response.text[:_ERROR_EXCERPT]!r}"
            raise UpstreamGarbled(self.upstream, message) from error

    def _url(self, path: str) -> httpx.URL:
        """The whole URL of one of the few paths; httpx would take it apart for every request."""
        if path not in self._urls:
            self._urls[path] = self._http.build_request("POST", path).url
        return self._urls[path]

    @asynccontextmanager
    async def stream(
        self, path: str, body: dict[str, Any], call: Call
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """POST and read the answer's server-sent events: the payload of each `data:` line.

        Leaving the context closes the connection, which cancels the request at the server.
        """
        content = orjson.dumps(body)
        url = self._url(path)
        request = self._http.build_request("POST", url, content=content, headers=_headers(call))
        patience_s = self.patience.answer_s
        with self.observed(path, call):
            with self._translated():
                sent = self._http.send(request, stream=True)
                response = await self.awaited(sent, patience_s)
            try:
                if response.is_error:
                    with self._translated():
                        await self.awaited(response.aread(), patience_s)
                    raise self._refusal(response)
                yield self._events(response)
            finally:
                await response.aclose()

    async def _events(self, response: httpx.Response) -> AsyncIterator[bytes]:
        rest = b""
        chunks = response.aiter_bytes()
        patience_s = self.patience.answer_s
        with self._translated():
            while (chunk := await self.awaited(anext(chunks, None), patience_s)) is not None:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    # Comments (": ping"), event names and the blank line after each event carry
                    # nothing for us; no server that we speak splits one event over data lines.
                    if line.startswith(b"data:"):
                        patience_s = self.patience.stall_s
                        yield line[5:].strip()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.RequestError, aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            message = f"no connection to {self.base_url}: {reason}"
            raise UpstreamUnreachable(self.upstream, message) from error

    def stream_failure(self, error: object) -> MotabError:
        """What an error object inside a stream means."""
        text = str(error)
        message = f"the stream failed: {text[:_ERROR_EXCERPT]}"
        if _is_context_overflow(text):
            return ContextExceeded(f"upstream '{self.upstream}': {message}")
        return UpstreamFailed(self.upstream, message)

    def _refusal(self, response: httpx.Response) -> MotabError:
        status, text = response.status_code, response.text
        message = f"{response.request.url.path} answered {status}: {text[:_ERROR_EXCERPT]}"
        if status == httpx.codes.BAD_REQUEST and _is_context_overflow(text):
            return ContextExceeded(f"upstream '{self.upstream}': {message}")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            wished_s = parse_retry_after(response.headers.get("retry-after"))
            return UpstreamFailed(self.upstream, message, retry_after_s=wished_s)
        return UpstreamRefused(self.upstream, message)


# llama.cpp before and inside a stream; vLLM (as OpenAI); vLLM where the prompt just fills it;
# SGLang where the prompt alone is too long for the model, or for the memory.
_CONTEXT_OVERFLOWS = (
    "exceed_context_size",
    "Context size has been exceeded",
    "maximum context length",
    "max_tokens must be at least 1, got 0",
    "longer than the model's context length",
    "exceeds the maximum allowed length",
)


def _is_context_overflow(text: str) -> bool:
    return any(sentence in text for sentence in _CONTEXT_OVERFLOWS)


def _headers(call: Call) -> dict[str, str]:
    return {"content-type": "application/json", **affinity_headers(call)}
