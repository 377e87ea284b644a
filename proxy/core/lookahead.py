"""Decides how far the student writes ahead of the verdicts, and when its waiting steps are scored.

Neither changes a decision: decisions depend on the step texts and their scores alone.
"""

from typing import Protocol

from proxy.core.types import Command, Pause, Resume


class Schedule(Protocol):
    """Decides when waiting steps are scored."""

    def is_due(self, num_waiting: int) -> bool:
        """Return whether to call now for waiting steps of `num_waiting` student tokens.

        Asked again as more tokens come; never while a call is under way.
        """
        ...


class AtOnce:
    """Scores a step as soon as it has ended: right if a call computes only its new steps."""

    def is_due(self, num_waiting: int) -> bool:
        """Return True."""
        del num_waiting
        return True


AT_ONCE = AtOnce()


def is_worth_a_call(num_context: int, num_waiting: int, hazard: float, price: float) -> bool:
    r"""Return whether to score now, if every call computes its whole context again.

    A call covers n waiting tokens (`num_waiting`) and recomputes the P context tokens before them
    (`num_context`), which no new step needs, at `price` c: the cost of a teacher token, in student
    tokens. A breach, of which there are h (`hazard`) per student token, is equally likely anywhere
    in the n tokens; at x it wastes the n - x tokens written after it until the call, so

        int_0^n h (n - x) dx = h n^2 / 2

    student tokens are wasted per call. Calls every n tokens cost c P / n + h n / 2 per token, which
    is least if both terms are equal: n^2 = 2 c P / h. So a call goes out as soon as the risk of the
    waiting tokens outweighs the recomputation. n grows with the square root of P, and the teacher's
    tokens with L^1.5, where one call per step makes it L^2.
    """
    return hazard * num_waiting**2 / 2 >= price * num_context


class Lookahead:
    """Keeps one author's stream within `limit` tokens of the verdicts, if possible: the step that
    is being written must end before it can be judged.
    """

    def __init__(self, limit: int, schedule: Schedule) -> None:
        self._limit = limit
        self._schedule = schedule
        self._is_paused = False

    def is_due(self, num_waiting: int) -> bool:
        """Return whether to score the waiting steps, which have `num_waiting` tokens."""
        # At half of the limit, so that the author can write the other half while the call runs.
        at_half = 2 * num_waiting >= self._limit
        return self._is_paused or at_half or self._schedule.is_due(num_waiting)

    def gate(self, write_id: int, num_ahead: int, num_steps: int) -> list[Command]:
        """Pause or resume the stream, given its unjudged tokens and finished steps."""
        if self._is_paused:
            if num_steps and 2 * num_ahead > self._limit:
                return []
            self._is_paused = False
            return [Resume(write_id)]
        if num_steps and num_ahead >= self._limit:
            self._is_paused = True
            return [Pause(write_id)]
        return []


class ScoringQueue:
    """Counts a draft's steps that wait for their verdicts, and decides when a call scores them.

    One call is under way at a time. It scores all steps that waited when it went out.
    """

    def __init__(self, limit: int, schedule: Schedule) -> None:
        self._lookahead = Lookahead(limit, schedule)
        self.num_steps = 0
        """Whole steps without a verdict, including steps in flight."""
        self._num_tokens = 0
        self._num_in_flight = 0

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
        return self._lookahead.gate(write_id, self._num_tokens + open_tokens, self.num_steps)

    def send_due(self, *, draft_is_over: bool) -> int:
        """Send the waiting steps if a call is due: return their number, or 0 for no call."""
        if not self.num_steps or self._num_in_flight:
            return 0
        if draft_is_over or self._lookahead.is_due(self._num_tokens):
            self._num_in_flight = self.num_steps
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
