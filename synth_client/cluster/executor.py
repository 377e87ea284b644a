"""Runs the executor `ray`: the pool's work in actors on the nodes of a Ray cluster.

The remaining units go into a file next to the journal, Ray Data cuts it into blocks, and the
workers of `actors` ask them. Each outcome comes back through the mailbox at once, not when its
block is full, and goes into the same journal as with the local executor. So the journal is the only
checkpoint, and Ray Data's own is not used.
"""

import asyncio
import importlib.util
import logging
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Final

from synth_client.asking.errors import SynthesisError
from synth_client.asking.pool import Failed, Load, Outcome
from synth_client.cluster.actors import Aborted, Handle, Letter, Report, WorkerSettings
from synth_client.errors import ClientError, ClusterError, RunAborted
from synth_client.files.atomic import output_errors
from synth_client.questions.question import Unit

_log = logging.getLogger(__name__)

_READ_AHEAD: Final = 4096
_FORGOTTEN_AFTER_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The place to run. Without an address, Ray is started on this machine for this run.

    Without `num_workers` there is one worker on every node.
    """

    address: str | None = None
    num_workers: int | None = None


def require_ray() -> None:
    """Raise `ClusterError` if Ray Data is not installed."""
    if any(importlib.util.find_spec(module) is None for module in ("ray", "pyarrow", "pandas")):
        raise ClusterError("--executor ray needs Ray Data: pip install 'motab[ray]'")


class Fleet:
    """Runs units on a cluster, as `Pool` does in this process.

    The numbers of requests in `settings` are totals over all workers. The units wait in
    `folder`, which is removed afterwards.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: WorkerSettings,
        folder: Path,
        *,
        on_error: Callable[[SynthesisError], None],
    ) -> None:
        self._cluster, self._settings, self._folder = cluster, settings, folder
        self._on_error = on_error
        self._loads: dict[str, tuple[float, Load]] = {}
        self._num_delivered = 0
        self._draining = asyncio.Event()

    @property
    def load(self) -> Load:
        """Return the load of all workers by their last reports; a lost worker reports nothing."""
        oldest = time.monotonic() - _FORGOTTEN_AFTER_S
        return sum(
            (load for reported_at, load in self._loads.values() if reported_at > oldest), Load()
        )

    def drain(self) -> None:
        """Begin nothing more: `run` ends when everything under way has finished."""
        self._draining.set()

    async def run(
        self, units: Iterator[Unit], deliver: Callable[[Outcome], Awaitable[None]]
    ) -> None:
        """Work off all units and deliver each outcome once. All units are read before the first
        is asked.

        Raises `RunAborted` when the server refuses the run as a whole or does not come back,
        `ClusterError` when Ray fails, and whatever `deliver` raises; work under way is then given
        up. A `ClientError` of `units` is raised when all units before it are done.
        """
        from synth_client.cluster import ray_data as ray  # noqa: PLC0415 - only with the extra

        source = _UnitBatches(units)
        with _folder(self._folder):
            path = self._folder / "units.parquet"
            num_units = await asyncio.to_thread(ray.write_units, source.batches(), path)
            if num_units and not self._draining.is_set():
                await self._run(ray, path, deliver)
            if self._num_delivered < num_units and not self._draining.is_set():
                raise ClusterError(
                    f"{num_units - self._num_delivered:,} trajectories were lost in the cluster;"
                    " run the same command again"
                )
        if source.error is not None:
            raise source.error

    async def _run(
        self, ray: ModuleType, path: Path, deliver: Callable[[Outcome], Awaitable[None]]
    ) -> None:
        with ExitStack() as stack:
            # In a thread, because it takes seconds.
            entering = asyncio.to_thread(stack.enter_context, ray.connected(self._cluster.address))
            await _uncancelled(entering)
            # Ray's C++ part installs a handler in front of ours that prints a stack.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            wanted = self._cluster.num_workers or ray.num_nodes()
            num_workers = min(wanted, self._settings.servers.concurrency)
            mailbox = ray.open_mailbox()
            settings = replace(self._settings, servers=self._settings.servers.share(num_workers))
            work = ray.begin_work(path, settings, num_workers, mailbox)
            tasks = [
                asyncio.create_task(self._read(ray, mailbox, deliver)),
                asyncio.create_task(self._drained(ray, mailbox)),
                asyncio.create_task(ray.answered(work)),
            ]
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            task.result()

    async def _read(
        self, ray: ModuleType, mailbox: Handle, deliver: Callable[[Outcome], Awaitable[None]]
    ) -> None:
        """Read the mail until cancelled."""
        while True:
            letters: list[Letter] = await ray.answered(mailbox.take.remote())
            await asyncio.gather(*(self._take(letter, deliver) for letter in letters))

    async def _take(self, letter: Letter, deliver: Callable[[Outcome], Awaitable[None]]) -> None:
        match letter:
            case Outcome(unit, result):
                if isinstance(result, Failed):
                    _log.warning("%s, sample %d: %s", unit.question.id, unit.sample, result.error)
                await deliver(letter)
                self._num_delivered += 1
            case Report(worker, load, errors):
                self._loads[worker] = (time.monotonic(), load)
                for error in errors:
                    self._on_error(error)
            case Aborted(reason):
                raise RunAborted(reason)

    async def _drained(self, ray: ModuleType, mailbox: Handle) -> None:
        await self._draining.wait()
        await ray.answered(mailbox.drain.remote())


class _UnitBatches:
    """Reads units in batches. `error` is the error that ended the units, if any."""

    def __init__(self, units: Iterator[Unit]) -> None:
        self._units = units
        self.error: ClientError | None = None

    def batches(self) -> Iterator[list[Unit]]:
        """Yield batches until there are no more units."""
        while self.error is None:
            batch: list[Unit] = []
            try:
                batch.extend(islice(self._units, _READ_AHEAD))
            except ClientError as error:
                self.error = error
            if not batch:
                return
            yield batch


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make an empty folder, and remove it afterwards."""
    with output_errors(path):
        if path.exists():  # left by a run that was killed
            shutil.rmtree(path)
        path.mkdir()
    try:
        yield
    finally:
        with output_errors(path):
            shutil.rmtree(path)


async def _uncancelled(work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task])
