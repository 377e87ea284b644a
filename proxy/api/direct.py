"""Routes that take a body, reached without FastAPI, which still describes them in `/openapi.json`.

FastAPI's way to an endpoint, through six layers, two exit stacks and its solving of dependencies,
took a quarter of the processor that motab spends on a plain request beside the upstream's stream.
"""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.api.schema import parse_body

# nginx's code for a client that left; only the metrics see it.
_CLIENT_GONE = 499


class BodyRoute(APIRoute):
    """A POST route whose endpoint takes the request and, as `body`, one of the schema's models."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request. FastAPI takes it, too."""
        return functools.partial(_answer, self.endpoint, get_type_hints(self.endpoint)["body"])


class Direct:
    """Answers on the body routes of `router`, and leaves everything else to `app`; the errors of
    both are for the layer around this one.
    """

    def __init__(self, app: ASGIApp, router: APIRouter) -> None:
        self._app = app
        routes = [route for route in router.routes if isinstance(route, BodyRoute)]
        self._routes = {route.path: (route, route.get_route_handler()) for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        found = self._routes.get(scope["path"]) if is_post else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], handler = found
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)


async def _answer(
    endpoint: Callable[..., Coroutine[Any, Any, Response]], model: type[Any], request: Request
) -> Response:
    try:
        body = await _body(request.receive)
        parsed = parse_body(model, _content_type(request), body)
        return await endpoint(request, parsed)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)


def _content_type(request: Request) -> str:
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    return headers.get(b"content-type", b"").decode("latin-1")


async def _body(receive: Receive) -> bytes:
    """The whole body. Raises `ClientDisconnect` where it breaks off."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
