"""Defines the HTTP routes."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive

from proxy import __version__
from proxy.api.direct import BodyRoute, Direct
from proxy.api.errors import on_http_error, on_motab_error
from proxy.api.middleware import RequestMiddleware
from proxy.api.schema import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    MotabRequest,
    ScoreRequest,
)
from proxy.api.service import Service
from proxy.api.shapes import Kind
from proxy.api.sse import EventStream, until_disconnected
from proxy.engine.runner import first_error
from proxy.engine.upstream import Upstream
from proxy.errors import ModelNotFound, MotabError, UpstreamError

T = TypeVar("T")

_READY_TIMEOUT_S = 5.0


def create_app(service: Service) -> ASGIApp:
    """The ASGI app that serves `service`."""
    app = FastAPI(title="motab", version=__version__)
    for error in (MotabError, Exception):
        app.add_exception_handler(error, on_motab_error)
    app.add_exception_handler(HTTPException, on_http_error)
    router = APIRouter(route_class=BodyRoute)
    _add_generation_routes(router, service)
    app.include_router(router)
    _add_information_routes(app, service)
    return RequestMiddleware(Direct(app, router), service.config, service.metrics)


def _add_generation_routes(router: APIRouter, service: Service) -> None:
    async def generate(
        request: Request, body: GenerationRequest, kind: Kind, *, always_full: bool = False
    ) -> Response:
        state = request.scope["state"]
        job = service.job(body, kind, state["request_id"], state["clock"], always_full=always_full)
        if body.stream:
            return EventStream(lambda put: service.stream(job, put), job.headers())
        done = await _unless_disconnected(request.receive, service.complete(job))
        return _json(done, headers=job.headers())

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        return await generate(request, body, "chat")

    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        return await generate(request, body, "text")

    @router.post("/v1/motab/chat/completions")
    async def motab_chat(request: Request, body: ChatRequest) -> Response:
        return await generate(request, body, "chat", always_full=True)

    @router.post("/v1/motab/completions")
    async def motab_completions(request: Request, body: MotabRequest) -> Response:
        return await generate(request, body, "text", always_full=True)

    @router.post("/v1/motab/score")
    async def score(request: Request, body: ScoreRequest) -> Response:
        state = request.scope["state"]
        work = service.score(body, state["request_id"], state["clock"])
        return _json(await _unless_disconnected(request.receive, work))


def _add_information_routes(app: FastAPI, service: Service) -> None:
    started = int(service.started_at)

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "motab"}

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [described(name) for name in service.models]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in service.models:
            raise ModelNotFound(f"there is no model '{name}'", param="model")
        return _json(described(name))

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        states = await asyncio.gather(*(_state(upstream) for upstream in service.upstreams()))
        upstreams = dict(zip((u.name for u in service.upstreams()), states, strict=True))
        draining = service.admission.draining
        is_ready = not draining and all(state == "ok" for state in states)
        status = "draining" if draining else "ready" if is_ready else "unready"
        return _json({"status": status, "upstreams": upstreams}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _state(upstream: Upstream) -> str:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await upstream.writer.check()
    except UpstreamError as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {_READY_TIMEOUT_S:g} s"
    return "ok"


async def _unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. Raises `ClientDisconnect` if the client leaves first, which
    cancels the work.
    """
    try:
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(_disconnected(receive))
            result = await work
            leaving.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None
    return result


async def _disconnected(receive: Receive) -> None:
    await until_disconnected(receive)
    raise ClientDisconnect


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(body), status_code=status, headers=headers, media_type="application/json"
    )
