"""Models that motab serves itself: a llama.cpp server process per model, from `xllamacpp`."""

import asyncio
import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module, metadata
from pathlib import Path

from proxy.errors import ConfigError, StartError

_log = logging.getLogger(__name__)

_PACKAGE_PREFIX = "package:"
_START_TIMEOUT_S = 120.0
_RESTART_PAUSE_S = 1.0
_STOP_TIMEOUT_S = 5.0
_LOG_TAIL = 20


def cache_dir() -> Path:
    """Where files that motab makes for itself are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motab"


def gguf_path(model: str) -> Path:
    """The GGUF file that `model` names: a path, or `package:NAME` for one inside a package.

    A package that carries its file in parts (and an `assemble` function) is put together once,
    in the cache. Raises `ConfigError` where there is no such file or package.
    """
    if not model.startswith(_PACKAGE_PREFIX):
        path = Path(model).expanduser()
        if not path.is_file():
            raise ConfigError(f"no GGUF file at '{path}'; name a file, or package:NAME")
        return path
    name = model.removeprefix(_PACKAGE_PREFIX)
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        message = f"the package '{name}' is not installed (`make demo` installs the demo's models)"
        raise ConfigError(message) from error
    for file in distribution.files or ():
        if file.suffix == ".gguf":
            return Path(str(distribution.locate_file(file)))
    return _assembled(name)


def _assembled(package: str) -> Path:
    module = import_module(package.replace("-", "_"))
    if not hasattr(module, "assemble"):
        raise ConfigError(f"the package '{package}' carries no GGUF file")
    target = cache_dir() / "models" / f"{package}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that a killed run leaves no half file behind.
        aside = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            module.assemble(aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    return target


class EmbeddedServer:
    """One llama.cpp server process: started, watched, started again if it dies, stopped.

    `base_url` is known once the server is up and stays the same over restarts.
    """

    def __init__(self, name: str, model: str, num_slots: int, context_tokens: int) -> None:
        self._name = name
        self._path = gguf_path(model)
        self._num_slots = num_slots
        self._context_tokens = context_tokens
        self._log_tail: deque[str] = deque(maxlen=_LOG_TAIL)
        self.base_url = ""

    async def start(self) -> asyncio.subprocess.Process:
        """Start the process and wait until it listens. Raises `StartError` with its last words."""
        port = self.base_url.rpartition(":")[2] or "0"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "proxy.backends.embedded_server",
            str(self._path),
            "127.0.0.1",
            port,
            str(self._num_slots),
            str(self._context_tokens),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                self.base_url = await self._address(process)
        except BaseException:
            await _stop(process)
            raise
        return process

    async def _address(self, process: asyncio.subprocess.Process) -> str:
        async for line in _lines(process):
            if line.startswith("http://"):
                return line
            self._log_tail.append(line)
        tail = "\n  ".join(self._log_tail)
        raise StartError(f"the embedded server '{self._name}' did not start:\n  {tail}")

    async def serve(self, process: asyncio.subprocess.Process) -> None:
        """Watch the process and start it again whenever it dies, until cancelled."""
        try:
            while True:
                await self._drain_log(process)
                code = await process.wait()
                _log.error(
                    "embedded server '%s' ended with code %s; starting it again", self._name, code
                )
                await asyncio.sleep(_RESTART_PAUSE_S)
                process = await self.start()
        finally:
            await _stop(process)

    async def _drain_log(self, process: asyncio.subprocess.Process) -> None:
        async for line in _lines(process):
            self._log_tail.append(line)
            _log.debug("%s: %s", self._name, line)


@asynccontextmanager
async def embedded_server(
    name: str, model: str, num_slots: int, context_tokens: int
) -> AsyncIterator[EmbeddedServer]:
    """A running server for the time of the context."""
    server = EmbeddedServer(name, model, num_slots, context_tokens)
    process = await server.start()
    watcher = asyncio.create_task(server.serve(process))
    try:
        yield server
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    if process.stdout is None:
        raise StartError("the embedded server was started without a pipe to read it by")
    async for raw in process.stdout:
        yield raw.decode(errors="replace").rstrip()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
