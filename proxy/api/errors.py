"""Turns errors into the answers that OpenAI's clients expect."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from proxy.api.wrong_paths import right_path
from proxy.errors import MotabError, OverCapacity, UpstreamFailed

_log = logging.getLogger(__name__)

# nginx's code for a client that left; only the metrics see it.
_CLIENT_GONE = 499


def error_body(error: MotabError) -> dict[str, Any]:
    """The `error` object and, if it is known and wanted, the `usage` of what failed."""
    found = {
        "message": str(error),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return {"error": found} if error.usage is None else {"error": found, "usage": error.usage}


def error_response(error: MotabError) -> Response:
    """The whole answer to a request that failed before any of its answer was sent."""
    headers = {}
    wished_s = error.retry_after_s if isinstance(error, OverCapacity | UpstreamFailed) else None
    if wished_s is not None and math.isfinite(wished_s):
        headers["retry-after"] = str(math.ceil(wished_s))
    return Response(
        orjson.dumps(error_body(error)),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )


def as_motab_error(error: Exception) -> MotabError:
    """Return our own errors unchanged; log anything else as a bug, and report an internal error."""
    if isinstance(error, MotabError):
        return error
    _log.error("unexpected error", exc_info=error)
    return MotabError("an internal error; the proxy's log has the details")


async def on_client_gone(_: Request, __: Exception) -> Response:
    """Return the answer that nobody reads; its status is for the metrics."""
    return Response(status_code=_CLIENT_GONE)


def on_http_error(paths: Iterable[str]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler of unknown paths and methods, which names one of the known `paths`."""
    known = list(paths)

    async def answer(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == HTTPStatus.NOT_FOUND:
            message += f"; {right_path(request.url.path, known)}"
        elif methods := (error.headers or {}).get("Allow"):
            message += f"; it takes {methods}"
        is_bad = error.status_code == HTTPStatus.BAD_REQUEST
        body = {
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_value" if is_bad else "unknown_url",
        }
        return Response(
            orjson.dumps({"error": body}),
            status_code=error.status_code,
            headers=dict(error.headers or {}),
            media_type="application/json",
        )

    return answer
