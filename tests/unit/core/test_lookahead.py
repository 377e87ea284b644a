"""When scoring calls go out, how far the student may be ahead, and what both are weighed by."""

import math
from collections.abc import Callable

import pytest

from proxy.core.lookahead import AT_ONCE, Lookahead, ScoringQueue, is_worth_a_call
from proxy.core.monitor import monitor_for
from proxy.core.params import ParameterError, Params
from proxy.core.types import Command, Emit, Pause, Resume, Score, Scored, StepScore, Wrote
from proxy.engine.schedule import BreachRate, ComputingSpeed, MeasuredSchedule, WritingSpeed


class Never:
    def is_due(self, num_waiting: int) -> bool:
        del num_waiting
        return False


def without_text(commands: list[Command]) -> list[Command]:
    return [c for c in commands if isinstance(c, Pause | Resume | Score)]


def safe(num: int = 1) -> Scored:
    return Scored(tuple(StepScore(0.9, 0.0, 1) for _ in range(num)))


# The rule.


def test_a_call_goes_out_when_what_waits_risks_what_it_computes_again() -> None:
    # n^2 = 2 c P / h = 2 * 0.25 * 2000 / 0.001: 1000 tokens.
    assert not is_worth_a_call(2000, 999, hazard=0.001, price=0.25)
    assert is_worth_a_call(2000, 1000, hazard=0.001, price=0.25)


def test_the_rule_costs_least() -> None:
    hazard, price, context = 0.002, 0.3, 3000

    def cost_a_token(interval: int) -> float:
        return price * context / interval + hazard * interval / 2

    best = min(range(1, 5000), key=cost_a_token)
    first = next(n for n in range(5000) if is_worth_a_call(context, n, hazard, price))
    assert first == pytest.approx(best, abs=1)


def test_what_is_computed_again_grows_with_the_power_of_one_and_a_half() -> None:
    def computed_again(length: int) -> int:
        total = before = 0
        for end in range(10, length + 1, 10):
            if is_worth_a_call(before, end - before, 0.002, 0.3):
                total, before = total + before, end
        return total

    growth = math.log2(computed_again(256_000) / computed_again(128_000))
    assert growth == pytest.approx(1.5, abs=0.1)


# The limit.


def test_at_half_of_the_limit_steps_are_scored_whatever_the_schedule_says() -> None:
    lookahead = Lookahead(100, Never())
    assert not lookahead.is_due(49)
    assert lookahead.is_due(50)


def test_a_student_at_the_limit_is_paused_once_and_resumed_at_half_of_it() -> None:
    lookahead = Lookahead(100, Never())
    assert lookahead.gate(0, 99, 2) == []
    assert lookahead.gate(0, 100, 2) == [Pause(0)]
    assert lookahead.gate(0, 110, 2) == []
    assert lookahead.is_due(1), "what waits must not wait for a student that does not write"
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


# What is measured.


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_speed_of_a_student_is_that_of_all_its_open_streams_together() -> None:
    clock = Clock()
    speed = WritingSpeed(clock)
    assert speed.seconds_a_token() is None
    with speed.writing(), speed.writing():
        clock.now += 2
        speed.count(100)
        speed.count(100)
        assert speed.seconds_a_token() == pytest.approx(0.01)
    clock.now += 50  # nothing was open
    with speed.writing(), speed.pausing():
        clock.now += 50  # what was open waited
    assert speed.seconds_a_token() == pytest.approx(0.01)


def test_a_student_that_gets_slower_is_noticed() -> None:
    clock = Clock()
    speed = WritingSpeed(clock)

    def runs(seconds: int, tokens_a_second: int) -> float | None:
        told = None
        with speed.writing():
            for _ in range(seconds):
                clock.now += 1
                speed.count(tokens_a_second)
                told = speed.seconds_a_token()
        return told

    assert runs(600, 100) == pytest.approx(0.01)
    assert runs(300, 10) == pytest.approx(0.1, rel=0.1)


def test_the_trip_is_no_part_of_what_a_token_costs_the_teacher() -> None:
    clock = Clock()
    speed = ComputingSpeed(clock)
    assert speed.seconds_a_token() is None
    for num_tokens in (1000, 2000, 4000):
        with speed.computing(num_tokens):
            clock.now += 0.5 + num_tokens / 10_000
    assert speed.seconds_a_token() == pytest.approx(1 / 10_000)


def test_contexts_of_one_length_leave_all_of_the_time_to_their_tokens() -> None:
    clock = Clock()
    speed = ComputingSpeed(clock)
    for num_tokens in (1000, 1001, 1000):
        with speed.computing(num_tokens):
            clock.now += 0.5
    assert speed.seconds_a_token() == pytest.approx(0.5 / 1000, rel=0.01)


def test_calls_wait_for_those_that_the_server_computes_before_them() -> None:
    clock = Clock()
    speed = ComputingSpeed(clock)
    with speed.computing(8000), speed.computing(1000):  # begun together, ended after the first
        clock.now += 0.9
    for num_tokens in (1000, 3000):
        with speed.computing(num_tokens):
            clock.now += num_tokens / 10_000
    # 0.9 s for 9000 tokens; the first call, of 8000, seems to end no earlier.
    assert speed.seconds_a_token() == pytest.approx(1 / 10_000, rel=0.15)


def test_a_call_that_failed_tells_nothing_of_the_speed() -> None:
    clock = Clock()
    speed = ComputingSpeed(clock)

    def fail() -> None:
        with speed.computing(1000):
            clock.now += 100
            raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        fail()
    assert speed.seconds_a_token() is None


def test_breaches_are_counted_by_the_tokens_judged_and_the_old_ones_fade() -> None:
    hazard = BreachRate()
    assert hazard.a_token == pytest.approx(1 / 1000)
    for number in range(1000):
        hazard.judged(100, safe=number % 10 != 0)
    assert hazard.a_token == pytest.approx(1 / 1000, rel=0.05)
    for _ in range(100_000):
        hazard.judged(100, safe=True)
    assert hazard.a_token < 1e-5


@pytest.fixture
def weigh() -> Callable[[float], MeasuredSchedule]:
    """A student of 100 tok/s and a teacher that computes 10,000 tok/s, at a ratio of prices."""
    clock = Clock()
    writing, computing = WritingSpeed(clock), ComputingSpeed(clock)
    with writing.writing():
        clock.now += 1
        writing.count(100)
    with computing.computing(10_000):
        clock.now += 1

    def at(price_ratio: float) -> MeasuredSchedule:
        return MeasuredSchedule(writing, computing, BreachRate(), price_ratio, num_context=2000)

    return at


def test_a_teacher_of_more_gpus_is_asked_less_often(
    weigh: Callable[[float], MeasuredSchedule],
) -> None:
    def interval(price_ratio: float) -> int:
        schedule = weigh(price_ratio)
        return next(n for n in range(10_000) if schedule.is_due(n))

    # n^2 = 2 * (100 / 10000) * 2000 * 1000
    assert interval(1) == 200
    assert interval(4) == 400


def test_before_anything_is_known_steps_are_scored_at_once() -> None:
    assert MeasuredSchedule(WritingSpeed(), ComputingSpeed(), BreachRate(), 1.0).is_due(1)
