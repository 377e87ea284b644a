"""Decides how far the student writes ahead of the verdicts, and when its waiting steps are scored.

Neither changes a decision: decisions depend on the step texts and their scores alone.
"""

import math
from typing import Protocol

from proxy.core.types import Command, Pause, Resume

# The time from a breach to its verdict, in calls: half of the call under way, and its own.
_CALLS_TO_A_VERDICT = 1.5
# More breaches in a call are as good as these: e to this power is nearly the largest float.
_MOST_RISK = 700.0


class Schedule(Protocol):
    """Decides when waiting steps are scored, and how much is written meanwhile."""

    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        """Return whether to call now for `num_steps` waiting steps of `num_waiting` student tokens.

        Asked again as more tokens come; never while a call is under way.
        """
        ...

    def sent(self, num_tokens: int) -> float:
        """Notice that a call goes out for that number of student tokens; return the tokens beyond
        them at which the student waits for the answer.
        """
        ...

    def answered(self) -> None:
        """Notice that the call was answered."""
        ...


class AtOnce:
    """Scores a step as soon as it has ended, and never lets the student wait."""

    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        """Return True."""
        del num_waiting, num_steps
        return True

    def sent(self, num_tokens: int) -> float:
        """Return infinity."""
        del num_tokens
        return math.inf

    def answered(self) -> None:
        """Do nothing."""


AT_ONCE = AtOnce()


def is_worth_a_call(num_context: int, num_waiting: float, hazard: float, price: float) -> bool:
    r"""Return whether to score now, if every call computes its whole context again.

    A call covers n waiting tokens (`num_waiting`) and recomputes the P context tokens before them
    (`num_context`), which no new step needs, at `price` c: the cost of a teacher token, in student
    tokens. There are h breaches (`hazard`) per student token. A breach at x wastes the n - x tokens
    after it: the student has written them, and the teacher computes them. That is, per call,

        (1 + c) int_0^n h e^{-hx} (n - x) dx = (1 + c) (n - (1 - e^{-hn}) / h)

    A call without a breach, of probability e^{-hn}, is followed by the next. So calls every n
    tokens cost (c P + (1 + c) n) / (1 - e^{-hn}) - (1 + c) / h until the breach, which is least for

        (1 + c) (e^{hn} - 1 - hn) = h c P

    For small h n and c this is h n^2 / 2 = c P: n grows with the square root of P, and the
    teacher's tokens with L^1.5, where one call per step makes it L^2.
    """
    risk = min(hazard * num_waiting, _MOST_RISK)
    return (1 + price) * (math.expm1(risk) - risk) >= hazard * price * num_context


def worth_writing(trip: float, pace: float, hazard: float, price: float) -> float:
    """Return the tokens that a student should write beyond a call under way before it waits.

    A call takes the time of `trip` + `pace` * n student tokens, if it scores n tokens. Where the
    teacher is the slower of the two, a student that never waits gets ever further ahead, and each
    call is longer than the last. With w tokens written beyond each call, and so w in the next,

    * each token takes the time of `trip` / w + `pace` tokens;
    * a breach, of which there are h (`hazard`) per token, is found after one and a half calls in
      the mean, because it lies in the middle of the call that waits for the one under way;
    * the teacher computes the other half of that call in vain, at `price` c: the cost of a teacher
      token, in student tokens.

    The sum, trip / w + h w (1.5 pace + c / 2) and what does not depend on w, is least at w^2 = trip
    / h (1.5 pace + c / 2). Where a student that never waits has fewer tokens than that in each
    call, namely trip / (1 - pace), waiting gains nothing: a verdict comes no sooner.
    """
    if not pace:
        return math.inf
    best = math.sqrt(trip / (hazard * (_CALLS_TO_A_VERDICT * pace + price / 2)))
    return best if pace >= 1 or best < trip / (1 - pace) else math.inf


def with_half_a_step(num_tokens: int, num_steps: int) -> float:
    """Return the tokens of whole steps, and half of such a step more: what is at least a best
    number with them is nearer to it than with one step more.
    """
    return num_tokens * (1 + 1 / (2 * num_steps))


class Lookahead:
    """Keeps one author's stream within `limit` tokens of the verdicts, if possible: the step that
    is being written must end before it can be judged.
    """

    def __init__(self, limit: int, schedule: Schedule) -> None:
        self._limit = limit
        self._schedule = schedule
        self._is_paused = False

    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        """Return whether to score the waiting steps, which have `num_waiting` tokens."""
        # At half of the limit, so that the author can write the other half while the call runs.
        at_half = 2 * num_waiting >= self._limit
        return self._is_paused or at_half or self._schedule.is_due(num_waiting, num_steps)

    def gate(
        self, write_id: int, num_ahead: int, num_steps: int, *, is_enough: bool = False
    ) -> list[Command]:
        """Pause or resume the stream, given its unjudged tokens and finished steps; `is_enough`: no
        more of it is worth writing now.
        """
        if self._is_paused:
            if is_enough or (num_steps and 2 * num_ahead > self._limit):
                return []
            self._is_paused = False
            return [Resume(write_id)]
        if is_enough or (num_steps and num_ahead >= self._limit):
            self._is_paused = True
            return [Pause(write_id)]
        return []


class ScoringQueue:
    """Counts a draft's steps that wait for their verdicts, and decides when a call scores them.

    One call is under way at a time. It scores all steps that waited when it went out.
    """

    def __init__(self, limit: int, schedule: Schedule) -> None:
        self._lookahead = Lookahead(limit, schedule)
        self._schedule = schedule
        self.num_steps = 0
        """Whole steps without a verdict, including steps in flight."""
        self._num_tokens = 0
        self._num_in_flight = 0
        self._tokens_in_flight = 0
        self._enough = math.inf
        """The tokens beyond the call under way that are worth writing meanwhile."""

    def add(self, num_tokens: int) -> None:
        """Let one more step wait."""
        self.num_steps += 1
        self._num_tokens += num_tokens

    def judged(self, num_tokens: int) -> None:
        """Remove the oldest step, whose verdict has come."""
        self.num_steps -= 1
        self._num_tokens -= num_tokens

    def gate(self, write_id: int, open_tokens: int) -> list[Command]:
        """Pause or resume the stream, which is writing a step of `open_tokens` so far."""
        num_ahead = self._num_tokens + open_tokens
        return self._lookahead.gate(
            write_id, num_ahead, self.num_steps, is_enough=self._has_enough()
        )

    def _has_enough(self) -> bool:
        """Return whether the next call, which is for whole steps, has enough of them already."""
        num_waiting = self.num_steps - self._num_in_flight
        if not self._num_in_flight or not num_waiting:
            return False
        num_tokens = self._num_tokens - self._tokens_in_flight
        return with_half_a_step(num_tokens, num_waiting) >= self._enough

    def send_due(self, *, draft_is_over: bool) -> int:
        """Send the waiting steps if a call is due: return their number, or 0 for no call."""
        if not self.num_steps or self._num_in_flight:
            return 0
        if draft_is_over or self._lookahead.is_due(self._num_tokens, self.num_steps):
            self._num_in_flight = self.num_steps
            self._tokens_in_flight = self._num_tokens
            self._enough = self._schedule.sent(self._num_tokens)
            return self.num_steps
        return 0

    def answered(self, num_scores: int, *, is_full: bool = False) -> None:
        """End the call under way. Raises ValueError if it did not score exactly its steps, or fewer
        with `is_full`.
        """
        if num_scores > self._num_in_flight or (num_scores < self._num_in_flight) != is_full:
            raise ValueError(
                f"{self._num_in_flight} steps were to be scored, {num_scores} scores came"
            )
        self._num_in_flight = 0
        self._schedule.answered()
