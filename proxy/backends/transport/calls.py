"""What every way of talking to a server shares: its time is taken, its end is told, its failures
are made good by a retry, and what cannot be taken apart is malformed.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from proxy.backends.base import Call
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy
from proxy.errors import MotabError, UpstreamMalformed, UpstreamUnreachable

T = TypeVar("T")

RequestObserver = Callable[[str, str, float, str], None]
"""Told of every request that ended: upstream, path, seconds, and `ok`, `cancelled` or an error's
code."""
RetryObserver = Callable[[str, str], None]
"""Told of every failure after which a request is sent again: upstream and the error's code."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of silence after which a server is taken for unreachable."""

    answer_s: float
    """For a whole answer, or for the first event of a stream: both may wait in the server's queue,
    and then for a long prompt to be read."""
    stall_s: float
    """Between two reads of a stream that has begun to write."""


ENDLESS = Patience(math.inf, math.inf)


class Calls:
    """The calls to one upstream. `retry` says how often one is made again; all are safe to
    repeat.
    """

    def __init__(
        self,
        upstream: str,
        observe: RequestObserver,
        retry: RetryPolicy = NO_RETRIES,
        on_retry: RetryObserver = lambda _upstream, _code: None,
        patience: Patience = ENDLESS,
    ) -> None:
        self._observe = observe
        self._on_retry = on_retry
        self.retry = retry
        self.patience = patience
        self.upstream = upstream

    async def retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives, made again as `retry` says."""
        return await self.retry.run(
            attempt, lambda error: self._on_retry(self.upstream, error.code)
        )

    async def awaited(self, coming: Awaitable[T], patience_s: float) -> T:
        """What comes, unless the server is silent for so long."""
        limit = asyncio.timeout(patience_s if patience_s < math.inf else None)
        try:
            async with limit:
                return await coming
        except TimeoutError as error:
            if not limit.expired():  # a library's own, such as that of a connection
                raise
            raise self.silent(patience_s) from error

    def silent(self, patience_s: float) -> UpstreamUnreachable:
        """The server was silent for so long."""
        return UpstreamUnreachable(self.upstream, f"it was silent for {patience_s:g} s")

    def broken_off(self) -> UpstreamUnreachable:
        """The error for a stream that ended without its last event."""
        return UpstreamUnreachable(self.upstream, "its stream broke off before the end")

    @contextmanager
    def observed(self, path: str, call: Call) -> Iterator[None]:
        """One attempt at a request, from its begin to its end."""
        started = time.perf_counter()
        code = "cancelled"
        try:
            with call.clock.running():
                yield
            code = "ok"
        except MotabError as error:
            code = error.code
            raise
        finally:
            self._observe(self.upstream, path, time.perf_counter() - started, code)

    def expecting(self, what: str) -> "_Expecting":
        """Take an answer apart inside of this; where its shape is wrong, it is malformed."""
        return _Expecting(self.upstream, what)


class _Expecting:
    """No generator: it is entered for every event of a stream."""

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


class Silence:
    """Watches how long each read of a stream waits, and gives the stream up where that is too long.

    Use as a context manager around all reads. They share a timer that is set anew when it rings:
    `asyncio.timeout` around each of them costs more than the read.
    """

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._give_up = give_up
        self._until = math.inf
        """When the read under way has waited too long; endless where none is."""
        self._timer: asyncio.TimerHandle | None = None
        self.was_too_long = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def begins(self, patience_s: float) -> None:
        """A read waits from now on, for so many seconds at most."""
        self._until = self._loop.time() + patience_s
        if self._timer is None or self._timer.when() > self._until:
            self._start()

    def ends(self) -> None:
        """It waits no longer."""
        self._until = math.inf

    def _start(self) -> None:
        self._stop()
        if self._until < math.inf:
            self._timer = self._loop.call_at(self._until, self._ring)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        if self._loop.time() < self._until:
            self._start()
        else:
            self.was_too_long = True
            self._give_up()


def affinity_headers(call: Call) -> dict[str, str]:
    """The headers of the known routers, by which a fleet keeps one trajectory on one replica's
    cache.
    """
    return {
        "x-session-id": call.session_id,
        "x-session-affinity": call.session_id,
        "X-SMG-Routing-Key": call.session_id,
    }
