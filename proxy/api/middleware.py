"""What happens to every request: its id, its key, its size, its headers and its metrics."""

import hmac
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.api.errors import error_response
from proxy.api.metrics import Metrics
from proxy.backends.base import UpstreamClock
from proxy.config import ServerConfig
from proxy.errors import BodyTooLarge, MotabError, Unauthorized

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_OPEN_PATHS = {"/health", "/ready", "/metrics"}


class RequestMiddleware:
    """Pure ASGI, so that streams pass untouched and disconnects stay visible.

    Puts `request_id` and `clock` into the request's state.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics) -> None:
        self._app = app
        self._keys = [key.encode() for key in config.api_keys]
        self._max_body_bytes = config.max_body_bytes
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
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                overhead = time.perf_counter() - started - clock.seconds()
                own = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-motab-overhead-ms", f"{overhead * 1000:.2f}".encode()),
                ]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send_with_headers)
            else:
                await self._app(scope, self._limited(receive), send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.request(route, status, time.perf_counter() - started)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> MotabError | None:
        if self._keys and path not in _OPEN_PATHS:
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not any(hmac.compare_digest(given, key) for key in self._keys):
                return Unauthorized("send one of this server's API keys as a Bearer token")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return self._too_large()
        return None

    def _limited(self, receive: Receive) -> Receive:
        """Counts what arrives, for a body may come without a content-length."""
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_body_bytes} bytes")


def _request_id(given: bytes) -> str:
    """The client's id if it is printable and short, else a new one."""
    text = given.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex
