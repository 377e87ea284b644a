"""Runs `motab serve --workers N` in front of a scripted llama.cpp server."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.replay import Replay, json_reply, stream_reply

MOTAB = (sys.executable, "-m", "motab")
REQUEST = {"model": "student/only", "prompt": "Q"}
LIMIT = 16
END = {
    "content": "x",
    "stop": True,
    "stop_type": "eos",
    "tokens_predicted": 2,
    "timings": {"cache_n": 0},
}
LOADING = json_reply({"error": {"message": "Loading model", "code": 503}}, 503)


def writes_after(up: Replay, gate: asyncio.Event | None) -> None:
    end = b"data: " + json.dumps(END).encode() + b"\n\n"
    up.on("POST", "/completion", stream_reply(end, after=gate))


@dataclass(slots=True)
class Served:
    """A `motab serve`, what it said so far, and where it serves."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    said: asyncio.Condition = field(default_factory=asyncio.Condition)
    url: str = ""

    async def listen(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self.said:
                self.lines.append(line.decode())
                self.said.notify_all()

    async def until_said(self, text: str) -> str:
        """The first line with it."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        try:
            async with asyncio.timeout(PATIENCE_S), self.said:
                line = await self.said.wait_for(found)
        except TimeoutError:
            pytest.fail("".join(self.lines))
        assert line is not None
        return line

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def connections(self, worker: psutil.Process) -> int:
        """Those that it has accepted from clients."""
        port = int(self.url.rpartition(":")[2])
        return sum(
            c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port
            for c in worker.net_connections("tcp")
        )


@asynccontextmanager
async def motab(
    llama: Replay,
    folder: Path,
    *arguments: str,
    num: int = 2,
    ready: bool = True,
    motab: tuple[str, ...] = MOTAB,
    cwd: Path = ROOT,
    upstreams: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    **server: Any,
) -> AsyncIterator[Served]:
    """It serves with `num` workers, unless `ready` is not waited for. Afterwards it is gone.

    `upstreams` stands in place of the only one, which is `llama`.
    """
    path = config(llama, folder, upstreams, **server)
    command = [*motab, "serve", "--config", str(path), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--workers",
        str(num),
        *arguments,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
            **(environment or {}),
        },
        stderr=asyncio.subprocess.PIPE,
        # As a terminal's foreground job is.
        process_group=0,
    )
    served = Served(process)
    async with asyncio.TaskGroup() as group:
        group.create_task(served.listen())
        try:
            if ready:
                found = re.search(r"http://[\d.:]+(?=/v1)", await served.until_said("serving pair"))
                assert found
                served.url = found[0]
            yield served
        finally:
            if process.returncode is None:
                process.kill()  # its workers go with it, which a test of its own holds it to
            await process.wait()


def config(
    llama: Replay, folder: Path, upstreams: Mapping[str, Any] | None = None, **server: Any
) -> Path:
    """A file with these upstreams, and a pair of the first and the last."""
    only = {"only": {"kind": "llamacpp", "base_url": llama.client.base_url, "model": "m"}}
    found = dict(upstreams or only)
    names = list(found)
    written = {
        "server": server,
        "upstreams": found,
        "models": {"pair": {"student": names[0], "teacher": names[-1]}},
    }
    path = folder / "motab.yaml"
    path.write_text(json.dumps(written), encoding="utf-8")
    return path


async def clients(stack: AsyncExitStack, num: int) -> list[httpx.AsyncClient]:
    """Each has a connection of its own."""
    made = [httpx.AsyncClient(timeout=PATIENCE_S) for _ in range(num)]
    for client in made:
        await stack.enter_async_context(client)
    return made


async def ask(client: httpx.AsyncClient, served: Served) -> int:
    """The answer's status; 0 where the connection broke."""
    try:
        response = await client.post(f"{served.url}/v1/completions", json=REQUEST)
    except httpx.TransportError:
        return 0
    return response.status_code


async def ask_all(asking: Sequence[httpx.AsyncClient], served: Served) -> list[int]:
    return list(await asyncio.gather(*(ask(client, served) for client in asking)))


async def samples(served: Served) -> dict[tuple[str, ...], float]:
    """The metrics of whichever worker answers."""
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        text = (await client.get(f"{served.url}/metrics")).text
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[name] for name in sorted(sample.labels)))
            assert key not in found
            found[key] = sample.value
    return found


async def num_safe(served: Served) -> float:
    return (await samples(served))["motab_trajectories_total", "student", "student/only", "safe"]


async def until_active(served: Served, num: int) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (await samples(served))["motab_active_trajectories",] != num:
        assert asyncio.get_running_loop().time() < deadline, "".join(served.lines)


async def until_refused(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # it came while a worker was closing its socket
                continue
            writer.close()


async def failure(served: Served) -> str:
    """The one error that it ends with."""
    assert await served.ended() == 1
    await served.until_said("motab: ")
    (line,) = (line for line in served.lines if line.startswith("motab: "))
    assert served.lines[-1] == line
    return line.removeprefix("motab: ")
