"""Limits the number of concurrent requests: additive increase, multiplicative decrease.

Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance" (1989).
Until the first cut the limit doubles with every round of requests, as in TCP (RFC 5681): a
trajectory takes minutes, so adding one request per round would take hours to find the level.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# Gentle: a refusal costs the server nothing, and the limit keeps swinging by this factor.
_CUT: Final = 0.9
# A wait this long is meant for all requests, not only for the one that was refused.
_COMMON_WAIT_S: Final = 5.0
_OUTAGE_AFTER: Final = 5
_FIRST_PROBE_S: Final = 0.5
_LONGEST_PROBE_S: Final = 30.0
_MOST_DOUBLINGS: Final = 10


@dataclass(slots=True)
class Permit:
    """The right to one request. `started` is on the limiter's clock."""

    started: float


class Limiter:
    """Gives out permits, between `floor` and `ceiling` at a time.

    The first limit is `start`, or the nearest that is allowed. A refusal cuts the limit unless its
    request was started before the last cut, so one burst causes one cut. In an outage (several
    failures in a row without a success between them) one request at a time goes out to test
    whether it is over.
    """

    def __init__(
        self,
        floor: int,
        ceiling: int,
        *,
        start: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._floor, self._ceiling = floor, ceiling
        self._limit = float(min(max(start, floor), ceiling))
        self._clock = clock
        self._last_cut = float("-inf")
        self._is_first_climb = True
        self._hold_until = float("-inf")
        self._num_failures = 0
        self._num_probes = 0
        self._last_probe = float("-inf")
        self._failing_since: float | None = None
        self._freed = asyncio.Event()
        self.num_active = 0
        self.num_cuts = 0

    @property
    def limit(self) -> int:
        """The number of requests that may be under way now."""
        return 1 if self.is_outage else int(self._limit)

    @property
    def is_outage(self) -> bool:
        """True while nothing gets through."""
        return self._num_failures >= _OUTAGE_AFTER

    @property
    def failing_s(self) -> float:
        """Seconds since the first failure after the last success; 0 without a failure."""
        return 0.0 if self._failing_since is None else self._clock() - self._failing_since

    async def acquire(self) -> Permit:
        """Wait for a permit."""
        while True:
            wait_s = self._hold_until - self._clock()
            if wait_s <= 0 and self.num_active < self.limit:
                self.num_active += 1
                return Permit(self._clock())
            self._freed.clear()
            # Above the limit only the end of another request can help; below it, time.
            await wait_for(self._freed, wait_s if wait_s > 0 else None)

    def release(self) -> None:
        """Give a permit back."""
        self.num_active -= 1
        self._freed.set()

    def succeeded(self, permit: Permit) -> None:
        """Raise the limit after a request that the server took. Call it before `release`."""
        self._is_up()
        self._failing_since = None
        # An unused limit says nothing about a higher one.
        if 2 * self.num_active < self._limit or permit.started < self._last_cut:
            return
        step = 1.0 if self._is_first_climb else 1.0 / self._limit
        self._limit = min(self._limit + step, float(self._ceiling))
        self._freed.set()

    def refused(self, permit: Permit, retry_after_s: float | None, *, is_down: bool) -> None:
        """Cut the limit, because the server is overloaded; `is_down`: it takes nothing at all."""
        now = self._clock()
        self._note_failing(now)
        if not is_down:
            self._is_up()
        wait_s = retry_after_s or 0.0
        if is_down or wait_s >= _COMMON_WAIT_S:
            self._hold_until = max(self._hold_until, now + wait_s)
        if permit.started < self._last_cut:
            return
        self._limit = max(self._limit * _CUT, float(self._floor))
        self._is_first_climb = False
        self._last_cut = now
        self.num_cuts += 1

    def failed(self, permit: Permit) -> None:
        """Note that the server did not answer, or failed; an outage begins or continues."""
        now = self._clock()
        self._num_failures += 1
        self._note_failing(now)
        # Requests that were under way when the outage began are not probes.
        if self.is_outage and permit.started > self._last_probe:
            wait_s = min(_FIRST_PROBE_S * 2.0**self._num_probes, _LONGEST_PROBE_S)
            self._num_probes = min(self._num_probes + 1, _MOST_DOUBLINGS)
            self._last_probe = now
            self._hold_until = max(self._hold_until, now + wait_s)

    def _is_up(self) -> None:
        if self.is_outage:
            self._freed.set()
        self._num_failures = self._num_probes = 0
        self._last_probe = float("-inf")

    def _note_failing(self, now: float) -> None:
        if self._failing_since is None:
            self._failing_since = now


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait until the event is set or the time is over; None waits for ever."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
