"""Runs the processes of a measurement, simulated servers and the proxy, and meters their use."""

import asyncio
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiohttp
import orjson
import psutil
import yaml

from benchmarks.published_loop import Order, Report, read_report
from benchmarks.simulator.engine import Counters, Rates
from benchmarks.simulator.server import MODEL, Kind, Settings
from benchmarks.simulator.words import write_tokenizer

_START_S = 240.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A running process of ours."""

    name: str
    base_url: str
    pid: int

    def cpu_s(self) -> float:
        """Processor seconds so far, including its children's."""
        own = psutil.Process(self.pid)
        family = [own, *own.children(recursive=True)]
        return sum(t.user + t.system for t in (p.cpu_times() for p in family))

    def rss_mb(self) -> float:
        """Resident memory in MB, including its children's."""
        own = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in (own, *own.children(recursive=True))) / 1e6


@dataclass(frozen=True, slots=True)
class Simulator(Process):
    """A simulated server."""

    kind: Kind
    model: str = MODEL
    tokenizer: str | None = None
    """None means the simulators' own tokenizer."""

    async def counters(self) -> Counters:
        """Return the counters since the last reset."""
        return Counters(**await _get(f"{self.base_url}/counters"))

    async def reset(self) -> None:
        """Set the counters to 0 and empty the cache."""
        await _get(f"{self.base_url}/reset")


@asynccontextmanager
async def simulator(kind: Kind, rates: Rates, *, errs: bool = False) -> AsyncIterator[Simulator]:
    """Run a simulated server in its own process; `errs`: it writes the breaches of the plans."""
    settings = Settings(kind, rates, errs).dumps()
    command = [sys.executable, "-m", "benchmarks.simulator.server", settings]
    async with child(command, stdout=asyncio.subprocess.PIPE) as process:
        if process.stdout is None:
            raise RuntimeError("the simulator's output is not read")
        port = int(await process.stdout.readline())
        yield Simulator(f"simulated {kind}", f"http://127.0.0.1:{port}", process.pid, kind)


@dataclass(frozen=True, slots=True)
class Served:
    """A real server that someone else runs."""

    base_url: str
    kind: Kind
    model: str
    tokenizer: str | None
    """The folder of its model's tokenizer."""


S = TypeVar("S", Simulator, Served)


@dataclass(frozen=True, slots=True)
class Pair(Generic[S]):
    """A student and a teacher, as the proxy's configuration names them."""

    student: S
    teacher: S
    params: dict[str, Any] = field(default_factory=dict)
    teacher_gpus: float = 1.0
    """The cost of a teacher's second, in seconds of the student."""


@asynccontextmanager
async def simulated_pair(
    kind: Kind, student: Rates, teacher: Rates, *, errs: bool = False
) -> AsyncIterator[Pair[Simulator]]:
    """Two simulated servers; `errs`: the student writes the plans' breaches."""
    async with simulator(kind, student, errs=errs) as writer, simulator(kind, teacher) as scorer:
        yield Pair(writer, scorer)


@asynccontextmanager
async def proxy(pairs: dict[str, Pair[S]]) -> AsyncIterator[Process]:
    """Run `motab serve` with each pair under its name, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "config.yaml", Path(folder) / "log"
        write_tokenizer(Path(folder) / "tokenizer")
        port = free_port()
        path.write_text(yaml.safe_dump(_config(pairs, Path(folder) / "tokenizer", port)), "utf-8")
        command = [sys.executable, "-m", "motab", "serve", "--config", str(path)]
        with log.open("wb") as output:
            async with child(command, stdout=output, stderr=output) as process:
                running = Process("motab serve", f"http://127.0.0.1:{port}", process.pid)
                try:
                    await answering(f"{running.base_url}/health", process)
                except RuntimeError as error:
                    raise RuntimeError(f"{error}: {log.read_text('utf-8')[-2000:]}") from error
                yield running


def _config(pairs: dict[str, Pair[S]], tokenizer: Path, port: int) -> dict[str, Any]:
    upstreams: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for name, pair in pairs.items():
        for role, server in (("student", pair.student), ("teacher", pair.teacher)):
            upstreams[f"{name}-{role}"] = {
                "kind": server.kind,
                "base_url": server.base_url,
                "model": server.model,
                "tokenizer": server.tokenizer or str(tokenizer),
                "max_concurrent": 4096,
                "gpus": pair.teacher_gpus if role == "teacher" else 1.0,
            }
        models[name] = {
            "student": f"{name}-student",
            "teacher": f"{name}-teacher",
            "params": pair.params,
        }
    listens = {"port": port, "max_concurrent": 4096}
    return {"server": listens, "upstreams": upstreams, "models": models}


@asynccontextmanager
async def child(
    command: Sequence[str],
    **streams: Any,  # noqa: ANN401 - asyncio's own keywords
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process, and end it when the context ends."""
    process = await asyncio.create_subprocess_exec(*command, **streams)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def answering(url: str, process: asyncio.subprocess.Process) -> None:
    """Return when `url` answers. Raises `RuntimeError` if it does not."""
    try:
        async with asyncio.timeout(_START_S), aiohttp.ClientSession() as session:
            while process.returncode is None:
                try:
                    async with session.get(url) as response:
                        if response.ok:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise RuntimeError(f"{url} did not answer within {_START_S:g} s") from error
    raise RuntimeError(f"the process of {url} ended with {process.returncode}")


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _get(url: str) -> Any:  # noqa: ANN401
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        response.raise_for_status()
        return orjson.loads(await response.read())


async def published_loop(order: Order) -> Report:
    """Run the published loop in its own processes."""
    command = [sys.executable, "-m", "benchmarks.published_loop", order.dumps()]
    async with child(command, stdout=asyncio.subprocess.PIPE) as process:
        output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the published loop ended with {process.returncode}")
    return read_report(output)
