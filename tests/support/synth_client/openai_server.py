"""A scripted server for the synthesis client: deterministic trajectories, and faults on demand."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson
from aiohttp import web

from tests.support.records import breached, spans_of, steps_of


@dataclass(frozen=True, slots=True)
class Fault:
    """In place of an answer: an HTTP error, a cut connection (`status` 0), or silence (None)."""

    status: int | None
    body: Any = None
    retry_after: str | None = None


FULL = Fault(429, {"error": {"message": "full", "code": "over_capacity"}}, "1")
"""What `motab serve` says when it is full."""

Script = Callable[[dict[str, Any], int], Fault | None]
"""What a request meets, by its body and how many came before it; None is an answer."""


class Scripted:
    """Answers both chat routes after `delay_s`. Above `capacity` requests at a time it says 429."""

    def __init__(self) -> None:
        self.base_url = ""
        self.script: Script = lambda _body, _number: None
        self.delay_s = 0.0
        self.capacity: int | None = None
        self.num_requests = 0
        self.num_active = 0
        self.most_active = 0
        self.num_held = 0
        self.answered: Counter[str] = Counter()
        """How often each (question, seed) was answered."""
        self.statuses: Counter[int | None] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keeps_bodies = True
        self.full_at: int | None = None
        self.came = asyncio.Event()
        self.is_full = asyncio.Event()
        """Set when there are `full_at` requests that wait for `released`."""
        self.released = asyncio.Event()
        self.released.set()
        self.held: Fault | None = None
        """What those are answered that had to wait for `released`, if no answer."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        number = self.num_requests
        self.num_requests += 1
        if self.keeps_bodies:
            self.bodies.append(body)
        fault = self.script(body, number)
        if fault is None and self.capacity is not None and self.num_active >= self.capacity:
            fault = FULL
        self.came.set()
        if fault is not None:
            self.statuses[fault.status] += 1
            return await _fail(fault, request)
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        try:
            if not self.released.is_set():
                self.num_held += 1
                if self.num_held == self.full_at:
                    self.is_full.set()
                await self.released.wait()
                self.num_held -= 1
                fault = self.held
            await asyncio.sleep(self.delay_s)
        finally:
            self.num_active -= 1
        if fault is not None:
            self.statuses[fault.status] += 1
            return await _fail(fault, request)
        question = body["messages"][-1]["content"]
        self.statuses[200] += 1
        self.answered[f"{question}|{body.get('seed')}"] += 1
        traced = request.path.startswith("/v1/motab/")
        return web.json_response(answer_to(body, traced=traced), dumps=_dumps)


async def _fail(fault: Fault, request: web.Request) -> web.StreamResponse:
    if fault.status is None:
        await asyncio.Event().wait()
    if fault.status == 0:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    headers = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
    return web.Response(
        body=_dumps(fault.body).encode() if fault.body is not None else b"",
        status=fault.status or 200,
        headers=headers,
        content_type="application/json",
    )


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def answer_to(body: dict[str, Any], *, traced: bool) -> dict[str, Any]:
    """The same for the same request. Every third trajectory has a breach."""
    asked = orjson.dumps([body["messages"], body.get("seed"), body.get("motab")])
    number = int.from_bytes(blake2b(asked, digest_size=4).digest(), "big")
    fields = breached()
    if number % 3:
        text = f"Let me think about {number}.\n\nThe answer is {number % 100}"
        steps = text.split("\n\n")
        fields |= {
            "output": text,
            "spans": spans_of([("student", text)]),
            "steps": steps_of([f"{steps[0]}\n\n", steps[1]], [0.9, 0.8]),
            "breach": None,
            "bifurcation": None,
        }
    trace = ("method", "params", "models", "scoring", "breach", "bifurcation", "spans", "steps")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": fields["output"]},
        "finish_reason": "stop",
    }
    usage = fields["usage"]
    if traced:
        choice["motab"] = {name: fields[name] for name in trace}
    else:
        usage = {name: count for name, count in usage.items() if name != "motab"}
    return {"model": "served-name", "choices": [choice], "usage": usage}


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    """The server on a free port, inside this event loop."""
    server = Scripted()
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", server.handle)
    app.router.add_post("/v1/motab/chat/completions", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        server.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        await runner.setup()
        try:
            await web.SockSite(runner, listener, backlog=2048).start()
            yield server
        finally:
            await runner.cleanup()
