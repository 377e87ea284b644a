"""Answers the page's routes: its files to everybody, its data to whoever has a key."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from proxy import __version__
from proxy.engine.served_model import ServedModel
from proxy.errors import RequestError
from proxy.options import parse_options, parse_sampling
from proxy.page.files import HEADERS, PageFile, page_files
from proxy.page.run_files import RunFiles
from proxy.server_config import PageConfig, ServerConfig

_MOST_DIGITS = 18


class Page:
    """The page of a server. Everything that takes time is done here once, before it serves.

    The files hold nothing of the server, so they need no key: a browser cannot send one for a page
    that it opens. The page then asks for the key, and sends it with its own requests.
    """

    def __init__(
        self, own: PageConfig, config: ServerConfig, models: Mapping[str, ServedModel]
    ) -> None:
        found = page_files()
        self.open_paths = frozenset(found)
        """The paths that need no key."""
        runs = RunFiles(
            records=None if config.records is None else Path(config.records.file),
            folder=None if own.runs is None else Path(own.runs),
        )
        set_up = _answer(_set_up(config, own, models))
        self.routes = [
            *(_serving(path, file) for path, file in found.items()),
            _GetRoute("/page/setup", set_up),
            *_run_routes(runs),
        ]


class _GetRoute(Route):
    """A route for GET alone; for other methods its path does not exist."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (Match.NONE, {}) if match is Match.PARTIAL else (match, child)


def _serving(path: str, file: PageFile) -> Route:
    async def serve(_: Request) -> Response:
        return Response(file.content, headers=dict(HEADERS), media_type=file.media_type)

    return _GetRoute(path, serve)


def _run_routes(runs: RunFiles) -> list[Route]:
    async def listed(_: Request) -> Response:
        files = await asyncio.to_thread(runs.found)
        return _json(
            [{"name": one.name, "size": one.size, "modified": one.modified} for one in files]
        )

    async def part(request: Request) -> Response:
        return _json(await asyncio.to_thread(runs.part, *_place(request)))

    async def view(request: Request) -> Response:
        return _json(await asyncio.to_thread(runs.view, *_place(request)))

    return [
        _GetRoute("/page/runs", listed),
        _GetRoute("/page/runs/rows", part),
        _GetRoute("/page/runs/view", view),
    ]


def _place(request: Request) -> tuple[str, int]:
    """Return the file and the byte that a request names. Raises `RequestError`."""
    name, at = request.query_params.get("file", ""), request.query_params.get("at", "0")
    if not (at.isascii() and at.isdigit() and len(at) <= _MOST_DIGITS):
        raise RequestError("at must be the number of a byte", param="at")
    return name, int(at)


def _set_up(
    config: ServerConfig, page: PageConfig, models: Mapping[str, ServedModel]
) -> dict[str, Any]:
    """Return what the page has to know of the server."""
    return {
        "version": __version__,
        "models": [_described(name, model) for name, model in models.items()],
        "max_concurrent": config.max_concurrent,
        "max_total_tokens": config.max_total_tokens,
        "questions": page.questions,
        "prices": page.prices,
    }


def _described(name: str, model: ServedModel) -> dict[str, Any]:
    options, pair = parse_options(model.defaults), model.pair
    return {
        "name": name,
        "student": None if pair.student is None else pair.student.name,
        "teacher": None if pair.teacher is None else pair.teacher.name,
        "labels": model.labels,
        "own": {**model.defaults, **model.sampling},
        "params": asdict(options),
        "temperature": parse_sampling(model.sampling).temperature,
    }


def _answer(body: object) -> Any:  # noqa: ANN401 - an endpoint
    response = orjson.dumps(body)

    async def answer(_: Request) -> Response:
        return Response(response, media_type="application/json")

    return answer


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
