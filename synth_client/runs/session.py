"""Asks for the units that a journal lacks and writes the final files, stoppable and resumable."""

import asyncio
import logging
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from synth_client.asking.client import SynthClient
from synth_client.asking.pool import Asker, Failed, Load, Outcome, Pool
from synth_client.asking.servers import Servers
from synth_client.errors import ClientError, Interrupted, first_of
from synth_client.files.journal import FAILURE, RECORD, Entry, Journal, open_journal
from synth_client.files.workspace import Workspace
from synth_client.questions.question import Synthesis, Unit
from synth_client.runs.failed_rows import failed_unit
from synth_client.runs.outputs import Totals
from synth_client.runs.progress import Progress, Tally
from trajectory_records.record import Record

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Works units off: a `Pool` in this process, or a `Fleet` on a cluster."""

    @property
    def load(self) -> Load: ...

    def drain(self) -> None: ...

    async def run(
        self, units: Iterator[Unit], deliver: Callable[[Outcome], Awaitable[None]]
    ) -> None: ...


class Session(ABC):
    """One process's share of a run, from the opening of the journal to its end."""

    def __init__(
        self,
        journal: Journal,
        servers: Servers,
        synthesis: Synthesis,
        tally: Tally,
        console: Console,
        *,
        progress_file: Path | None = None,
    ) -> None:
        self._journal, self._tally = journal, tally
        self._servers, self._synthesis = servers, synthesis
        self._console, self._progress_file = console, progress_file
        self._under_way: set[bytes] = set()
        """Keys of the units that the executor has and the journal has not."""
        self._num_signals = 0
        self._task = asyncio.current_task()
        self._executor: Executor | None = None

    @abstractmethod
    def _units(self) -> Iterator[Unit]:
        """Yield all units of the run in order, done or not. Called in a thread."""

    @abstractmethod
    def _count_units(self) -> int | None:
        """Return the number of units, None if it is unknown. Called in a thread."""

    @abstractmethod
    def _executor_of(self, client: SynthClient) -> Executor:
        """Return the executor of the units; it reports failed attempts to the tally."""

    @abstractmethod
    async def _content_of(self, record: Record) -> bytes:
        """Return the JSON that the journal keeps of a result."""

    @abstractmethod
    def _write_final(self) -> Totals:
        """Write the final files. Called in a thread."""

    @abstractmethod
    def _describe_done(self, num_done: int) -> str:
        """Describe the finished units, as the first half of a sentence."""

    def on_signal(self) -> None:
        """Finish what is under way; at the second call, stop at once."""
        self._num_signals += 1
        if self._num_signals == 1:
            executor = self._executor
            num_active = 0 if executor is None else executor.load.num_active
            _log.warning("finishing the %d under way; signal again to stop at once", num_active)
            if executor is not None:
                executor.drain()
        elif self._task is not None:
            self._task.cancel()

    async def run(self) -> Totals:
        """Ask for what is missing, then write the final files. Raises `Interrupted` on a signal."""
        try:
            # In a thread, because a long journal's units are skipped up to the first missing one.
            missing = self._missing()
            first = await asyncio.to_thread(next, missing, None)
            if first is not None:
                await self._ask_for(chain([first], missing))
            self._stop_if_asked()
            return await asyncio.to_thread(self._write_final)
        except asyncio.CancelledError as error:
            if self._num_signals < 2:
                raise
            raise Interrupted(f"stopped at once; {self._how_to_resume()}") from error

    def log_what_is_done(self) -> None:
        """Say how to resume a run that ended with an error of its own."""
        if self._tally.num_done:
            _log.info("%s", self._how_to_resume())

    async def _ask_for(self, units: Iterator[Unit]) -> None:
        async with self._servers.client(self._synthesis) as client:
            await client.check()
            self._executor = executor = self._executor_of(client)
            if self._num_signals:
                executor.drain()
            progress = Progress(
                self._tally,
                lambda: executor.load,
                console=self._console,
                file=self._progress_file,
            )
            await run_with_helpers(
                [progress.run(), self._set_total()],
                executor.run(units, self._deliver),
                progress.stop,
            )

    def _pool_of(self, ask: Asker) -> Pool:
        return Pool(
            ask,
            self._servers.limiter(),
            num_workers=self._servers.concurrency,
            on_error=self._tally.add_error,
        )

    def _missing(self) -> Iterator[Unit]:
        """Yield the units that are neither done nor under way."""
        for unit in self._units():
            if self._num_signals:
                return
            if unit.key in self._under_way or self._journal.get(unit.key) is not None:
                self._tally.num_kept += 1
            else:
                self._under_way.add(unit.key)
                yield unit

    async def _set_total(self) -> None:
        self._tally.total = await asyncio.to_thread(self._count_units)

    async def _deliver(self, outcome: Outcome) -> None:
        unit, result = outcome.unit, outcome.result
        if unit.key not in self._under_way:
            return  # done again after its worker was lost
        if isinstance(result, Failed):
            failed = failed_unit(unit, result)
            entry = Entry(unit.key, FAILURE, failed.to_json_line().rstrip(b"\n"))
        else:
            entry = Entry(unit.key, RECORD, await self._content_of(result))
        await self._journal.append(entry)
        self._under_way.discard(unit.key)
        self._tally.add(outcome)

    def _stop_if_asked(self) -> None:
        if self._num_signals:
            raise Interrupted(f"stopped; {self._how_to_resume()}")

    def _how_to_resume(self) -> str:
        done = self._describe_done(self._tally.num_kept + self._tally.num_done)
        return f"{done}; run the same command again to resume"


async def run_session(workspace: Workspace, make: Callable[[Journal], Session]) -> Totals:
    """Run the session that `make` gives for the workspace's journal.

    SIGINT and SIGTERM go to the session. Raises what `Session.run` and the journal raise.
    """
    session: Session | None = None
    try:
        async with open_journal(workspace.journal) as journal:
            session = make(journal)
            with _signals(session.on_signal):
                return await session.run()
    except Interrupted:
        raise
    except ClientError:
        if session is not None:
            session.log_what_is_done()
        raise


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the fastest event loop that this platform has."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop  # noqa: PLC0415 - not on every platform

    return uvloop.run(main)


async def run_with_helpers(
    helpers: list[Coroutine[Any, Any, None]], main: Awaitable[None], stop: Callable[[], None]
) -> None:
    """Run `main` with helpers that end after `stop`. The first error of any ends all."""
    try:
        async with asyncio.TaskGroup() as group:
            for helper in helpers:
                group.create_task(helper)
            try:
                await main
            finally:
                stop()
    except BaseExceptionGroup as failures:
        raise first_of(failures) from failures


@contextmanager
def _signals(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` at every SIGINT and SIGTERM while the body runs."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
