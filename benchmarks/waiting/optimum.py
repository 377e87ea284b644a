"""Finds the cheapest calls and waits for a pair whose speeds, breaches and prices are known.

The optimal rule knows what motab must measure: the student's and the teacher's speed, the trip, the
price of a teacher's token and the rate of breaches, which is the same at every step. It cannot know
where the next breach is. Like motab it has one scoring call of a trajectory under way at a time,
for whole steps, and it may let the student wait. It minimises what motab's rule minimises:

    student tokens wasted + price * teacher tokens computed + tokens not written while waiting

Until a breach is found, it learns nothing but that there was none. So it is a fixed sequence of
calls, and a dynamic programme over pairs of neighbouring calls finds the cheapest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Decides between rules that cost the same: rather wait than write in vain.
_PREFERENCE = 1e-6
_Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Known:
    """A pair of servers and its texts. Speeds are in tokens a second, times in seconds."""

    rate: float
    """A stream of the student's."""
    interval: int
    """The tokens of an event of that stream; the first token has its own."""
    step_tokens: int
    hazard: float
    """The chance that a step is a breach."""
    trip_s: float
    prefill: float
    price: float
    """The cost of a token that the teacher computes, in tokens of a student's stream."""
    recomputes: bool
    """Whether a call computes its whole context."""
    question_tokens: int = 0

    def computed(self, first: int, last: int) -> int:
        """Return the tokens that the teacher computes for the steps after `first` up to `last`."""
        size = self.question_tokens + last * self.step_tokens
        if self.recomputes or not first:
            return size
        # The last token that is known is computed again, with the new tokens.
        return size - (self.question_tokens + first * self.step_tokens) + 1

    def seen(self, num_tokens: int) -> int:
        """Return the tokens of the events with which the first `num_tokens` have come."""
        return 1 + -(-max(0, num_tokens - 1) // self.interval) * self.interval

    def written_during(self, first: int, last: int) -> int:
        """Return the tokens that the student writes during a call if it does not wait."""
        seconds = self.trip_s + self.computed(first, last) / self.prefill
        return int(seconds * self.rate / self.interval) * self.interval


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call for the steps after `first` up to `last`. When it is answered, `written` tokens of the
    text are there, and the student has waited for the time of `waited` tokens.
    """

    first: int
    last: int
    written: int
    waited: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of texts, in tokens."""

    kept: float
    wasted: float
    computed: float
    waited: float = 0.0

    def total(self, price: float) -> float:
        """Return what the optimal rule minimises."""
        return self.wasted + price * self.computed + self.waited


def cost_of(known: Known, calls: Sequence[PlannedCall], breaches: Iterable[int]) -> Cost:
    """Return the cost of these calls for texts whose steps of that number (from 0) are breaches."""
    kept = wasted = computed = waited = 0
    for breach in breaches:
        kept += (breach + 1) * known.step_tokens
        for call in calls:
            computed += known.computed(call.first, call.last)
            waited += call.waited
            if breach < call.last:
                wasted += call.written - (breach + 1) * known.step_tokens
                break
        else:
            raise ValueError(f"no call is for step {breach}")
    return Cost(kept, wasted, computed, waited)


def optimal_calls(known: Known, num_steps: int, most_steps: int) -> Sequence[PlannedCall]:
    """Return the cheapest calls for a text of `num_steps` steps, of at most `most_steps` each, in
    their order as long as none finds a breach.
    """
    return _Programme(known, num_steps, most_steps).calls()


@dataclass(slots=True)
class _Programme:
    """The dynamic programme, from the last call to the first.

    A state is a call that goes out: its steps, and the events that the student has written by then
    beyond them, less than a step.
    """

    known: Known
    num_steps: int
    most_steps: int
    _costs: _Reals = field(init=False)
    """The least cost from a call on, by its first step, its steps and the events beyond them."""
    _next_written: npt.NDArray[np.int64] = field(init=False)
    """The tokens that are written at the next call."""
    _next_last: npt.NDArray[np.int64] = field(init=False)
    """The last step of the next call; 0 after the last."""

    def calls(self) -> Sequence[PlannedCall]:
        """Return the cheapest calls."""
        shape = (self.num_steps + 1, self.most_steps + 1, self._num_beyond)
        self._costs = np.full(shape, np.inf)
        self._next_written = np.zeros(shape, np.int64)
        self._next_last = np.zeros(shape, np.int64)
        for last in range(self.num_steps, 0, -1):
            for first in range(max(0, last - self.most_steps), last):
                for beyond in range(self._num_beyond):
                    self._decide(first, last, beyond)
        starts = range(1, min(self.most_steps, self.num_steps) + 1)
        last = min(starts, key=lambda last: float(self._costs[0, last, 0]))
        first, at = 0, self.known.seen(last * self.known.step_tokens)
        found: list[PlannedCall] = []
        while last:
            state = first, last - first, self._beyond(at, last)
            free = self._free(at, first, last)
            at = int(self._next_written[state])
            written = min(free, at)
            found.append(PlannedCall(first, last, written, free - written))
            first, last = last, int(self._next_last[state])
        return found

    @property
    def _num_beyond(self) -> int:
        return -(-self.known.step_tokens // self.known.interval)

    def _free(self, written: int, first: int, last: int) -> int:
        """Return the tokens that are there when a call is answered if the student does not wait."""
        whole = self.known.seen(self.num_steps * self.known.step_tokens)
        return min(written + self.known.written_during(first, last), whole)

    def _beyond(self, written: int, last: int) -> int:
        """Return the events beyond a step, of which the first has its end."""
        first = self.known.seen(last * self.known.step_tokens)
        return min((written - first) // self.known.interval, self._num_beyond - 1)

    def _decide(self, first: int, last: int, beyond: int) -> None:
        known = self.known
        size, interval = known.step_tokens, known.interval
        at = known.seen(last * size) + beyond * interval
        free = self._free(at, first, last)
        num = last - first
        safe = (1 - known.hazard) ** np.arange(num + 1)
        in_call = float(np.sum(safe[:-1] * known.hazard * np.arange(num - 1, -1, -1))) * size
        fixed = known.price * known.computed(first, last) + in_call
        # The next call goes out at the answer, where the student may have waited at any event
        # that has a whole step, or after it, when one more step has ended.
        next_end = known.seen((last + 1) * size)
        early = np.arange(max(at, next_end), free + 1, interval)
        num_whole = max(free // size, last)
        late_lasts = np.arange(num_whole + 1, last + self.most_steps + 1)
        late = 1 + -(-(late_lasts * size - 1) // interval) * interval
        written = np.concatenate([early, late])
        lasts = np.concatenate([early // size, late_lasts])
        kept = (lasts <= self.num_steps) & (lasts - last <= self.most_steps)
        written, lasts = written[kept], lasts[kept]
        state = first, num, beyond
        if not len(lasts):
            self._costs[state] = fixed + (1 - safe[-1]) * (free - last * size)
            self._next_written[state] = free
            return
        # A student that waits where it would only write in vain costs no more time.
        by_answer = np.minimum(written, free)
        ahead = by_answer - last * size + (1 - _PREFERENCE) * (free - by_answer)
        firsts = 1 + -(-(lasts * size - 1) // interval) * interval
        beyonds = np.minimum((written - firsts) // interval, self._num_beyond - 1)
        later = free - by_answer + self._costs[last, lasts - last, beyonds]
        costs = fixed + (1 - safe[-1]) * ahead + safe[-1] * later
        best = int(np.argmin(costs))
        self._costs[state] = costs[best]
        self._next_written[state], self._next_last[state] = written[best], lasts[best]
