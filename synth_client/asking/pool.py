"""Works units off: bounded workers, a limit that adapts, and retries among the new units.

One task hands out, and each worker is one task for the whole run. A failed unit waits in a queue
until its next attempt is due, without a worker and without a permit.
"""

import asyncio
import heapq
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import Final, Protocol

from synth_client.asking.errors import SynthesisError, Trouble
from synth_client.asking.limiter import Limiter, Permit, wait_for
from synth_client.errors import ClientError, RunAborted, first_of
from synth_client.questions.question import Unit
from trajectory_records.record import Record, Usage

_log = logging.getLogger(__name__)

_READ_AHEAD: Final = 64
# With more waiting retries per worker no new unit is begun: an outage must not fill the memory.
_RETRIES_PER_WORKER: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests under way, trajectories waiting for another attempt, the limit, and its cuts."""

    num_active: int = 0
    num_waiting: int = 0
    limit: int = 0
    num_cuts: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(
            num_active=self.num_active + other.num_active,
            num_waiting=self.num_waiting + other.num_waiting,
            limit=self.limit + other.limit,
            num_cuts=self.num_cuts + other.num_cuts,
        )


class Asker(Protocol):
    """Makes one attempt at a unit: a record, or `SynthesisError`. `attempt` counts from 1."""

    async def __call__(self, unit: Unit, *, attempt: int) -> Record: ...


@dataclass(frozen=True, slots=True)
class Failed:
    """The failure of a unit; `error` is from its last attempt, `wasted` the cost of all of them."""

    error: SynthesisError
    attempts: int
    wasted: Usage | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The final result of a unit."""

    unit: Unit
    result: Record | Failed


@dataclass(frozen=True, slots=True)
class Budgets:
    """The number of attempts that a unit has for each class of errors, and the waits between them.

    The waits double from `first_s` to `longest_s` and are jittered; the wait that the server asks
    for is added. When nothing has succeeded for `patience_s`, the run is given up.
    """

    attempts: Mapping[Trouble, int] = field(
        default_factory=lambda: {
            Trouble.TRANSIENT: 6,
            Trouble.CAPACITY: 60,
            Trouble.PERMANENT: 1,
            Trouble.CONTENT: 3,
        }
    )
    first_s: float = 1.0
    longest_s: float = 60.0
    patience_s: float = 3600.0

    def wait_s(self, num_failures: int, wished_s: float | None) -> float:
        """Return the seconds to wait after `num_failures` of a class."""
        longest = min(self.first_s * 2.0 ** min(num_failures - 1, 30), self.longest_s)
        return (wished_s or 0.0) + random.uniform(0.5, 1.0) * longest  # noqa: S311


@dataclass(slots=True)
class _Job:
    """A unit with its attempts so far."""

    unit: Unit
    attempt: int = 1
    failures: Counter[Trouble] = field(default_factory=Counter)
    wasted: Usage | None = None

    def failed(self, error: SynthesisError) -> None:
        """Count a failed attempt and what it cost."""
        self.failures[error.trouble] += 1
        if error.spent is not None:
            self.wasted = error.spent if self.wasted is None else self.wasted + error.spent

    def done(self, record: Record) -> Outcome:
        """Return the final result of an attempt that succeeded."""
        if self.wasted is not None:
            record = record.model_copy(update={"wasted": self.wasted})
        return Outcome(self.unit, record)


class Pool:
    """Runs units through `ask`, and passes the error of every failed attempt to `on_error`."""

    def __init__(
        self,
        ask: Asker,
        limiter: Limiter,
        *,
        num_workers: int,
        budgets: Budgets | None = None,
        on_error: Callable[[SynthesisError], None] = lambda _error: None,
    ) -> None:
        self._ask = ask
        self._limiter = limiter
        self._num_workers = num_workers
        self._budgets = budgets or Budgets()
        self._on_error = on_error
        self._retries: list[tuple[float, int, _Job]] = []
        self._num_retried = 0
        self._num_handed_out = 0
        self._moved = asyncio.Event()
        self._is_draining = False
        self._dispatcher: asyncio.Task[None] | None = None

    @property
    def load(self) -> Load:
        """Return what is under way now."""
        limiter = self._limiter
        return Load(
            num_active=limiter.num_active,
            num_waiting=len(self._retries),
            limit=limiter.limit,
            num_cuts=limiter.num_cuts,
        )

    def drain(self) -> None:
        """Begin nothing more: `run` ends when everything under way has finished."""
        self._is_draining = True
        if self._dispatcher is not None:
            self._dispatcher.cancel()

    async def run(
        self, units: Iterator[Unit], deliver: Callable[[Outcome], Awaitable[None]]
    ) -> None:
        """Work off all units, pulled as needed, and deliver each outcome once.

        `units` is read in a thread. Raises `RunAborted` when the server refuses the run as a whole
        or does not come back, and whatever `deliver` raises; requests under way are then given up.
        A `ClientError` of `units` is raised when all units before it are done.
        """
        handed_out: asyncio.Queue[tuple[_Job, Permit] | None] = asyncio.Queue()
        source = _ResumableUnits(units)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._num_workers):
                    group.create_task(self._work(handed_out, deliver))
                self._dispatcher = group.create_task(self._hand_out(source, handed_out))
                if self._is_draining:
                    self._dispatcher.cancel()
                await asyncio.wait([self._dispatcher])
                for _ in range(self._num_workers):
                    handed_out.put_nowait(None)
        except BaseExceptionGroup as failures:
            raise first_of(failures) from failures
        if source.error is not None:
            raise source.error

    async def _work(
        self,
        handed_out: asyncio.Queue[tuple[_Job, Permit] | None],
        deliver: Callable[[Outcome], Awaitable[None]],
    ) -> None:
        while (handed := await handed_out.get()) is not None:
            outcome = await self._attempt(*handed)
            if outcome is not None:
                await deliver(outcome)
            self._num_handed_out -= 1
            self._moved.set()

    async def _hand_out(
        self, source: "_ResumableUnits", handed_out: asyncio.Queue[tuple[_Job, Permit] | None]
    ) -> None:
        while (job := await self._next(source)) is not None:
            permit = await self._limiter.acquire()
            self._num_handed_out += 1
            handed_out.put_nowait((job, permit))

    async def _next(self, source: "_ResumableUnits") -> _Job | None:
        """Return the next job: a retry that is due, or a new unit. None when there are no more."""
        while True:
            # Cleared before looking, so that no change in the meantime is missed.
            self._moved.clear()
            due_s = self._retries[0][0] - time.monotonic() if self._retries else None
            # A worker that delivers holds no permit, but is not free.
            if self._num_handed_out < self._num_workers:
                is_due = due_s is not None and due_s <= 0
                # In an outage another unit says more than one that has failed: the server may
                # fail at certain questions only.
                if is_due and not self._limiter.is_outage:
                    return heapq.heappop(self._retries)[2]
                may_begin = len(self._retries) < _RETRIES_PER_WORKER * self._num_workers
                if may_begin and (unit := await source.next()) is not None:
                    return _Job(unit)
                if is_due:
                    return heapq.heappop(self._retries)[2]
                if not self._retries and not self._num_handed_out:
                    return None
                await wait_for(self._moved, due_s)
            else:
                await self._moved.wait()

    async def _attempt(self, job: _Job, permit: Permit) -> Outcome | None:
        """Make an attempt; None if the unit is to be tried again later."""
        try:
            record = await self._ask(job.unit, attempt=job.attempt)
        except SynthesisError as error:
            return self._failed(job, permit, error)
        else:
            if self._limiter.is_outage:
                _log.info("the server is back after %.0f s", self._limiter.failing_s)
            self._limiter.succeeded(permit)
            return job.done(record)
        finally:
            self._limiter.release()

    def _failed(self, job: _Job, permit: Permit, error: SynthesisError) -> Outcome | None:
        self._on_error(error)
        if error.ends_the_run:
            raise RunAborted(f"the server refuses the run: {error}") from error
        self._adjust_limit(permit, error)
        if self._limiter.failing_s > self._budgets.patience_s:
            raise RunAborted(
                f"nothing has succeeded for {self._limiter.failing_s:.0f} s: {error}"
            ) from error
        trouble = error.trouble
        job.failed(error)
        if job.failures[trouble] >= self._budgets.attempts[trouble]:
            _log.warning("%s, sample %d: %s", job.unit.question.id, job.unit.sample, error)
            return Outcome(job.unit, Failed(error, job.attempt, job.wasted))
        wait_s = self._budgets.wait_s(job.failures[trouble], error.retry_after_s)
        job.attempt += 1
        self._num_retried += 1
        heapq.heappush(self._retries, (time.monotonic() + wait_s, self._num_retried, job))
        return None

    def _adjust_limit(self, permit: Permit, error: SynthesisError) -> None:
        """Adapt the limit to the failure."""
        match error.trouble:
            case Trouble.CAPACITY:
                is_down = error.status == HTTPStatus.SERVICE_UNAVAILABLE
                self._limiter.refused(permit, error.retry_after_s, is_down=is_down)
            case Trouble.TRANSIENT:
                was_outage = self._limiter.is_outage
                self._limiter.failed(permit)
                if self._limiter.is_outage and not was_outage:
                    _log.warning("%s; asking one at a time until the server is back", error)
            case _:  # it answered
                self._limiter.succeeded(permit)


class _ResumableUnits:
    """Units from an iterator that may block, read a few at a time in a thread.

    `error` is the error that ended the iterator, if any.
    """

    def __init__(self, units: Iterator[Unit]) -> None:
        self._units = units
        self._read: deque[Unit] = deque()
        self._is_empty = False
        self.error: ClientError | None = None

    async def next(self) -> Unit | None:
        """Return the next unit, None when there are no more."""
        while not self._read and not self._is_empty:
            await asyncio.to_thread(self._read_some)
        return self._read.popleft() if self._read else None

    def _read_some(self) -> None:
        try:
            for unit in islice(self._units, _READ_AHEAD):
                self._read.append(unit)
        except ClientError as error:
            self.error = error
        self._is_empty = len(self._read) < _READ_AHEAD
