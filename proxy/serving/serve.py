"""Runs the proxy: one socket, one event loop, a clean end."""

import asyncio
import ctypes
import gc
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import uvicorn

from proxy.api.app import create_app
from proxy.api.service import Service
from proxy.config import Config
from proxy.engine.corrections.answers import AnswerReader
from proxy.errors import StartError
from proxy.server_config import ServerConfig
from proxy.serving.connection import Limits, connecting
from proxy.serving.health import Pulse, answering
from proxy.serving.reload import ReadConfig, reloading
from proxy.wiring.models import open_service

_log = logging.getLogger(__name__)
T = TypeVar("T")

_M_MMAP_THRESHOLD = -3  # malloc.h
_MMAP_THRESHOLD = 128 * 1024  # what it begins with
# Longer than the idle time of any client's pool that we know of, so that it is the client that
# closes idle connections and no request meets a closing one.
_KEEP_ALIVE_S = 75

BACKLOG = 2048
"""Connections that may wait to be accepted."""


class Server(uvicorn.Server):
    """Takes no more requests once it drains, and ends when those under way are done."""

    def __init__(self, service: Service, *, on_signals: bool) -> None:
        own = service.config
        limits = Limits(
            connections=connections_that_fit(own.max_connections),
            stall_s=own.client_stall_timeout_s,
        )
        config = uvicorn.Config(
            create_app(service),
            http=connecting(limits),
            # Nothing here speaks WebSocket; an upgrade would need the rest of a transport, too.
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_keep_alive=_KEEP_ALIVE_S,
            # Nothing here asks for the address or the scheme of a client.
            proxy_headers=False,
            server_header=False,
        )
        super().__init__(config)
        self._service = service
        self._on_signals = on_signals

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own raises the signal again at the end, which would skip our clean-up."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM) if self._on_signals else ()
        for number in signals:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def abandon_requests(self) -> None:
        """End what a second signal left running, before its upstreams are closed under it."""
        tasks = set(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def drain(self) -> None:
        """Take no more requests."""
        self._service.admission.draining = True
        self.should_exit = True

    def stop(self) -> None:
        """Wait for nothing; `abandon_requests` comes next."""
        self.drain()
        self.force_exit = True

    def _on_signal(self) -> None:
        admission = self._service.admission
        if admission.draining:
            self.stop()
        else:
            log_draining(admission.num_active)
            self.drain()


def log_draining(num_active: int) -> None:
    """Say what a first signal does."""
    _log.info("draining: %d trajectories under way; signal again to stop at once", num_active)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `StartError` where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        # Python adds the address to strerror once more.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StartError(f"cannot listen on {host}:{port}: {reason}") from error


@contextmanager
def listen_for_health(config: ServerConfig) -> Iterator[socket.socket | None]:
    """A listening socket for `/health` alone, if the configuration has a port for it.

    Raises `StartError`.
    """
    if config.health_port is None:
        yield None
        return
    with listen(config.host, config.health_port) as listener:
        yield listener


async def serve(
    config: Config, wait_s: float, reader: AnswerReader, read: ReadConfig | None = None
) -> None:
    """Open everything that the configuration names and serve until a signal.

    `reader` reads the answers of corrections, and `read` the configuration again when a SIGHUP asks
    for that.
    """
    with (
        listen(config.server.host, config.server.port) as listener,
        listen_for_health(config.server) as health_listener,
        Pulse() as pulse,
        answering(health_listener, pulse),
    ):
        async with (
            open_service(config, wait_s, reader=reader) as service,
            pulse.beating(),
            reloading(service, config, read),
        ):
            _log.info("serving %s on %s", ", ".join(config.models), base_url(listener))
            server = Server(service, on_signals=True)
            settle_memory()
            await server.serve(sockets=[listener])
            await server.abandon_requests()


def connections_that_fit(wanted: int) -> int:
    """Return how many connections clients may hold open, at most `wanted`.

    Without files left, a process neither accepts connections nor opens any to its upstreams. So the
    process may open as many files as it is allowed to, and clients get half of them.
    """
    if sys.platform == "win32":
        return wanted
    import resource  # noqa: PLC0415 - not on every platform

    most, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted
    if most == resource.RLIM_INFINITY:
        return wanted
    if most < needed:
        most = needed if allowed == resource.RLIM_INFINITY else min(needed, allowed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, allowed))
    fitting = min(wanted, most // 2)
    if fitting < wanted:
        message = "the limit of open files (ulimit -n) is %d: clients get %d connections, not %d"
        _log.warning(message, most, fitting, wanted)
    return fitting


def settle_memory() -> None:
    """Prepare the process for serving, once all is loaded and before the first request."""
    # Out of the garbage collector's sight: hundreds of thousands of objects, nearly all of them
    # modules', which live as long as the process. A trajectory makes many objects, so they would
    # be gone through again and again.
    gc.collect()
    gc.freeze()
    # From the default of 700 on, collecting took 4% of the processor under plain requests.
    gc.set_threshold(10_000)
    # glibc maps large blocks one by one, and so gives them back. But with each of them that is
    # freed it takes larger ones from the heap, up to 32 MiB: the lists of long trajectories then
    # leave holes in it, and each fleet of them needs more than the one before. Once said, the
    # size stays. https://man7.org/linux/man-pages/man3/mallopt.3.html
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)


@asynccontextmanager
async def running(config: Config, reader: AnswerReader | None = None) -> AsyncIterator[str]:
    """The proxy inside this event loop, as the demo uses it; gives its base URL."""
    with listen(config.server.host, config.server.port) as listener:
        async with open_service(config, reader=reader) as service:
            server = Server(service, on_signals=False)
            task = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield base_url(listener)
            finally:
                server.should_exit = True
                await task


def base_url(listener: socket.socket) -> str:
    """The URL at which clients find the API."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop  # noqa: PLC0415 - not on every platform

    return uvloop.run(main)
