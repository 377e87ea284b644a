"""Measures speeds, trips and breach rates, from which a schedule decides when to score and wait."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from proxy.core.lookahead import is_worth_a_call, with_half_a_step, worth_writing

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
    _stream_s: float = field(init=False, default=0.0)
    """The sum of the streams' own times."""
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
        self._pass()
        self._num_open += 1

    def _end(self) -> None:
        self._pass()
        self._num_open -= 1

    def _pass(self) -> None:
        """Add the time since the last change."""
        now = self.clock()
        if self._num_open:
            self._busy_s += now - self._since
            self._stream_s += (now - self._since) * self._num_open
        self._since = now
        if self._busy_s > _MEMORY_S:
            self._busy_s, self._num_tokens = self._busy_s / 2, self._num_tokens / 2
            self._stream_s /= 2

    def count(self, num_tokens: int) -> None:
        """Count written tokens."""
        self._num_tokens += num_tokens

    def seconds_a_token(self) -> float | None:
        """None where nothing is known yet."""
        self._pass()
        return self._busy_s / self._num_tokens if self._num_tokens else None

    def seconds_a_token_of_a_stream(self) -> float | None:
        """Return the seconds that a stream takes to write a token; None where nothing is known."""
        self._pass()
        return self._stream_s / self._num_tokens if self._num_tokens else None


@dataclass(slots=True)
class Line:
    """A line through seconds over tokens, fitted by least squares; the last hundred points or so
    count.
    """

    # Sums over the points: of 1, tokens, seconds, tokens^2, tokens * seconds.
    _sums: tuple[float, ...] = (0.0,) * 5

    def add(self, tokens: float, seconds: float) -> None:
        """Add a point."""
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = tuple(_KEPT_A_CALL * a + b for a, b in zip(self._sums, new, strict=True))

    @property
    def mean_tokens(self) -> float:
        """The mean of the tokens; 0 without a point."""
        n, x, *_ = self._sums
        return x / n if n else 0.0

    @property
    def mean_seconds(self) -> float:
        """The mean of the seconds; 0 without a point."""
        n, _, y, *_ = self._sums
        return y / n if n else 0.0

    @property
    def slope(self) -> float:
        """Seconds a token; 0 where the points do not show that more tokens take longer, and not so
        many that no tokens would take less than no time.
        """
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if not x or spread <= _LEAST_SPREAD * x * x:
            return 0.0
        return min(max(0.0, (n * xy - x * y) / spread), y / x)


@dataclass(slots=True)
class ComputingSpeed:
    """Measures how long a server takes to compute a token of a context.

    A call also spends time on the network, which costs the server nothing. The speed is therefore
    the slope of a line, fitted by least squares, through the calls' seconds over the tokens before
    the server when a call began: the call's own tokens and the tokens of the calls under way.
    """

    clock: Callable[[], float] = time.monotonic
    _under_way: int = field(init=False, default=0)
    _line: Line = field(init=False, default_factory=Line)

    @contextmanager
    def computing(self, num_tokens: int) -> Iterator[None]:
        """Measure a call for a context of `num_tokens` tokens, unless it fails."""
        self._under_way += num_tokens
        load, began = float(self._under_way), self.clock()
        try:
            yield
            self._line.add(load, self.clock() - began)
        finally:
            self._under_way -= num_tokens

    def seconds_a_token(self) -> float | None:
        """None where nothing is known yet."""
        if not self._line.mean_tokens:
            return None
        # Contexts of the same length do not show the network's time, so all time is the server's.
        return self._line.slope or self._line.mean_seconds / self._line.mean_tokens


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
    """One trajectory's schedule, by what its pair has measured.

    `price_ratio` is the cost of a second of the teacher's server, in seconds of the student's.
    """

    writing: WritingSpeed
    computing: ComputingSpeed
    hazard: BreachRate
    answering: Line
    """The seconds until a call for student tokens was answered, over these tokens."""
    price_ratio: float
    recomputes: bool
    """Whether every scoring call computes its whole context."""
    num_context: int = 0
    """Tokens of the context that was scored last."""
    clock: Callable[[], float] = time.monotonic
    _num_sent: int = field(init=False, default=0)
    _sent_at: float = field(init=False, default=0.0)

    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        """Return whether waiting steps of `num_waiting` tokens are worth a call by now: nearer to
        the best number of tokens than after one step more.
        """
        if not self.recomputes:
            return True
        price = self._price()
        if price is None:  # nothing is known before the first call
            return True
        num_tokens = with_half_a_step(num_waiting, num_steps)
        return is_worth_a_call(self.num_context, num_tokens, self.hazard.a_token, price)

    def sent(self, num_tokens: int) -> float:
        """Return the tokens that the student should write beyond those that are being scored."""
        self._num_sent, self._sent_at = num_tokens, self.clock()
        writes, of_all = self.writing.seconds_a_token_of_a_stream(), self.writing.seconds_a_token()
        if not writes or not of_all or not self.answering.mean_tokens:
            return math.inf
        slope = self.answering.slope
        # Rounding could leave less than nothing.
        trip_s = max(0.0, self.answering.mean_seconds - slope * self.answering.mean_tokens)
        trip, price = trip_s / writes, self.price_ratio * slope / of_all
        if self.recomputes:
            trip += (self._price() or 0.0) * self.num_context
        return worth_writing(trip, slope / writes, self.hazard.a_token, price)

    def answered(self) -> None:
        """Measure the call."""
        self.answering.add(self._num_sent, self.clock() - self._sent_at)

    def _price(self) -> float | None:
        """Return the cost of a teacher's token in student tokens; None where it is not known."""
        written, computed = self.writing.seconds_a_token(), self.computing.seconds_a_token()
        return self.price_ratio * computed / written if written and computed is not None else None
