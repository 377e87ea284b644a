"""Runs several processes behind one address: starts, replaces and ends the workers."""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from proxy.backends.worker_slots import WorkerSlots
from proxy.config import Config, EmbeddedConfig
from proxy.errors import ConfigError, StartError
from proxy.processes import command_of
from proxy.serving.health import Pulse, answering
from proxy.serving.logs import shown_format
from proxy.serving.reload import SIGHUP, ReadConfig, reread
from proxy.serving.serve import base_url, listen, listen_for_health, log_draining
from proxy.serving.shared_seats import SharedSeats
from proxy.serving.worker import DRAIN, Order, config_line

_log = logging.getLogger(__name__)

# The time to cancel requests and close upstreams; then the worker is killed.
_STOP_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 60.0


def supervise(
    config: Config,
    wait_s: float,
    num_workers: int,
    worker: Sequence[str],
    read: ReadConfig | None = None,
) -> None:
    """Serve with `num_workers` processes until a signal, as `serve` does with one.

    `worker` is the module that a process runs, with what it gets after the two descriptors.

    Raises `ConfigError` if the configuration cannot be divided among the processes, `StartError` if
    they cannot be started.
    """
    if sys.platform != "linux":
        raise StartError("--workers above 1 needs Linux, whose kernel spreads the connections")
    _check_can_be_divided(config, num_workers)
    try:
        folder = tempfile.TemporaryDirectory(prefix="motab-")
    except OSError as error:
        raise StartError(f"no folder for what the workers share: {error}") from error
    log_level = logging.getLogger("proxy").level
    with (
        folder as path,
        listen(config.server.host, config.server.port) as listener,
        listen_for_health(config.server) as health_listener,
    ):
        slots, log_format = WorkerSlots(0, num_workers), shown_format()
        order = Order(config, wait_s, slots, Path(path), log_level, log_format)
        with order.seats() as seats, order.pulse() as pulse, answering(health_listener, pulse):
            asyncio.run(_Supervisor(order, listener, seats, pulse, read, worker).run())


def _check_can_be_divided(config: Config, num_workers: int) -> None:
    for where, server in config.called().items():
        if isinstance(server, EmbeddedConfig):
            message = (
                "every worker would load an embedded model for itself: use one worker, or run a "
                "llama.cpp server and kind llamacpp"
            )
            raise ConfigError(f"{where}.kind: {message}")
        if server.max_concurrent < num_workers:
            message = (
                f"is divided among the workers and must be at least their number, {num_workers}, "
                f"not {server.max_concurrent}"
            )
            raise ConfigError(f"{where}.max_concurrent: {message}")


@dataclass(frozen=True, slots=True)
class _Process:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a worker's process, and whether it served before."""

    served: bool
    why: str
    is_clean: bool = False


class _Supervisor:
    """Runs a worker for every share of `order`, which is the first worker's."""

    def __init__(
        self,
        order: Order,
        listener: socket.socket,
        seats: SharedSeats,
        pulse: Pulse,
        read: ReadConfig | None,
        worker: Sequence[str],
    ) -> None:
        self._order = order
        self._module, *self._further = worker
        self._read = read
        self._num_workers = order.worker_slots.num_workers
        self._seats = seats
        self._pulse = pulse
        self._family = listener.family
        self._address = listener.getsockname()
        self._url = base_url(listener)
        # This socket was bound while nobody else had the address. Later sockets of ours may share
        # it, and nobody else can get it while one of them listens. The first worker gets this one.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._first_listener: socket.socket | None = listener
        self._keepers: list[asyncio.Task[None]] = []
        self._serving: dict[int, _Process] = {}
        self._channels: set[asyncio.StreamWriter] = set()
        self._all_served = False
        self._draining = asyncio.Event()
        self._problem: StartError | None = None

    async def run(self) -> None:
        """Keep the workers running until they have drained. Raises `StartError` after giving up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        if self._read is not None and SIGHUP is not None:
            loop.add_signal_handler(SIGHUP, self._reload, self._read)
        async with asyncio.TaskGroup() as group:
            self._keepers = [
                group.create_task(self._keep(worker)) for worker in range(self._num_workers)
            ]
        if self._problem is not None:
            raise self._problem

    def _on_signal(self) -> None:
        if self._draining.is_set():
            for keeper in self._keepers:
                keeper.cancel()
        else:
            log_draining(self._seats.num_taken)
            self._drain()

    def _reload(self, read: ReadConfig) -> None:
        """Give the replicas that the configuration names by now to every worker, and to those that
        will be started in the place of others.
        """
        config = reread(read, self._order.config)
        if config is None:
            return
        self._order = replace(self._order, config=config)
        for channel in self._channels:
            channel.write(config_line(config))

    def _drain(self) -> None:
        self._draining.set()
        for channel in self._channels:
            channel.write(DRAIN)

    async def _keep(self, worker: int) -> None:
        """Run one worker, and another in its place when it ends, until all drain.

        A worker that cannot start is tried again ever more rarely while others serve, because its
        upstream may be down for a while. If none serves, or not all ever did, the supervisor gives
        up.
        """
        num_failed = 0
        while not self._draining.is_set():
            end = await self._run(worker)
            if self._draining.is_set():
                if end.served and not end.is_clean:
                    _log.error("worker %d ended: %s", worker + 1, end.why)
                return
            if end.served:
                num_failed = 0
                _log.error("worker %d ended: %s; starting another", worker + 1, end.why)
                continue
            if not (self._all_served and self._serving):
                self._problem = StartError(end.why)
                self._drain()
                return
            pause_s = min(2.0**num_failed, _LONGEST_PAUSE_S)
            num_failed += 1
            _log.error("worker %d: %s; trying again in %g s", worker + 1, end.why, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._draining.wait()

    async def _run(self, worker: int) -> _End:
        try:
            async with self._process(worker) as running:
                problem = await _started(running)
                if problem is None:
                    self._now_serves(worker, running)
                code = await running.process.wait()
        except StartError as error:
            return _End(served=False, why=str(error))
        except OSError as error:  # no memory or no descriptors are left, perhaps for a while
            return _End(served=False, why=f"no worker can be started: {error}")
        finally:
            self._serving.pop(worker, None)
        if problem is None:
            return _End(served=True, why=_how(code), is_clean=code == 0)
        return _End(served=False, why=problem or f"a worker ended as it started: {_how(code)}")

    def _now_serves(self, worker: int, running: _Process) -> None:
        self._serving[worker] = running
        if self._all_served:
            _log.info("worker %d serves again", worker + 1)
        elif len(self._serving) == self._num_workers:
            self._all_served = True
            models = ", ".join(self._order.config.models)
            _log.info("serving %s on %s by %d workers", models, self._url, self._num_workers)

    @asynccontextmanager
    async def _process(self, worker: int) -> AsyncIterator[_Process]:
        """Run a worker's process. At the end it is gone, and its seats are free."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        worker_slots = WorkerSlots(worker, self._num_workers)
        writer.write(replace(self._order, worker_slots=worker_slots).line())
        self._channels.add(writer)  # now, so that an order to drain comes second
        try:
            with theirs, self._listener() as listener:
                handed = (theirs.fileno(), listener.fileno())
                process = await asyncio.create_subprocess_exec(
                    *command_of(self._module),
                    *map(str, handed),
                    *self._further,
                    pass_fds=handed,
                    stdin=asyncio.subprocess.DEVNULL,
                    # Otherwise Ctrl-C would reach it, too.
                    process_group=0,
                )
            try:
                yield _Process(process, reader)
            finally:
                writer.close()
                await _ended(process)
                self._seats.clear(worker)
                self._pulse.clear(worker)
                mark_process_dead(worker, str(self._order.folder))  # type: ignore[no-untyped-call]
        finally:
            self._channels.remove(writer)
            writer.close()

    def _listener(self) -> socket.socket:
        """A socket at the address of all workers, which does not listen before its worker can.

        Each worker has its own, because a shared socket would give a whole burst of connections to
        the worker that wakes first.
        """
        if self._first_listener is not None:
            listener, self._first_listener = self._first_listener, None
            return listener
        listener = socket.socket(self._family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(self._address)
        except OSError as error:
            listener.close()
            raise StartError(f"cannot listen on {self._url} any more: {error.strerror}") from error
        return listener


async def _started(running: _Process) -> str | None:
    """Return None once it serves, else the reason; empty if it ended without a message."""
    try:
        line = await running.reader.readline()
    except ConnectionError:  # it ended without reading its order
        line = b""
    problem: str | None = json.loads(line) if line else ""
    return problem


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code} ({signal.strsignal(-code)})"
