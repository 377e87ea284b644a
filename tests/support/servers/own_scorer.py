"""A scorer of a user's own, with a value for every step and faults on demand."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

Value = Callable[[str, str], float]
"""The value of a step after the text before it."""


def drawn(before: str, step: str) -> float:
    """A value that looks random and is a function of the text; many are 1, few are low."""
    return min(1.0, zlib.crc32(f"{before}|{step}".encode()) % 100 / 60)


def values_of(body: Mapping[str, Any], value: Value) -> list[float]:
    """The values that a request asks for."""
    steps: Sequence[str] = body["steps"]
    new = range(len(steps) - body["num_new"], len(steps))
    return [value("".join(steps[:index]), steps[index]) for index in new]


@dataclass
class OwnScorer:
    """One server: what it was asked, by which headers, and what it answers.

    `fault` makes an answer in the place of the right one, for requests that have new steps.
    """

    value: Value = drawn
    fault: Callable[[], web.Response] | None = None
    is_down: bool = False
    delay_s: float = 0.0
    """How long every answer takes."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    num_checks: int = 0
    num_open: int = 0
    most_open: int = 0
    """The most requests for values that were open at once."""
    base_url: str = ""

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests for trajectories and given texts: those after the example's."""
        return [body for body in self.seen if "12 + 30" not in str(body.get("messages"))]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.is_down:
            return web.Response(status=503, text="not now")
        body = orjson.loads(await request.read())
        if not body["num_new"]:
            self.num_checks += 1
            return web.Response(body=orjson.dumps({"values": []}))
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        await asyncio.sleep(self.delay_s)
        self.num_open -= 1
        if self.fault is not None:
            return self.fault()
        return web.Response(body=orjson.dumps({"values": values_of(body, self.value)}))


@asynccontextmanager
async def served(scorer: OwnScorer) -> AsyncIterator[OwnScorer]:
    """Serve it on a free port."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/score_steps", scorer.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    scorer.base_url = f"http://{host}:{port}"
    try:
        yield scorer
    finally:
        await runner.cleanup()
