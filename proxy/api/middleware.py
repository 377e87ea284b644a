"""Handles the id, the key, the size, the headers and the metrics of every request."""

import hmac
import ipaddress
import logging
import os
import re
import time
from collections.abc import Set as AbstractSet

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.api.errors import as_motab_error, error_response
from proxy.api.metrics import Metrics
from proxy.backends.clock import UpstreamClock
from proxy.errors import BodyTooLarge, ForeignPage, MotabError, Unauthorized
from proxy.log_context import ACCESS_LOG, REQUEST_ID
from proxy.secrets import excerpt
from proxy.server_config import ServerConfig
from proxy.tracing.tracer import Tracer

_access = logging.getLogger(ACCESS_LOG)
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SECONDS_A_MINUTE = 60
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]+)?")
_OPEN_PATHS = {"/health", "/ready", "/metrics"}
# The answers to clients that should not send the rest of what they are sending.
_LAST_ANSWERS = {401, 403, 413}


class RequestMiddleware:
    """Pure ASGI, so that streams pass untouched and disconnects stay visible.

    Puts `request_id`, `clock` and `is_trusted` into the request's state; whoever is trusted has a
    key, or the server has none.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServerConfig,
        metrics: Metrics,
        tracer: Tracer,
        open_paths: AbstractSet[str] = frozenset(),
    ) -> None:
        """`open_paths` need no key, like those that report the server's health."""
        self._app = app
        self._keys = [key.encode() for key in config.api_keys]
        self._max_body_bytes = config.max_body_bytes
        self._limits = _rate_limits(config)
        self._hosts = _Hosts(config) if config.allowed_hosts or not config.api_keys else None
        self._metrics = metrics
        self._tracer = tracer
        self._open_paths = _OPEN_PATHS | open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        REQUEST_ID.set(request_id)
        self._tracer.follow(headers)
        clock = UpstreamClock()
        is_trusted = self._is_trusted(headers)
        scope.setdefault("state", {}).update(
            request_id=request_id, clock=clock, is_trusted=is_trusted
        )
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
                if status in _LAST_ANSWERS:
                    own.append((b"connection", b"close"))
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            refusal = self._refusal(scope, headers, is_trusted=is_trusted)
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
            seconds = time.perf_counter() - started
            self._metrics.request(route, status, seconds)
            if _access.isEnabledFor(logging.INFO):
                _log_access(scope, status, seconds)

    def _is_trusted(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        is_known = any(hmac.compare_digest(given, key) for key in self._keys)
        return not self._keys or (scheme.lower() == b"bearer" and is_known)

    def _refusal(
        self, scope: Scope, headers: dict[bytes, bytes], *, is_trusted: bool
    ) -> MotabError | None:
        path = scope["path"]
        if self._hosts is not None and path != "/health":
            problem = self._hosts.problem(scope["headers"])
            if problem is not None:
                return problem
        if not is_trusted and path not in self._open_paths:
            return Unauthorized("send one of this server's API keys as a Bearer token")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return _too_large(self._max_body_bytes)
        return None


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    """Log an answered request; a status of 0 means that its client left before the answer."""
    method, path = scope["method"], excerpt(scope["path"])
    fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    _access.info("%s %s %d", method, path, status, extra={"fields": fields})


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


class _Hosts:
    """The names by which clients may ask, so that no page of the web uses this server.

    A page whose name was made to point at this machine asks by that name (DNS rebinding); a page
    that asks by our own name says in `Origin` where it comes from.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._names = {name.lower() for name in (*config.allowed_hosts, config.host)}

    def problem(self, headers: list[tuple[bytes, bytes]]) -> ForeignPage | None:
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            given = ", ".join(f"'{host}'" for host in hosts) or "none"
            message = (
                f"the header Host is {given}: ask this server by its own name, or add the name to "
                "server.allowed_hosts"
            )
            return ForeignPage(message)
        for name, value in headers:
            if name == b"origin" and not _is_same(origin := value.decode("latin-1"), hosts[0]):
                return ForeignPage(f"pages of other origins, here '{origin}', are not served")
        return None

    def _is_ours(self, host: str) -> bool:
        name = _host_name(host)
        return name in self._names or name == "localhost" or _is_loopback(name)


def _host_name(host: str) -> str:
    """Return the name in lower case, without a port and the brackets of IPv6."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_same(origin: str, host: str) -> bool:
    """Return whether a page of `origin` came from `host`; a proxy for TLS may be between."""
    scheme, _, place = origin.partition("://")
    return scheme in {"http", "https"} and place.lower() == host.lower()


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
