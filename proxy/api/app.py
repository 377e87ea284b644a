"""Answers each route of the API, and describes the routes in `/openapi.json`."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import __version__
from proxy.api.errors import on_client_gone, on_http_error
from proxy.api.middleware import RequestMiddleware
from proxy.api.plain_calls import plain_call
from proxy.api.readiness import OK, Readiness
from proxy.api.schema import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    MotabRequest,
    ScoreRequest,
    parse_body,
)
from proxy.api.service import Service
from proxy.api.shapes import Kind
from proxy.api.sse import EventStream, until_disconnected
from proxy.errors import ModelNotFound, RequestError, first_error
from proxy.json_bounds import fault_of_size
from proxy.page.page import Page

T = TypeVar("T")
_Body = TypeVar("_Body", bound=BaseModel)


def create_app(service: Service) -> ASGIApp:
    """Return the ASGI app that serves `service`."""
    routes = [*_generation_routes(service), *_information_routes(service)]
    document = _document(routes)
    config = service.config
    page = None if config.page is None else Page(config.page, config, service.models)

    async def openapi(_: Request) -> Response:
        return _json(document)

    open_paths: frozenset[str] = page.open_paths if page else frozenset()
    own = (config, service.metrics, service.tracer, open_paths)
    every = Starlette(
        routes=[*routes, Route("/openapi.json", openapi), *(page.routes if page else ())],
        middleware=[Middleware(RequestMiddleware, *own)],
        # `RequestMiddleware` answers for every other error.
        exception_handlers={HTTPException: on_http_error(route.path for route in routes)},
    )
    direct = {
        route.path: RequestMiddleware(route.direct, *own)
        for route in routes
        if isinstance(route, _BodyRoute)
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        handler = direct.get(scope["path"], every) if is_post else every
        await handler(scope, receive, send)

    return app


class _BodyRoute(Route):
    """A POST route whose endpoint takes the request and its body, parsed as `model`."""

    def __init__(
        self,
        path: str,
        model: type[_Body],
        endpoint: Callable[[Request, _Body], Awaitable[Response]],
        otherwise: Callable[[Request, bytes], Awaitable[Response | None]] | None = None,
    ) -> None:
        """`otherwise` may answer bodies that `model` refuses."""

        async def answer(request: Request) -> Response:
            content_type, content = request.headers.get("content-type", ""), await request.body()
            if fault := fault_of_size(content):
                raise RequestError(f"the body is too large: {fault}")
            try:
                body = parse_body(model, content_type, content)
            except RequestError:
                response = None if otherwise is None else await otherwise(request, content)
                if response is None:
                    raise
                return response
            return await endpoint(request, body)

        super().__init__(path, answer, methods=["POST"])
        self._answer = answer
        self.model = model

    async def direct(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a POST to this path, without Starlette's layers, which cost as much as parsing the
        body.
        """
        scope["route"] = self
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect as error:
            response = await on_client_gone(request, error)
        await response(scope, receive, send)


def _generation_routes(service: Service) -> list[Route]:
    async def generate(
        request: Request, body: GenerationRequest, *, kind: Kind, always_full: bool = False
    ) -> Response:
        state = request.scope["state"]
        job = await service.job(
            body, kind, state["request_id"], state["clock"], always_full=always_full
        )
        if body.stream:
            return EventStream(
                lambda outbox: service.stream(job, outbox),
                job.headers(),
                stall_timeout_s=service.config.client_stall_timeout_s,
            )
        done = await _unless_disconnected(request.receive, service.complete(job))
        return _json(done, headers=job.headers())

    async def pass_on(request: Request, content: bytes) -> Response | None:
        state = request.scope["state"]
        plain = plain_call(service, content, state["request_id"], state["clock"])
        if plain is None:
            return None
        if plain.is_stream:
            limit_s = service.config.client_stall_timeout_s
            return EventStream(plain.stream, {}, stall_timeout_s=limit_s)
        return _json(await _unless_disconnected(request.receive, plain.complete()))

    async def score(request: Request, body: ScoreRequest) -> Response:
        state = request.scope["state"]
        work = service.score(body, state["request_id"], state["clock"])
        return _json(await _unless_disconnected(request.receive, work))

    chat, text = partial(generate, kind="chat"), partial(generate, kind="text")
    return [
        _BodyRoute("/v1/chat/completions", ChatRequest, chat, pass_on),
        _BodyRoute("/v1/completions", CompletionRequest, text),
        _BodyRoute("/v1/motab/chat/completions", ChatRequest, partial(chat, always_full=True)),
        _BodyRoute("/v1/motab/completions", MotabRequest, partial(text, always_full=True)),
        _BodyRoute("/v1/motab/score", ScoreRequest, score),
    ]


def _information_routes(service: Service) -> list[Route]:
    started = int(service.started_at)

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "motab"}

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [described(name) for name in service.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.models:
            raise ModelNotFound(f"there is no model '{name}'", param="model")
        return _json(described(name))

    async def health(_: Request) -> Response:
        return _json({"status": "alive"})

    readiness = Readiness(service.upstreams())

    async def ready(request: Request) -> Response:
        upstreams = await readiness.states()
        draining = service.admission.draining
        own = {} if service.records is None else {"records": await service.records.check() or OK}
        states = (*upstreams.values(), *own.values())
        is_ready = not draining and all(state == OK for state in states)
        more: dict[str, Any] = {}
        if not request.state.is_trusted:
            # The words of servers and disks may hold addresses, and are for whoever has a key.
            upstreams, own = _without_words(upstreams), _without_words(own)
        elif replicas := readiness.replicas():
            more["replicas"] = replicas
        status = "draining" if draining else "ready" if is_ready else "unready"
        found = {"status": status, "upstreams": upstreams, **own, **more}
        return _json(found, 200 if is_ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
    ]


def _document(routes: list[Route]) -> dict[str, Any]:
    """Describe the routes, and the bodies that they take, as an OpenAPI document."""
    posts = [route for route in routes if isinstance(route, _BodyRoute)]
    refs, schemas = models_json_schema(
        [(route.model, "validation") for route in posts],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for route in routes:
        operation: dict[str, Any] = {"responses": {"200": {"description": "Success"}}}
        if isinstance(route, _BodyRoute):
            content = {"application/json": {"schema": refs[route.model, "validation"]}}
            operation["requestBody"] = {"required": True, "content": content}
        if route.param_convertors:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in route.param_convertors
            ]
        method = "post" if isinstance(route, _BodyRoute) else "get"
        paths[route.path_format] = {method: operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "motab", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


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


def _without_words(states: Mapping[str, str]) -> dict[str, str]:
    return {name: OK if state == OK else "failed" for name, state in states.items()}
