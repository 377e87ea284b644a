"""Handles the id, the key, the size, the headers and the metrics of every request."""

import hmac
import os
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.api.errors import as_motab_error, error_response
from proxy.api.metrics import Metrics
from proxy.backends.base import UpstreamClock
from proxy.config import ServerConfig
from proxy.errors import BodyTooLarge, MotabError, Unauthorized

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SECONDS_A_MINUTE = 60
_OPEN_PATHS = {"/health", "/ready", "/metrics"}


class RequestMiddleware:
    """Pure ASGI, so that streams pass untouched and disconnects stay visible.

    Puts `request_id` and `clock` into the request's state.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics) -> None:
        self._app = app
        self._keys = [key.encode() for key in config.api_keys]
        self._max_body_bytes = config.max_body_bytes
        self._limits = _rate_limits(config)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        clock = UpstreamClock()
        scope.setdefault("state", {}).update(request_id=request_id, clock=clock)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                overhead = time.perf_counter() - started - clock.seconds()
                own = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-motab-overhead-ms", f"{overhead * 1000:.2f}".encode()),
                    *self._limits,
                ]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers)
            if refusal is None:
                await self._app(scope, _limited(receive, self._max_body_bytes), send_with_headers)
            else:
                await error_response(refusal)(scope, receive, send_with_headers)
        except Exception as error:
            if status:
                raise
            await error_response(as_motab_error(error))(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.request(route, status, time.perf_counter() - started)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> MotabError | None:
        if self._keys and path not in _OPEN_PATHS:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            is_known = any(hmac.compare_digest(given, key) for key in self._keys)
            if scheme.lower() != b"bearer" or not is_known:
                return Unauthorized("send one of this server's API keys as a Bearer token")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return _too_large(self._max_body_bytes)
        return None


def _rate_limits(config: ServerConfig) -> list[tuple[bytes, bytes]]:
    """The headers from which clients such as curator learn how much they may ask.

    The server limits how many trajectories run at once, and not how many begin in a minute. The
    headers name what a minute could hold if each took a second, which is less than trajectories
    take, so a client that obeys them is limited by the server's own answers only.
    """
    requests = config.max_concurrent * _SECONDS_A_MINUTE
    return [
        (b"x-ratelimit-limit-requests", str(requests).encode()),
        (b"x-ratelimit-limit-tokens", str(requests * config.max_total_tokens).encode()),
    ]


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """Limit a body as it arrives, because it may come without a content-length."""
    num_bytes = 0

    async def receiving() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        return message

    return receiving


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes} bytes")


def _request_id(given: bytes) -> str:
    """The client's id if it is printable and short, else a new one."""
    text = given.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else os.urandom(16).hex()
