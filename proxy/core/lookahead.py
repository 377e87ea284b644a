"""Decides how far the student writes ahead of the verdicts, and when its waiting steps are scored.

Neither changes a decision: decisions depend on the step texts and their scores alone.
"""

from typing import Protocol

from proxy.core.types import Command, Pause, Resume


class Schedule(Protocol):
    """Says when steps that wait are scored."""

    def is_due(self, num_waiting: int) -> bool:
        """Whether a call for steps of so many student tokens should go out now.

        Asked again as more of them come; never while a call is under way.
        """
        ...


class AtOnce:
    """As soon as a step has ended: right where a call computes no more than its new steps."""

    def is_due(self, num_waiting: int) -> bool:
        """Always."""
        del num_waiting
        return True


AT_ONCE = AtOnce()


def is_worth_a_call(num_context: int, num_waiting: int, hazard: float, price: float) -> bool:
    r"""Whether to score now, where every call computes its whole context again.

    A call covers n waiting tokens (`num_waiting`) and computes the P tokens before them
    (`num_context`) for the sake of no step, at `price` c: what a teacher token costs, in student
    tokens. A breach, of which there are h (`hazard`) a student token, lies at any place of the n
    alike and wastes what was written after it until the call: n - x tokens, so

        int_0^n h (n - x) dx = h n^2 / 2

    student tokens are wasted for each call. Calls every n tokens cost c P / n + h n / 2 a token,
    which is least where both are equal: n^2 = 2 c P / h. So a call goes out as soon as what the
    waiting tokens risk outweighs what it would compute again. n grows with the root of P, and the
    teacher's tokens with L^1.5 where a call a step makes it L^2.
    """
    return hazard * num_waiting**2 / 2 >= price * num_context


class Lookahead:
    """Keeps one author's stream within `limit` tokens of the verdicts, as far as that is possible:
    the step that is being written has to end before it can be judged.
    """

    def __init__(self, limit: int, schedule: Schedule) -> None:
        self._limit = limit
        self._schedule = schedule
        self._is_paused = False

    def is_due(self, num_waiting: int) -> bool:
        """Whether to score the steps that wait, which have so many tokens."""
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
    """Counts a draft's steps that wait for their verdicts, and says which call scores them when.

    One call is under way at a time. It scores all steps that waited when it went out.
    """

    def __init__(self, limit: int, schedule: Schedule) -> None:
        self._lookahead = Lookahead(limit, schedule)
        self.num_steps = 0
        """Whole steps without a verdict, those in flight included."""
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
        """Send the steps whose call is due: return their number, 0 where no call should go out."""
        if not self.num_steps or self._num_in_flight:
            return 0
        if draft_is_over or self._lookahead.is_due(self._num_tokens):
            self._num_in_flight = self.num_steps
            return self.num_steps
        return 0

    def answered(self, num_scores: int) -> None:
        """End the call under way. Raises ValueError where it did not score exactly its steps."""
        if num_scores != self._num_in_flight:
            raise ValueError(
                f"{self._num_in_flight} steps were to be scored, {num_scores} scores came"
            )
        self._num_in_flight = 0
