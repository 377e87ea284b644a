"""Stands in for an OpenTelemetry collector that takes traces by OTLP over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collector:
    """The requests that came, and their spans. `answer` is the status of its answers; None: it
    never answers.
    """

    url: str = ""
    answer: int | None = 200
    headers: list[Mapping[str, str]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        content = await request.read()
        self.headers.append(request.headers)
        if self.answer is None:
            await asyncio.Event().wait()
        if self.answer == 200:
            for sent in ExportTraceServiceRequest.FromString(content).resource_spans:
                self.resources.append(values(sent.resource.attributes))
                self.spans += [span for scope in sent.scope_spans for span in scope.spans]
        return web.Response(status=self.answer or 500)

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


def values(attributes: Any) -> dict[str, Any]:
    """The attributes by name, those that are one string or number."""
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in attributes}


@asynccontextmanager
async def collector(answer: int | None = 200) -> AsyncIterator[Collector]:
    made = Collector(answer=answer)
    app = web.Application()
    app.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
