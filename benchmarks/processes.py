"""Runs the processes of a measurement, simulated servers and the proxy, and meters their use."""

import asyncio
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import aiohttp
import orjson
import psutil
import yaml

from benchmarks.counted import COUNT_FILE
from benchmarks.published_loop import LoopKind, Order, Report, read_report
from benchmarks.simulator.engine import Counters, Rates
from benchmarks.simulator.server import MODEL, Kind, Settings
from benchmarks.simulator.vllm import BLOCK
from benchmarks.simulator.words import DELIMITER, write_tokenizer

PAIR = "pair"
"""The name of the only pair behind a proxy."""
KEY = "sk-" + secrets.token_hex(16)
"""Sent with every request, because litellm's proxy requires a key; the others ignore it."""
_START_S = 240.0
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Process:
    """A running process of ours."""

    base_url: str
    pid: int
    http: aiohttp.ClientSession
    """Connections to it, without a limit of number or time."""

    def cpu_s(self) -> float:
        """Processor seconds so far, including its children's."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    def rss_mb(self) -> float:
        """Resident memory in MB, including its children's."""
        return sum(process.memory_info().rss for process in self._family()) / 1e6

    def _family(self) -> list[psutil.Process]:
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]

    async def get(self, path: str) -> Any:  # noqa: ANN401
        """Return the JSON answer to a GET."""
        async with self.http.get(f"{self.base_url}{path}") as response:
            response.raise_for_status()
            return orjson.loads(await response.read())

    async def post(self, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the JSON answer to a POST. Raises `RuntimeError` for an error's status."""
        url = f"{self.base_url}{path}"
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        async with self.http.post(url, data=orjson.dumps(body), headers=headers) as response:
            content = await response.read()
            if not response.ok:
                raise RuntimeError(f"{url} answered {response.status}: {content[:500]!r}")
            return orjson.loads(content)


@dataclass(frozen=True, slots=True)
class Simulator(Process):
    """A simulated server."""

    kind: Kind
    model: str = MODEL
    tokenizer: str | None = None
    """None means the simulators' own tokenizer."""

    async def counters(self) -> Counters:
        """Return the counters since the last reset."""
        return Counters(**await self.get("/counters"))

    async def reset(self) -> None:
        """Set the counters to 0 and empty the cache."""
        await self.get("/reset")


@asynccontextmanager
async def simulator(
    kind: Kind,
    rates: Rates,
    *,
    errs: bool = False,
    scale_out: bool = False,
    block: int = BLOCK,
) -> AsyncIterator[Simulator]:
    """Run a simulated server in its own process; `errs`: it writes the breaches of the plans."""
    settings = orjson.dumps(Settings(kind, rates, errs, scale_out, block)).decode()
    command = [sys.executable, "-m", "benchmarks.simulator.server", settings]
    async with _child(command, stdout=asyncio.subprocess.PIPE) as process, connections() as http:
        if process.stdout is None:
            raise RuntimeError("the simulator's output is not read")
        port = int(await process.stdout.readline())
        yield Simulator(f"http://127.0.0.1:{port}", process.pid, http, kind)


@dataclass(frozen=True, slots=True)
class Served:
    """A real server that someone else runs."""

    base_url: str
    kind: Kind | Literal["llamacpp"]
    model: str
    tokenizer: str | None
    """The folder of its model's tokenizer or its Hugging Face name, for the published loop."""


S = TypeVar("S", Simulator, Served)


@dataclass(frozen=True, slots=True)
class Pair(Generic[S]):
    """A student and a teacher, as the proxy's configuration names them."""

    student: S
    teacher: S
    params: dict[str, Any] = field(default_factory=dict)
    teacher_gpus: float = 1.0
    """The cost of a teacher's second, in seconds of the student."""
    max_concurrent: int = 4096
    """The places of each upstream."""
    more_students: tuple[S, ...] = ()
    more_teachers: tuple[S, ...] = ()
    """Further replicas."""


@asynccontextmanager
async def simulated_pair(
    kind: Kind, student: Rates, teacher: Rates, *, errs: bool = False
) -> AsyncIterator[Pair[Simulator]]:
    """Two simulated servers; `errs`: the student writes the plans' breaches."""
    async with simulator(kind, student, errs=errs) as writer, simulator(kind, teacher) as scorer:
        yield Pair(writer, scorer)


@asynccontextmanager
async def proxy(
    pairs: dict[str, Pair[S]],
    code: Path = _ROOT,
    count_file: Path | None = None,
    workers: int = 1,
    **server: Any,  # noqa: ANN401 - keys of the configuration
) -> AsyncIterator[Process]:
    """Run `motab serve` of the folder `code` with each pair under its name, in its own process.

    With `count_file`, `benchmarks.counted` runs it. `server` has more keys of that section of the
    configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        config = configuration(pairs, folder)
        config["server"] |= server
        variables = {"PYTHONPATH": str(code)}
        if count_file is not None:
            variables[COUNT_FILE] = str(count_file)
        module = "motab" if count_file is None else "benchmarks.counted"
        command = [sys.executable, "-P", "-m", module, "serve"]
        if workers > 1:  # an older version may not know the option
            command += ["--workers", str(workers)]
        async with served(command, config, "/health", **variables) as running:
            yield running


@asynccontextmanager
async def served(
    command: Sequence[str], config: dict[str, Any], health: str, **variables: str
) -> AsyncIterator[Process]:
    """Run a command that serves what a configuration file names, until the context ends."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "config.yaml", Path(folder) / "log"
        path.write_text(yaml.safe_dump(config), "utf-8")
        command = [*command, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        env = {**os.environ, **variables}
        with log.open("wb") as output:
            async with (
                _child(command, stdout=output, stderr=output, env=env) as process,
                connections() as http,
            ):
                running = Process(f"http://127.0.0.1:{port}", process.pid, http)
                try:
                    await _answering(running, health, process)
                except RuntimeError as error:
                    raise RuntimeError(f"{error}: {log.read_text('utf-8')[-2000:]}") from error
                yield running


def configuration(pairs: dict[str, Pair[S]], tokenizer: str) -> dict[str, Any]:
    """Return the proxy's configuration, given the folder of the simulators' tokenizer."""
    upstreams: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for name, pair in pairs.items():
        for role, server in (("student", pair.student), ("teacher", pair.teacher)):
            upstreams[f"{name}-{role}"] = {
                "kind": server.kind,
                **_address(server, pair.more_students if role == "student" else pair.more_teachers),
                "model": server.model,
                "tokenizer": _tokenizer(server, tokenizer),
                "max_concurrent": pair.max_concurrent,
                "gpus": pair.teacher_gpus if role == "teacher" else 1.0,
            }
        models[name] = {
            "student": f"{name}-student",
            "teacher": f"{name}-{'student' if pair.student is pair.teacher else 'teacher'}",
            "params": pair.params,
        }
    return {"server": {"max_concurrent": 4096}, "upstreams": upstreams, "models": models}


def _tokenizer(server: Simulator | Served, simulators: str) -> str:
    """Return where the proxy's token ids come from; a real server gives them itself."""
    return simulators if isinstance(server, Simulator) else "server"


def _address(server: S, more: Sequence[S]) -> dict[str, Any]:
    """Name a server without replicas as older versions do, too."""
    if not more:
        return {"base_url": server.base_url}
    return {"base_urls": [server.base_url, *(one.base_url for one in more)]}


@asynccontextmanager
async def connections() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session without a limit of number or time."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


@asynccontextmanager
async def _child(
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


async def _answering(running: Process, path: str, process: asyncio.subprocess.Process) -> None:
    """Return when `path` answers. Raises `RuntimeError` if it does not."""
    url = f"{running.base_url}{path}"
    try:
        async with asyncio.timeout(_START_S):
            while process.returncode is None:
                try:
                    async with running.http.get(url) as response:
                        if response.ok:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise RuntimeError(f"{url} did not answer within {_START_S:g} s") from error
    raise RuntimeError(f"the process of {url} ended with {process.returncode}")


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def published_loop(
    pair: Pair[S],
    questions: Sequence[str],
    *,
    teacher_prompts: Sequence[str] | None = None,
    workers: int = 1,
    delimiter: str = DELIMITER,
    base_threshold: float = 0.2,
    max_tokens: int = 32768,
) -> Report:
    """Run the published loop in its own processes. Raises `ValueError` for a llama.cpp server.

    Without `teacher_prompts` the teacher reads the questions as the student does.
    """
    student, teacher = pair.student, pair.teacher
    order = Order(
        _loop_kind(student),
        _loop_kind(teacher),
        student.base_url,
        teacher.base_url,
        workers,
        questions,
        questions if teacher_prompts is None else teacher_prompts,
        student.model,
        teacher.model,
        teacher.tokenizer,
        delimiter,
        base_threshold,
        max_tokens,
    )
    command = [sys.executable, "-m", "benchmarks.published_loop", orjson.dumps(order).decode()]
    async with _child(command, stdout=asyncio.subprocess.PIPE) as process:
        output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the published loop ended with {process.returncode}")
    return read_report(output)


def _loop_kind(server: Simulator | Served) -> LoopKind:
    if server.kind == "llamacpp":
        raise ValueError("the published loop asks SGLang and vLLM only")
    return server.kind
