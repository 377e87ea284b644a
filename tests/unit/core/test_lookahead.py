"""When scoring calls go out, and how far the student may be ahead."""

import math

import pytest

from proxy.core.lookahead import (
    AT_ONCE,
    AtOnce,
    Lookahead,
    ScoringQueue,
    is_worth_a_call,
    worth_writing,
)
from proxy.core.monitor import monitor_for
from proxy.core.params import ParameterError, Params
from proxy.core.types import Command, Emit, Pause, Resume, Score, Scored, StepScore, Wrote


class Never(AtOnce):
    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        del num_waiting, num_steps
        return False


class Enough(AtOnce):
    """Lets the student wait after that number of tokens beyond a call."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def sent(self, num_tokens: int) -> float:
        del num_tokens
        return self.num_tokens


def without_text(commands: list[Command]) -> list[Command]:
    return [c for c in commands if isinstance(c, Pause | Resume | Score)]


def safe(num: int = 1) -> Scored:
    return Scored(tuple(StepScore(0.9, 0.0, 1) for _ in range(num)))


# The rule.


def test_a_call_goes_out_when_what_waits_risks_what_it_computes_again() -> None:
    # Where breaches are rare, n^2 = 2 c P / (1 + c) h = 2 * 0.25 * 2000 / 1.25 * 10,000,000.
    assert not is_worth_a_call(2000, 89_000, hazard=1e-7, price=0.25)
    assert is_worth_a_call(2000, 90_000, hazard=1e-7, price=0.25)


@pytest.mark.parametrize("hazard", [0.0002, 0.002, 0.02])
@pytest.mark.parametrize("price", [0.01, 0.3, 3.0])
def test_the_rule_costs_least(hazard: float, price: float) -> None:
    context = 3000

    def cost(interval: int) -> float:
        """Calls until one finds the breach; each computes the context and the new tokens."""
        found = -math.expm1(-hazard * interval)
        wasted = interval - found / hazard
        return (price * (context + interval) + wasted) / found

    best = min(range(1, 50_000), key=cost)
    first = next(n for n in range(50_000) if is_worth_a_call(context, n, hazard, price))
    assert first == pytest.approx(best, abs=1)


def test_a_step_of_a_thousand_breaches_is_worth_a_call() -> None:
    assert is_worth_a_call(10_000, 100_000, hazard=0.01, price=10)


def test_what_is_computed_again_grows_with_the_power_of_one_and_a_half() -> None:
    def computed_again(length: int) -> int:
        total = before = 0
        for end in range(10, length + 1, 10):
            if is_worth_a_call(before, end - before, 0.0001, 0.001):
                total, before = total + before, end
        return total

    growth = math.log2(computed_again(256_000) / computed_again(128_000))
    assert growth == pytest.approx(1.5, abs=0.1)


# The limit.


def test_at_half_of_the_limit_steps_are_scored_whatever_the_schedule_says() -> None:
    lookahead = Lookahead(100, Never())
    assert not lookahead.is_due(49, 1)
    assert lookahead.is_due(50, 1)


def test_a_student_at_the_limit_is_paused_once_and_resumed_at_half_of_it() -> None:
    lookahead = Lookahead(100, Never())
    assert lookahead.gate(0, 99, 2) == []
    assert lookahead.gate(0, 100, 2) == [Pause(0)]
    assert lookahead.gate(0, 110, 2) == []
    assert lookahead.is_due(1, 1), "what waits must not wait for a student that does not write"
    assert lookahead.gate(0, 51, 1) == []
    assert lookahead.gate(0, 50, 1) == [Resume(0)]
    assert lookahead.gate(0, 50, 1) == []


def test_a_step_longer_than_the_limit_can_be_finished() -> None:
    lookahead = Lookahead(10, Never())
    assert lookahead.gate(0, 5000, 0) == [], "no verdict can come before its end"
    assert lookahead.gate(0, 5000, 1) == [Pause(0)]
    assert lookahead.gate(0, 4000, 0) == [Resume(0)]


def test_one_call_is_under_way_at_a_time_and_scores_all_steps_that_waited() -> None:
    queue = ScoringQueue(100, AT_ONCE)
    assert queue.send_due(draft_is_over=True) == 0, "nothing waits"
    queue.add(3)
    queue.add(4)
    assert queue.send_due(draft_is_over=False) == 2
    queue.add(5)
    assert queue.send_due(draft_is_over=True) == 0, "a call is under way"
    with pytest.raises(ValueError, match="2 steps were to be scored, 3 scores came"):
        queue.answered(3)
    queue.answered(2)
    queue.judged(3)
    queue.judged(4)
    assert (queue.num_steps, queue.send_due(draft_is_over=False)) == (1, 1)


def test_steps_wait_for_their_schedule_only_while_the_student_writes() -> None:
    queue = ScoringQueue(100, Never())
    queue.add(49)
    assert queue.send_due(draft_is_over=False) == 0
    assert queue.send_due(draft_is_over=True) == 1


def test_the_tokens_of_steps_that_wait_and_of_the_open_one_count_against_the_limit() -> None:
    queue = ScoringQueue(100, Never())
    queue.add(60)
    queue.add(30)
    assert queue.gate(7, 9) == []
    assert queue.gate(7, 10) == [Pause(7)]
    queue.judged(60)
    assert queue.gate(7, 20) == [Resume(7)]


def test_a_limit_below_one_token_is_refused() -> None:
    with pytest.raises(ParameterError, match="max_lookahead_tokens must be at least 1, not 0"):
        Params(max_lookahead_tokens=0)


@pytest.mark.parametrize("method", ["motab", "skd"])
def test_the_student_waits_for_a_slow_teacher(method: str) -> None:
    params = Params(method=method, max_lookahead_tokens=3)  # type: ignore[arg-type]
    monitor = monitor_for(params)
    monitor.start()

    def wrote(*pieces: str) -> list[Command]:
        return without_text(monitor.handle(Wrote(0, pieces, ((-1.0,),) * len(pieces))))

    (first,) = wrote("a.\n\n")
    assert isinstance(first, Score)
    assert wrote("b.\n\n") == []
    assert wrote("c") == [Pause(0)]
    # Under way when it was said; taken, and no reason to say it twice.
    assert wrote("d.\n\n") == []
    commands = without_text(monitor.handle(safe()))
    assert [type(command) for command in commands] == [Score]
    assert without_text(monitor.handle(safe(2))) == [Resume(0)]
    assert isinstance(wrote("e.\n\n")[0], Score)


def test_text_that_waits_for_a_verdict_is_told_when_the_schedule_brings_it() -> None:
    monitor = monitor_for(Params(max_lookahead_tokens=6), schedule=Never())
    monitor.start()
    assert monitor.handle(Wrote(0, ("a.\n\n",))) == [Emit("a.\n\n")]
    assert monitor.handle(Wrote(0, ("b.\n\n",))) == []
    # Half of the limit is waiting.
    (call,) = monitor.handle(Wrote(0, ("c.\n\n",)))
    assert isinstance(call, Score)
    assert call.num_new == 3
    emitted = [c for c in monitor.handle(safe(3)) if isinstance(c, Emit)]
    assert emitted == [Emit("b.\n\nc.\n\n")]


# When the student waits.


def test_a_student_waits_at_what_finds_breaches_soonest() -> None:
    trip, pace, hazard, price = 20.0, 2.0, 0.002, 0.7

    def cost_a_token(ahead: float) -> float:
        found_after = 1.5 * (trip + pace * ahead)
        return trip / ahead + pace + hazard * (found_after + price * ahead / 2)

    best = min(range(1, 5000), key=cost_a_token)
    assert worth_writing(trip, pace, hazard, price) == pytest.approx(best, abs=1)


def test_a_student_never_waits_for_a_teacher_that_keeps_up() -> None:
    # 20 / (1 - 0.5) tokens a call come by themselves, and 115 would be best.
    assert worth_writing(20, 0.5, 0.001, 0) == math.inf
    assert worth_writing(1e6, 0, 0.1, 0) == math.inf
    # It does not keep up where trips are long and breaches many.
    assert worth_writing(2000, 0.9, 0.01, 0) == pytest.approx(math.sqrt(2000 / 0.0135))


def test_a_student_that_has_written_enough_waits_for_the_call_under_way() -> None:
    queue = ScoringQueue(1000, Enough(22))
    queue.add(15)
    assert queue.gate(0, 500) == [], "no call is under way"
    assert queue.send_due(draft_is_over=False) == 1
    assert queue.gate(0, 500) == [], "no step waits for the next call"
    queue.add(14)
    assert queue.gate(0, 5) == [], "with one more step, 28 tokens are as near to 22"
    queue.add(8)
    assert queue.gate(0, 5) == [Pause(0)]
    assert queue.gate(0, 6) == []
    queue.answered(1)
    queue.judged(15)
    assert queue.gate(0, 30) == [Resume(0)]
    assert queue.send_due(draft_is_over=False) == 2
    assert queue.gate(0, 30) == [], "no step waits for the next call"
