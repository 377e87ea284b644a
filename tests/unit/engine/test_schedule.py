"""Measures speeds, trips and breaches, and weighs calls by them."""

import math
from collections.abc import Callable

import pytest

from proxy.core.lookahead import worth_writing
from proxy.engine.schedule import BreachRate, ComputingSpeed, Line, MeasuredSchedule, WritingSpeed


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
    assert speed.seconds_a_token_of_a_stream() == pytest.approx(0.02)


def test_a_stream_that_waits_does_not_make_the_others_slower() -> None:
    clock = Clock()
    speed = WritingSpeed(clock)
    assert speed.seconds_a_token_of_a_stream() is None
    with speed.writing(), speed.writing(), speed.pausing():
        clock.now += 1
        speed.count(50)
    assert speed.seconds_a_token_of_a_stream() == pytest.approx(1 / 50)


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
        return MeasuredSchedule(
            writing,
            computing,
            BreachRate(),
            Line(),
            price_ratio,
            recomputes=True,
            num_context=2000,
        )

    return at


def test_a_teacher_of_more_gpus_is_asked_less_often(
    weigh: Callable[[float], MeasuredSchedule],
) -> None:
    def interval(price_ratio: float) -> int:
        schedule = weigh(price_ratio)
        return next(n for n in range(10_000) if schedule.is_due(n, max(1, n)))

    # n^2 = 2 * (100 / 10000) * 2000 * 1000, a bit less because a breach is the last call's
    assert interval(1) == pytest.approx(200, rel=0.1)
    assert interval(4) == pytest.approx(400, rel=0.1)


def test_steps_are_scored_if_the_next_step_would_end_further_from_the_best_number(
    weigh: Callable[[float], MeasuredSchedule],
) -> None:
    best = next(n for n in range(10_000) if weigh(1).is_due(n, 10_000))
    assert not weigh(1).is_due(best - 30, (best - 30) // 40)
    assert weigh(1).is_due(best - 30, (best - 30) // 80)


def test_before_anything_is_known_steps_are_scored_at_once_and_nobody_waits() -> None:
    schedule = MeasuredSchedule(
        WritingSpeed(), ComputingSpeed(), BreachRate(), Line(), 1.0, recomputes=True
    )
    assert schedule.is_due(1, 1)
    assert schedule.sent(1) == math.inf


def test_what_is_enough_is_measured() -> None:
    clock = Clock()
    writing, answering = WritingSpeed(clock), Line()
    with writing.writing(), writing.writing():  # each writes 50 tokens a second
        clock.now += 1
        writing.count(100)
    hazard = BreachRate()
    schedule = MeasuredSchedule(
        writing, ComputingSpeed(clock), hazard, answering, 1.0, recomputes=False, clock=clock
    )
    assert schedule.sent(10) == math.inf
    for num_tokens in (10, 20, 40):
        schedule.sent(num_tokens)
        clock.now += 0.2 + num_tokens / 25
        schedule.answered()
    enough = worth_writing(0.2 * 50, 50 / 25, hazard.a_token, price=100 / 25)
    assert schedule.sent(10) == pytest.approx(enough)


def test_steps_of_one_length_do_not_show_a_slow_teacher() -> None:
    line = Line()
    for seconds in (0.1, 0.2, 0.1):
        line.add(54, seconds)
    assert line.slope == 0
    assert line.mean_tokens == pytest.approx(54)


def test_a_call_without_tokens_takes_no_less_than_no_time() -> None:
    line = Line()
    for tokens, seconds in ((10, 0.1), (20, 0.4), (30, 0.9)):
        line.add(tokens, seconds)
    assert line.slope == pytest.approx(line.mean_seconds / line.mean_tokens)


def test_calls_whose_time_is_all_for_their_tokens_leave_no_trip() -> None:
    clock = Clock()
    writing, answering = WritingSpeed(clock), Line()
    with writing.writing():
        clock.now += 1
        writing.count(10)
    for tokens in range(1, 60):
        answering.add(tokens, tokens * tokens / 7)
    schedule = MeasuredSchedule(
        writing, ComputingSpeed(clock), BreachRate(), answering, 1.0, recomputes=False, clock=clock
    )
    assert schedule.sent(10) == pytest.approx(0, abs=1e-3)
