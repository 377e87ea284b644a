"""What every way of talking to a server shares: its time is taken, its end is told, its failures
are made good by a retry, and what cannot be taken apart is malformed.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from proxy.backends.base import Call
from proxy.backends.retry import NO_RETRIES, RetryPolicy
from proxy.errors import MotabError, UpstreamMalformed

T = TypeVar("T")

RequestObserver = Callable[[str, str, float, str], None]
"""Told of every request that ended: upstream, path, seconds, and `ok`, `cancelled` or an error's
code."""
RetryObserver = Callable[[str, str], None]
"""Told of every failure after which a request is sent again: upstream and the error's code."""


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
    ) -> None:
        self._observe = observe
        self._on_retry = on_retry
        self.retry = retry
        self.upstream = upstream

    async def retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives, made again as `retry` says."""
        return await self.retry.run(
            attempt, lambda error: self._on_retry(self.upstream, error.code)
        )

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

    @contextmanager
    def expecting(self, what: str) -> Iterator[None]:
        """Take an answer apart inside of this; where its shape is wrong, it is malformed."""
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            fault = f"no {error}" if isinstance(error, KeyError) else str(error)
            message = f"{what} is not what was asked for: {fault}"
            raise UpstreamMalformed(self.upstream, message) from error


def affinity_headers(call: Call) -> dict[str, str]:
    """The headers of the known routers, by which a fleet keeps one trajectory on one replica's
    cache.
    """
    return {
        "x-session-id": call.session_id,
        "x-session-affinity": call.session_id,
        "X-SMG-Routing-Key": call.session_id,
    }
