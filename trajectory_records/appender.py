"""Appends the records of an event loop: a thread of its own waits for the disk."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

from trajectory_records.record import Record
from trajectory_records.record_writer import RecordWriter

_log = logging.getLogger(__name__)

STALL_S: Final = 30.0
"""Seconds after which a disk that does not answer counts as failed."""

Problem = str | None
"""Why records cannot be written, in one sentence; None if they can."""


class Appender:
    """Hands records to a `RecordWriter`, in the order in which they come. Made by `open_appender`.

    Records that could not be written are kept, and written with the next: `check` tries it.
    """

    def __init__(self, writer: RecordWriter, stall_s: float = STALL_S) -> None:
        self._writer = writer
        self._stall_s = stall_s
        # One thread, so the records of many requests that wait share the next write and fsync.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._came: deque[bytes] = deque()
        self._num_came = 0
        self._retry: asyncio.Future[Problem] | None = None
        # The thread's own, which the event loop only reads.
        self._waiting: deque[bytes] = deque()
        self._num_written = 0
        self._failure: Problem = None
        self._busy_since: float | None = None

    def add(self, record: Record) -> asyncio.Future[Problem]:
        """Append a record. The result comes once it is on disk, or says why it is not.

        The record is written even if nobody waits for the result.
        """
        self._came.append(record.to_json_line())
        self._num_came += 1
        return self._flushed()

    async def within_limit(self, written: asyncio.Future[Problem]) -> Problem:
        """Wait for a result of `add`, as long as a disk may take."""
        await asyncio.wait({written}, timeout=self._stall_s)
        return written.result() if written.done() else self._stalled()

    async def check(self) -> Problem:
        """Return why a record could not be written now; try it, if some wait."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._stall_s:
            return self._stalled()
        if self._failure is None:
            return None
        if self._retry is None or self._retry.done():
            self._retry = self._flushed()
        return await self.within_limit(self._retry)

    async def close(self) -> None:
        """Write what waits. A record that cannot be written is lost, and the log says so."""
        problem = await self.within_limit(self._flushed())
        if problem is not None:
            num_lost = self._num_came - self._num_written
            _log.error("%d records are lost: %s", num_lost, problem)
        self._thread.shutdown(wait=problem is None)

    def _flushed(self) -> asyncio.Future[Problem]:
        # Not `run_in_executor`, whose work is cancelled with the request that waits for it.
        return asyncio.wrap_future(self._thread.submit(self._flush, self._num_came))

    def _stalled(self) -> str:
        return f"{self._writer.path}: the disk has not answered for {self._stall_s:g} s"

    def _flush(self, number: int) -> Problem:
        """Write all that came, in the thread. Returns why record `number` is not on disk."""
        if self._num_written >= number:
            return None
        while self._came:
            self._waiting.append(self._came.popleft())
        num_before = len(self._waiting)
        self._busy_since = time.monotonic()
        try:
            self._writer.append(self._waiting)
        except OSError as error:
            problem = f"{self._writer.path}: {error.strerror or error}"
            if self._failure is None:
                _log.error("records cannot be written: %s", problem)
            self._failure = problem
        else:
            if self._failure is not None:
                _log.info("%s: records are written again", self._writer.path)
            self._failure = None
        finally:
            self._busy_since = None
            self._num_written += num_before - len(self._waiting)
        return None if self._num_written >= number else self._failure


@asynccontextmanager
async def open_appender(writer: RecordWriter) -> AsyncIterator[Appender]:
    """Prepare the file and append to it; at the end all records are on disk.

    Raises OSError and `RecordError` as `RecordWriter.prepare` does.
    """
    await asyncio.to_thread(writer.prepare)
    appender = Appender(writer)
    try:
        yield appender
    finally:
        await appender.close()
