"""Measures speeds and breach rates, from which `is_worth_a_call` decides when to score."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from proxy.core.lookahead import is_worth_a_call

# After this much time of writing the sums are halved, because a server's speed depends on its load.
_MEMORY_S = 60.0
# The weight that a call keeps with each later call, so that about the last hundred matter.
_KEPT_A_CALL = 0.98
_LEAST_SPREAD = 0.01
# After this number of tokens a pair's counts are halved; it is large, because breaches are rare.
_MEMORY_TOKENS = 1e6
# The rate begins as if one breach had been seen in this many tokens. Expecting too many breaches
# makes unneeded calls for a while; expecting too few makes text that is thrown away.
_PRIOR_TOKENS = 1000.0


@dataclass(slots=True)
class WritingSpeed:
    """Measures how long a server takes to write a token, over all of its open streams together."""

    clock: Callable[[], float] = time.monotonic
    _num_open: int = field(init=False, default=0)
    _since: float = field(init=False, default=0.0)
    _busy_s: float = field(init=False, default=0.0)
    _num_tokens: float = field(init=False, default=0.0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measure while a stream is open. Time in which several streams are open counts once."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave out the time in which one of the open streams waits."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def _begin(self) -> None:
        if not self._num_open:
            self._since = self.clock()
        self._num_open += 1

    def _end(self) -> None:
        self._num_open -= 1
        if not self._num_open:
            self._busy_s += self.clock() - self._since

    def count(self, num_tokens: int) -> None:
        """Count written tokens."""
        self._num_tokens += num_tokens

    def seconds_a_token(self) -> float | None:
        """None where nothing is known yet."""
        if self._num_open:
            now = self.clock()
            self._busy_s += now - self._since
            self._since = now
        if self._busy_s > _MEMORY_S:
            self._busy_s, self._num_tokens = self._busy_s / 2, self._num_tokens / 2
        return self._busy_s / self._num_tokens if self._num_tokens else None


@dataclass(slots=True)
class ComputingSpeed:
    """Measures how long a server takes to compute a token of a context.

    A call also spends time on the network, which costs the server nothing. The speed is therefore
    the slope of a line, fitted by least squares, through the calls' seconds over the tokens before
    the server when a call began: the call's own tokens and the tokens of the calls under way.
    """

    clock: Callable[[], float] = time.monotonic
    _under_way: int = field(init=False, default=0)
    # Sums over the calls: of 1, tokens, seconds, tokens^2, tokens * seconds.
    _sums: list[float] = field(init=False, default_factory=lambda: [0.0] * 5)

    @contextmanager
    def computing(self, num_tokens: int) -> Iterator[None]:
        """Measure a call for a context of `num_tokens` tokens, unless it fails."""
        self._under_way += num_tokens
        load, began = float(self._under_way), self.clock()
        try:
            yield
            seconds = self.clock() - began
            new = (1.0, load, seconds, load * load, load * seconds)
            self._sums = [_KEPT_A_CALL * a + b for a, b in zip(self._sums, new, strict=True)]
        finally:
            self._under_way -= num_tokens

    def seconds_a_token(self) -> float | None:
        """None where nothing is known yet."""
        n, x, y, xx, xy = self._sums
        if not n:
            return None
        spread = n * xx - x * x
        # Contexts of the same length do not show the network's time, so all time is the server's.
        slope = (n * xy - x * y) / spread if spread > _LEAST_SPREAD * x * x else 0.0
        return slope if slope > 0 else y / x


@dataclass(slots=True)
class BreachRate:
    """Measures the share of a pair's student tokens that are followed by a breach."""

    _num_tokens: float = _PRIOR_TOKENS
    _num_breaches: float = 1.0

    def judged(self, num_tokens: int, *, safe: bool) -> None:
        """Count the verdict on a step of `num_tokens` student tokens."""
        self._num_tokens += num_tokens
        self._num_breaches += not safe
        if self._num_tokens > _MEMORY_TOKENS:
            self._num_tokens, self._num_breaches = self._num_tokens / 2, self._num_breaches / 2

    @property
    def a_token(self) -> float:
        """Breaches per student token."""
        return self._num_breaches / self._num_tokens


@dataclass(slots=True)
class MeasuredSchedule:
    """One trajectory's schedule if every scoring call computes its whole context.

    `price_ratio` is the cost of a second of the teacher's server, in seconds of the student's.
    """

    writing: WritingSpeed
    computing: ComputingSpeed
    hazard: BreachRate
    price_ratio: float
    num_context: int = 0
    """Tokens of the context that was scored last."""

    def is_due(self, num_waiting: int) -> bool:
        """Return whether waiting steps of `num_waiting` tokens are worth a call by now."""
        written, computed = self.writing.seconds_a_token(), self.computing.seconds_a_token()
        if not written or computed is None:  # nothing is known before the first call
            return True
        price = self.price_ratio * computed / written
        return is_worth_a_call(self.num_context, num_waiting, self.hazard.a_token, price)
