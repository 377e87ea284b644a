"""Decides when a call to an upstream is repeated, and after which wait. Nothing else retries."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from proxy.errors import UpstreamError, UpstreamFailed

_SECONDS = re.compile(r"\d+(\.\d+)?", re.ASCII)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter, which keeps callers that failed together apart.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    attempts: int
    """The most attempts at a call; 1 switches retries off."""
    total_s: float
    """Seconds after the beginning of a call in which it may be repeated. A running attempt is never
    cut off: the request's deadline limits how long an answer may take."""
    first_s: float = 1.0
    """The longest first wait; each wait may be twice as long as the wait before."""
    longest_s: float = 30.0
    """The longest wait, not counting the server's own wish."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(
        self, attempt: Callable[[], Awaitable[T]], on_retry: Callable[[UpstreamError], None]
    ) -> T:
        """Return the result of `attempt`, which must be safe to repeat.

        `on_retry` gets an error right before the wait for the next attempt. The last attempt's
        error is raised, with `num_attempts` set; an error that a retry cannot help, or whose
        Retry-After is longer than the time left, is raised at once.
        """
        begun_at = time.monotonic()
        try:
            return await attempt()
        except UpstreamError as error:
            # Only now, because the code below costs as much as a third of a call.
            first = [error]

        async def awaited() -> T:  # tenacity awaits coroutine functions only, not lambdas
            if first:
                raise first.pop()
            return await attempt()

        def tell(state: RetryCallState) -> None:
            if isinstance(error := _error_of(state), UpstreamError):
                on_retry(error)

        left_s = self.total_s - (time.monotonic() - begun_at)
        retrying = AsyncRetrying(
            sleep=self.sleep,
            stop=stop_after_attempt(self.attempts) | stop_before_delay(left_s),
            wait=self._wait_s,
            retry=retry_if_exception(_can_help),
            before_sleep=tell,
            reraise=True,
        )
        try:
            result: T = await retrying(awaited)
        except UpstreamError as error:
            error.num_attempts = retrying.statistics["attempt_number"]
            raise
        return result

    def _wait_s(self, state: RetryCallState) -> float:
        jitter_s = wait_random_exponential(multiplier=self.first_s, max=self.longest_s)(state)
        error = _error_of(state)
        wished_s = error.retry_after_s if isinstance(error, UpstreamFailed) else None
        # Jitter on top of the server's wish, too, which is the same for all of its callers.
        return jitter_s + (wished_s or 0.0)


NO_RETRIES = RetryPolicy(attempts=1, total_s=0.0)


def parse_retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or as an HTTP date.

    None if there is no header, or neither in it. RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _can_help(error: BaseException) -> bool:
    return isinstance(error, UpstreamError) and error.retryable


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()
