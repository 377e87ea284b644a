"""The machines of the methods that share the text, event by event (see also tests/property)."""

import math
from typing import Literal

import pytest

from proxy.core.monitor import monitor_for
from proxy.core.params import Params
from proxy.core.types import (
    Emit,
    Finish,
    Halt,
    Judged,
    Score,
    Scored,
    StepScore,
    Write,
    WriteEnded,
    Wrote,
)

A, B = "A.\n\n", "B.\n\n"
HALF = (math.log(0.5),)
PLAIN: tuple[Literal["imitkd", "prefix"], ...] = ("imitkd", "prefix")


def test_skd_keeps_a_step_above_gamma_times_the_students_own_confidence() -> None:
    monitor = monitor_for(Params(method="skd", gamma=0.9))
    assert monitor.start() == [Write(0, "student", (), 32768, logprobs=True)]
    commands = monitor.handle(Wrote(0, ("A", ".\n\n"), (HALF, (math.log(0.125),))))
    assert commands == [Score((A,), 1, entropy_known=True)]
    judged, emit = monitor.handle(Scored((StepScore(0.3, None, 3),)))
    assert isinstance(judged, Judged)
    # The geometric mean of 1/2 and 1/8 is 1/4.
    assert judged.step.boundary == pytest.approx(0.9 * 0.25)
    assert judged.step.safe
    assert emit == Emit(A)


def test_skd_rejects_at_equality_and_hands_the_pen_to_the_teacher_and_back() -> None:
    monitor = monitor_for(Params(method="skd", max_total_tokens=10))
    monitor.start()
    monitor.handle(Wrote(0, (A, B), ((0.0,), (0.0,))))
    judged, halt, write = monitor.handle(Scored((StepScore(1.0, None, 1), StepScore(1.0, None, 1))))
    assert isinstance(judged, Judged)
    assert not judged.step.safe
    assert (halt, write) == (Halt(0), Write(1, "teacher", (), 10))
    assert monitor.handle(Wrote(1, ("T.\n\nand", " more"))) == [
        Emit("T.\n\n"),
        Halt(1),
        Write(2, "student", ("T.\n\n",), 9, logprobs=True),
    ]
    # What halted writes still bring changes nothing.
    assert monitor.handle(Wrote(1, ("x",))) == monitor.handle(WriteEnded(1, "stop")) == []
    (finish,) = monitor.handle(WriteEnded(2, "stop"))
    assert isinstance(finish, Finish)
    assert finish.trajectory.text == "T.\n\n"
    assert finish.trajectory.finish_reason == "stop"


@pytest.mark.parametrize("logprobs", [None, ((),), ((math.nan,),), ((0.5,),)])
def test_skd_without_the_students_log_probabilities_is_an_error(
    logprobs: tuple[tuple[float, ...], ...] | None,
) -> None:
    monitor = monitor_for(Params(method="skd"))
    monitor.start()
    with pytest.raises(ValueError, match="log-probabilit"):
        monitor.handle(Wrote(0, (A,), logprobs))


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1])
def test_skd_takes_no_impossible_value(value: float) -> None:
    monitor = monitor_for(Params(method="skd"))
    monitor.start()
    monitor.handle(Wrote(0, (A,), (HALF,)))
    with pytest.raises(ValueError, match="must be in"):
        monitor.handle(Scored((StepScore(value, None, 1),)))


def test_skd_needs_a_score_for_every_step() -> None:
    monitor = monitor_for(Params(method="skd"))
    monitor.start()
    monitor.handle(Wrote(0, (A, B), (HALF, HALF)))
    with pytest.raises(ValueError, match="2 steps were to be scored, 1 scores came"):
        monitor.handle(Scored((StepScore(0.9, None, 1),)))


@pytest.mark.parametrize("method", PLAIN)
def test_what_is_not_scored_takes_no_scores(method: Literal["imitkd", "prefix"]) -> None:
    monitor = monitor_for(Params(method=method))
    monitor.start()
    with pytest.raises(ValueError, match="asks for no scores"):
        monitor.handle(Scored(()))


def test_an_empty_draft_leaves_everything_to_the_teacher() -> None:
    monitor = monitor_for(Params(method="prefix", max_total_tokens=7))
    monitor.start()
    assert monitor.handle(WriteEnded(0, "stop")) == [Write(1, "teacher", (), 7)]
