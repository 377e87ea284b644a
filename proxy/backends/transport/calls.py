"""Gives all upstream clients timing, timeouts, retries, and `UpstreamMalformed` for answers of the
wrong shape.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from proxy.backends.base import Call
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy
from proxy.core.types import FinishReason
from proxy.errors import MotabError, UpstreamMalformed, UpstreamUnreachable

T = TypeVar("T")

RequestObserver = Callable[[str, str, float, str], None]
"""Called when a request has ended: upstream, path, seconds, and `ok`, `cancelled` or an error's
code."""
RetryObserver = Callable[[str, str], None]
"""Called before a failed request is sent again: upstream and the error's code."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds of silence after which a server counts as unreachable."""

    answer_s: float
    """For a whole answer, or for the first event of a stream: both may wait in the server's queue,
    and then until a long prompt has been read."""
    stall_s: float
    """Between two reads of a stream that has begun to write."""


NO_TIMEOUTS = Timeouts(math.inf, math.inf)


@dataclass(eq=False)
class Calls:
    """Makes the calls to one upstream. `retry` says how often a call is repeated; all calls are
    safe to repeat.
    """

    upstream: str
    observe: RequestObserver
    retry: RetryPolicy = NO_RETRIES
    on_retry: RetryObserver = lambda _upstream, _code: None
    timeouts: Timeouts = NO_TIMEOUTS

    async def retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `attempt`, which is repeated as `retry` says."""
        return await self.retry.run(attempt, lambda error: self.on_retry(self.upstream, error.code))

    async def awaited(self, coming: Awaitable[T], timeout_s: float) -> T:
        """Return the result. Raises `UpstreamUnreachable` after `timeout_s` seconds of silence."""
        limit = asyncio.timeout(timeout_s if timeout_s < math.inf else None)
        try:
            async with limit:
                return await coming
        except TimeoutError as error:
            if not limit.expired():  # a library's own timeout, such as a connection's
                raise
            raise self.timed_out(timeout_s) from error

    def timed_out(self, timeout_s: float) -> UpstreamUnreachable:
        """The error for a server that was silent for `timeout_s` seconds."""
        return UpstreamUnreachable(self.upstream, f"it was silent for {timeout_s:g} s")

    def broken_off(self) -> UpstreamUnreachable:
        """The error for a stream that ended without its last event."""
        return UpstreamUnreachable(self.upstream, "its stream broke off before the end")

    def expect_no_text_after(self, end: FinishReason | None, text: Sequence[object]) -> None:
        """Raise `UpstreamMalformed` for text, or tokens, in a stream that said that it ended."""
        if end is not None and text:
            raise UpstreamMalformed(self.upstream, "text came after the end of its stream")

    @contextmanager
    def observed(self, path: str, call: Call) -> Iterator[None]:
        """Time and report one attempt at a request."""
        started = time.perf_counter()
        code = "cancelled"
        try:
            with call.clock.running():
                yield
            code = "ok"
        except MotabError as error:
            code = error.code
            call.span.event("failed_attempt", {"error.type": code, "motab.path": path})
            raise
        finally:
            self.observe(self.upstream, path, time.perf_counter() - started, code)

    def expecting(self, what: str) -> "_Expecting":
        """Parse an answer in this context: a wrong shape raises `UpstreamMalformed`."""
        return _Expecting(self.upstream, what)


class _Expecting:
    """Not a generator, because it is entered for every event of a stream."""

    __slots__ = ("_upstream", "_what")

    def __init__(self, upstream: str, what: str) -> None:
        self._upstream = upstream
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if isinstance(error, (KeyError, IndexError, TypeError, AttributeError, ValueError)):
            fault = f"no {error}" if isinstance(error, KeyError) else str(error)
            message = f"{self._what} is not what was asked for: {fault}"
            raise UpstreamMalformed(self._upstream, message) from error


class StallTimer:
    """Limits how long each read of a stream waits, and gives up the stream if a read waits longer.

    Use as a context manager around all reads. They share a timer that is set again only when it
    fires: `asyncio.timeout` around each read costs more than the read.
    """

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._give_up = give_up
        self._until = math.inf
        """The time at which the current read has waited too long; infinite between reads."""
        self._timer: asyncio.TimerHandle | None = None
        self.has_expired = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()

    def start(self, timeout_s: float) -> None:
        """Begin a read, which may wait for `timeout_s` seconds."""
        self._until = self._loop.time() + timeout_s
        if self._timer is None or self._timer.when() > self._until:
            self._set()

    def stop(self) -> None:
        """End the read."""
        self._until = math.inf

    def _set(self) -> None:
        self._cancel()
        if self._until < math.inf:
            self._timer = self._loop.call_at(self._until, self._ring)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        if self._loop.time() < self._until:
            self._set()
        else:
            self.has_expired = True
            self._give_up()


def call_headers(call: Call) -> dict[str, str]:
    """The headers by which the known routers keep a trajectory on one replica and its cache, and by
    which a server continues its trace.
    """
    return {
        **call.span.headers(),
        "x-session-id": call.session_id,
        "x-session-affinity": call.session_id,
        "X-SMG-Routing-Key": call.session_id,
    }
