"""Runs `motab serve` in front of two toy servers."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.synth_client.runs import ENV
from tests.support.toy_servers import Kind, Model, Toy, toy_server

STUDENT = Model(["So", " the", " sum", " is", " √2", "7"], salt=1)


TEACHER = Model([" th", "e", "So", " su", "m", " 4"], salt=2)


PARAMS = {
    "base_threshold": 0.33,
    "entropy_scale": 0.05,
    "entropy_top_k": 3,
    "max_step_tokens": 25,
    "max_total_tokens": 40,
}


class Proxy:
    """`motab serve`, always on the same port. `more` are further arguments.

    It runs no longer than the `async with` block in which it is used.
    """

    def __init__(self, config: Path, *more: str) -> None:
        self._config, self._port, self._more = config, "0", more
        self._process: asyncio.subprocess.Process | None = None
        self._said: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            await self._end(self._process)

    async def start(self) -> str:
        """Its base URL, once it serves."""
        self._said = None
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "motab", "serve"),
            *("--config", str(self._config), "--port", self._port, *self._more),
            cwd=ROOT,
            env=ENV,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        said = ""
        while not (found := re.search(r"serving .* on (http://\S+:(\d+)/v1)", said)):
            line = await self._process.stderr.readline()
            assert line, said
            said += line.decode()
        # A full pipe would hold it up.
        self._said = asyncio.create_task(self._process.stderr.read())
        self._port = found[2]
        return found[1]

    def processes(self) -> list[psutil.Process]:
        """The process and its workers, where it has some."""
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    async def kill(self) -> str:
        """With -9; afterwards it is gone, with its workers. Gives what it said since it served."""
        assert self._process is not None
        said = await self._end(self._process)
        assert self._process.returncode == -signal.SIGKILL
        return said.decode()

    async def _end(self, process: asyncio.subprocess.Process) -> bytes:
        with suppress(ProcessLookupError):  # it has ended itself
            process.kill()
        assert process.stderr is not None
        # Ends with the last worker, which has the same pipe.
        said = await (self._said or process.stderr.read())
        await process.wait()
        return said


@asynccontextmanager
async def toys(
    kind: Kind = "vllm", make: Callable[[Kind, Model], Toy] = Toy
) -> AsyncIterator[Mapping[str, Toy]]:
    """Both models' servers, which outlive whatever is killed."""
    async with (
        toy_server(kind, STUDENT, make) as student,
        toy_server(kind, TEACHER, make) as teacher,
    ):
        yield {"student": student, "teacher": teacher}


def write_config(
    path: Path,
    servers: Mapping[str, Toy],
    *,
    server: Mapping[str, Any] | None = None,
    **upstream: Any,
) -> Path:
    """Write a configuration whose upstreams all have these further settings."""
    template = "{% for message in messages %}{{ message.content }}{% endfor %}: "
    upstreams: dict[str, Any] = {
        name: {
            "kind": toy.kind,
            "base_url": toy.base_url,
            "model": "toy",
            "chat_template": template,
            "reasoning": "none",
            **upstream,
        }
        for name, toy in servers.items()
    }
    pair = {"student": "student", "teacher": "teacher", "params": PARAMS}
    config = {"server": server or {}, "upstreams": upstreams, "models": {"motab/pair": pair}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


async def requests_to(toy: Toy, number: int) -> None:
    """Wait until that many more have come."""
    goal = toy.num_requests.total() + number
    async with asyncio.timeout(PATIENCE_S):
        while toy.num_requests.total() < goal:
            toy.came.clear()
            await toy.came.wait()
