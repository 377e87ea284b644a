"""Routes that take a body, reached without FastAPI, which still describes them in `/openapi.json`.

FastAPI's way to an endpoint, through six layers, two exit stacks and its solving of dependencies,
took more of the processor than all that motab does with a plain request (docs/performance.md).
"""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from proxy.api.schema import parse_body

# nginx's code for a client that left; only the metrics see it.
CLIENT_GONE = 499


class BodyRoute(APIRoute):
    """A POST route whose endpoint takes the request and, as `body`, one of the schema's models."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request. FastAPI takes it, too."""
        return functools.partial(_answer, self.endpoint, get_type_hints(self.endpoint)["body"])


class Direct:
    """Answers on the body routes of `app`, and leaves it everything else; the errors of both are
    for the layer around this one.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        routes = [route for route in app.routes if isinstance(route, BodyRoute)]
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
    body = await _body(request.receive)
    if body is None:
        return Response(status_code=CLIENT_GONE)
    parsed = parse_body(model, request.headers.get("content-type", ""), body)
    return await endpoint(request, parsed)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client left before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
