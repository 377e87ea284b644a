"""Models that motab serves itself: a llama.cpp server process per model, from `xllamacpp`."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.backends.embedded.process import LISTENING
from proxy.errors import StartError
from proxy.processes import command_of

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0
_RESTART_PAUSE_S = 1.0
_STOP_TIMEOUT_S = 5.0
_LOG_TAIL = 20


class EmbeddedServer:
    """One llama.cpp server process: started, watched, started again if it dies, stopped.

    `base_url` is known once the server is up and stays the same over restarts.
    """

    def __init__(
        self, name: str, path: Path, num_slots: int, context_tokens: int, num_threads: int
    ) -> None:
        self._name = name
        self._path = path
        self._settings = (str(num_slots), str(context_tokens), str(num_threads))
        self._log_tail: deque[str] = deque(maxlen=_LOG_TAIL)
        self.base_url = ""

    async def start(self) -> asyncio.subprocess.Process:
        """Start the process and wait until it listens. Raises `StartError` with its last words."""
        port = self.base_url.rpartition(":")[2] or "0"
        process = await asyncio.create_subprocess_exec(
            *command_of("proxy.backends.embedded.process"),
            str(self._path),
            "127.0.0.1",
            port,
            *self._settings,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl+C in a terminal is for the proxy, which has texts to finish with this server.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                self.base_url = await self._address(process)
        except TimeoutError as error:
            await _stop(process)
            raise self._not_started(f"nothing after {_START_TIMEOUT_S:g} s") from error
        except BaseException:
            await _stop(process)
            raise
        return process

    def _not_started(self, why: str) -> StartError:
        tail = "\n  ".join(self._log_tail)
        return StartError(f"the embedded server '{self._name}' did not start: {why}\n  {tail}")

    async def _address(self, process: asyncio.subprocess.Process) -> str:
        async for line in _lines(process):
            if line.startswith(LISTENING):
                return line.removeprefix(LISTENING)
            self._log_tail.append(line)
        raise self._not_started("it ended")

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
    name: str, path: Path, num_slots: int, context_tokens: int, num_threads: int
) -> AsyncIterator[EmbeddedServer]:
    """A running server for the time of the context."""
    server = EmbeddedServer(name, path, num_slots, context_tokens, num_threads)
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
