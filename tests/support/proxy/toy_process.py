"""Runs a toy server as a process of its own: `python -m tests.support.proxy.toy_process ...`."""

import asyncio
import socket
import sys

from aiohttp import web

from tests.support.paths import ROOT
from tests.support.proxy.toy_pair import STUDENT, TEACHER
from tests.support.synth_client.runs import ENV
from tests.support.toy_servers import Kind, Toy

_MODELS = {"student": STUDENT, "teacher": TEACHER}


class SlowToy(Toy):
    """A toy that takes its time for every event, so that a text can break off in the middle."""

    event_s = 0.01

    async def answer(
        self, request: web.Request, events: list[bytes], *, streams: bool
    ) -> web.StreamResponse:
        if not streams:
            return await Toy.answer(self, request, events, streams=streams)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await asyncio.sleep(self.event_s)
            await response.write(event)
        return response


class ToyProcess:
    """A toy server that can be killed and started again at the same address."""

    def __init__(self, kind: Kind, role: str) -> None:
        self._kind, self._role = kind, role
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Return when it answers."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.proxy.toy_process"),
            *(self._kind, self._role, str(self._port)),
            cwd=ROOT,
            env=ENV,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"serving\n"

    async def kill(self) -> None:
        """With -9."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def _serve(kind: Kind, role: str, port: int) -> None:
    toy = SlowToy(kind, _MODELS[role])
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", toy.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    _, asked_kind, asked_role, asked_port = sys.argv
    assert asked_kind in {"vllm", "sglang", "llamacpp"}
    asyncio.run(_serve(asked_kind, asked_role, int(asked_port)))  # type: ignore[arg-type]
