"""Runs one of the processes of `motab serve --workers N`.

`proxy.serving.supervisor` starts it, by way of a module that gives it what reads answers; it is not
for use by hand. It gets commands over a socket: first its order, then perhaps configurations
with other replicas, and `DRAIN`. When the socket closes it stops at once, so it cannot outlive its
supervisor, however that ends. It sends one line back: that it serves, or why it does not.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from prometheus_client import values
from rich.console import Console

from proxy.api.metrics import Metrics
from proxy.backends.worker_slots import WorkerSlots
from proxy.config import Config
from proxy.engine.corrections.answers import AnswerReader
from proxy.errors import MotabError
from proxy.serving.health import Pulse
from proxy.serving.logs import LogFormat, show_logs
from proxy.serving.reload import SIGHUP, Reloader
from proxy.serving.serve import BACKLOG, Server, run, settle_memory
from proxy.serving.shared_seats import SharedSeats
from proxy.wiring.models import WorkerResources, open_service

DRAIN = b"drain\n"
# An order contains chat templates.
_MAX_LINE_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Order:
    """The configuration and the share that a worker must serve."""

    config: Config
    wait_s: float
    worker_slots: WorkerSlots
    folder: Path
    """Holds what the workers share: their metrics, the seats and their pulse."""
    log_level: int
    log_format: LogFormat

    def line(self) -> bytes:
        # Not pydantic's JSON, which has no infinity, although that is a legal time limit.
        config, worker_slots = self.config.model_dump(), asdict(self.worker_slots)
        rest = (str(self.folder), self.log_level, self.log_format)
        return json.dumps([config, self.wait_s, worker_slots, *rest]).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Self:
        config, wait_s, worker_slots, folder, log_level, log_format = json.loads(line)
        return cls(
            Config.model_validate(config),
            wait_s,
            WorkerSlots(**worker_slots),
            Path(folder),
            log_level,
            LogFormat(log_format),
        )

    def seats(self) -> SharedSeats:
        """The seats of the whole server; whoever opens them closes them."""
        return SharedSeats(self.folder / "seats", self.worker_slots)

    def pulse(self) -> Pulse:
        """The last beat of every worker; whoever opens it closes it."""
        return Pulse(self.worker_slots.num_workers, self.folder / "pulse")


def config_line(config: Config) -> bytes:
    """Return the command to take the replicas of a configuration."""
    return json.dumps(config.model_dump()).encode() + b"\n"


def started(problem: str | None = None) -> bytes:
    """A worker's only message, as JSON: it serves (null), or it has a problem."""
    return json.dumps(problem).encode() + b"\n"


class _Worker:
    def __init__(
        self,
        order: Order,
        listener: socket.socket,
        say: asyncio.StreamWriter,
        reader: AnswerReader,
    ) -> None:
        self._order = order
        self._reader = reader
        self._listener = listener
        self._say = say
        self._server: Server | None = None
        self._reloader = Reloader()

    async def run(self, orders: asyncio.StreamReader) -> int:
        """Serve until ordered to stop; return the exit code."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(self._serve())
            obeying = group.create_task(self._obey(orders, serving))
            # A service manager may signal every process, and the supervisor then orders to drain
            # as well: that order is not a second signal.
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._drain, serving)
            if SIGHUP is not None:  # the supervisor sends what it has read
                loop.add_signal_handler(SIGHUP, lambda: None)
            await asyncio.wait({serving})
            obeying.cancel()
        return 0 if serving.cancelled() else serving.result()

    async def _serve(self) -> int:
        order = self._order
        try:
            with order.seats() as seats, order.pulse() as pulse:
                resources = WorkerResources(order.worker_slots, _shared_metrics(order), seats)
                async with (
                    open_service(order.config, order.wait_s, resources, self._reader) as service,
                    pulse.beating(order.worker_slots.worker),
                    self._reloader.running(service),
                ):
                    self._server = Server(service, on_signals=False)
                    settle_memory()
                    self._listener.listen(BACKLOG)
                    self._say.write(started())
                    await self._server.serve(sockets=[self._listener])
                    await self._server.abandon_requests()
        except MotabError as error:
            self._say.write(started(str(error)))
            return 1
        return 0

    async def _obey(self, orders: asyncio.StreamReader, serving: asyncio.Task[int]) -> None:
        with contextlib.suppress(ConnectionError):  # closed, too
            async for line in orders:
                if line == DRAIN:
                    self._drain(serving)
                else:
                    self._reloader.ask(Config.model_validate(json.loads(line)))
        if self._server is not None:
            self._server.stop()
        else:
            serving.cancel()

    def _drain(self, serving: asyncio.Task[int]) -> None:
        if self._server is not None:
            self._server.drain()
        else:
            serving.cancel()


def _shared_metrics(order: Order) -> Metrics:
    """Metrics whose values lie in files that every worker reads.

    Files are named after the worker, not its process: the replacement of a dead process continues
    its counts, and the folder does not grow.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(order.folder)
    values.ValueClass = values.MultiProcessValue(lambda: order.worker_slots.worker)  # type: ignore[no-untyped-call]
    return Metrics(order.folder)


async def _work(channel: socket.socket, listener: socket.socket, answers: AnswerReader) -> int:
    reader, writer = await asyncio.open_connection(sock=channel, limit=_MAX_LINE_BYTES)
    try:
        line = await reader.readline()
        if not line:  # the supervisor is gone already
            return 0
        order = Order.read(line)
        speaker = f"worker {order.worker_slots.worker + 1}: "
        show_logs(Console(stderr=True), order.log_level, speaker, order.log_format)
        return await _Worker(order, listener, writer, answers).run(reader)
    finally:
        writer.close()
        await writer.wait_closed()


def main(answers: AnswerReader) -> None:
    """Arguments: the descriptors of the socket to the supervisor and of the socket to serve on."""
    channel, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    sys.exit(run(_work(channel, listener, answers)))
