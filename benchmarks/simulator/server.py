"""Runs a simulated server as a process: `python -m benchmarks.simulator.server SETTINGS`."""

import asyncio
import socket
import sys
from dataclasses import dataclass
from typing import Literal

import orjson
import uvloop

from benchmarks.simulator.engine import Engine, Rates
from benchmarks.simulator.http import Reply, serve_http
from benchmarks.simulator.sglang import SGLangWire
from benchmarks.simulator.vllm import BLOCK, GENERATE, VllmWire

Kind = Literal["sglang", "vllm"]
MODEL = "sim"
_TOKENIZING = {"/tokenize", "/v1/tokenize"}
_COMPUTING = {"/generate", GENERATE, "/v1/chat/completions", "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a process, which gets them as JSON.

    `scale_out` is vLLM's `--enable-scale-out`, on Model Runner V2, and `block` its `--block-size`.
    """

    kind: Kind
    rates: Rates
    errs: bool
    scale_out: bool = False
    block: int = BLOCK


class SimulatedServer:
    """Adds to a wire format what every simulator has: a model, counters, a reset."""

    def __init__(self, settings: Settings) -> None:
        self._engine = Engine(settings.rates, settings.errs)
        self._wire: SGLangWire | VllmWire = (
            SGLangWire(self._engine)
            if settings.kind == "sglang"
            else VllmWire(self._engine, scale_out=settings.scale_out, block=settings.block)
        )

    async def handle(self, path: str, body: bytes, reply: Reply) -> None:
        """Answer one request."""
        if path == "/v1/models":
            reply.json(orjson.dumps({"object": "list", "data": [{"id": MODEL}]}))
        elif path == "/counters":
            reply.json(orjson.dumps(self._engine.counters))
        elif path == "/reset":  # between two sides of a comparison
            self._engine.forget()
            reply.json(b"{}")
        elif path in _TOKENIZING | _COMPUTING:
            self._engine.counters.requests += path in _COMPUTING
            await self._wire.handle(path, body, reply)
        else:
            reply.json(b'{"error":{"message":"no such path"}}', 404)


def main() -> None:
    """Serve on a free port, which is the first line of the output."""
    asked = orjson.loads(sys.argv[1])
    server = SimulatedServer(Settings(**{**asked, "rates": Rates(**asked["rates"])}))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    # So that a client that reads nothing stops a stream soon.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvloop.run(serve_http(server.handle, listener))


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(0)
