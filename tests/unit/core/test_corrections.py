"""Tests the state machine of several corrections where the property test does not look."""

import pytest

from proxy.core.corrections.choice import Correction, choose
from proxy.core.corrections.monitor import CorrectionsMonitor
from proxy.core.monitor import MotabMonitor, monitor_for
from proxy.core.params import ParameterError, Params
from proxy.core.types import (
    Chosen,
    Command,
    Emit,
    Finish,
    FoundAnswer,
    Keep,
    ReadAnswers,
    Scored,
    StepScore,
    Write,
    WriteEnded,
    Wrote,
)


def strayed(num: int, **params: object) -> tuple[CorrectionsMonitor, list[Command]]:
    """A monitor whose student strayed at its first step, and the commands that follow."""
    monitor = monitor_for(Params(corrections=num, **params))  # type: ignore[arg-type]
    assert isinstance(monitor, CorrectionsMonitor)
    monitor.start()
    monitor.handle(Wrote(0, ("A a.\n\n",)))
    return monitor, monitor.handle(Scored((StepScore(0.0, 1.0, 2),)))


def test_one_correction_needs_no_choice() -> None:
    assert isinstance(monitor_for(Params()), MotabMonitor)


@pytest.mark.parametrize("num", [0, -1, 65])
def test_the_number_of_corrections_has_bounds(num: int) -> None:
    with pytest.raises(ParameterError, match="corrections must be at"):
        Params(corrections=num)


def test_the_breach_asks_for_all_corrections_at_once() -> None:
    _, commands = strayed(3)
    writes = [command for command in commands if isinstance(command, Write)]
    assert [write.write_id for write in writes] == [1, 2, 3]
    assert len({(write.steps, write.max_tokens, write.author) for write in writes}) == 1


def test_a_correction_is_emitted_as_a_whole_once_it_is_kept() -> None:
    monitor, _ = strayed(2)
    assert monitor.handle(Wrote(2, ("x", "y"))) == []
    assert monitor.handle(WriteEnded(2, "stop")) == []
    assert monitor.handle(Wrote(1, ("z",))) == []
    texts = tuple("A a.\n\nHowever,\n\n" + one for one in ("z", "xy"))
    assert monitor.handle(WriteEnded(1, "stop")) == [ReadAnswers(texts)]
    keep, emit, finish = monitor.read((FoundAnswer("5", False, 0), FoundAnswer("7", True)))
    chosen = Chosen(1, "reference", ("5", "7"))
    assert (keep, emit) == (Keep(2, chosen), Emit("\n\nxy"))
    assert isinstance(finish, Finish)
    assert finish.trajectory.text == texts[1]
    assert finish.trajectory.teacher_tokens == 2


def test_nothing_is_read_where_all_corrections_are_lost() -> None:
    monitor, _ = strayed(2)
    assert monitor.lost(1) == []
    assert monitor.lost(2) == [ReadAnswers(())]
    # A loss after the end changes nothing.
    monitor, _ = strayed(2)
    monitor.handle(WriteEnded(1, "stop"))
    assert monitor.lost(1) == []
    assert monitor.lost(2) == [ReadAnswers(("A a.\n\nHowever,\n\n",))]


def test_there_must_be_an_answer_for_each_text() -> None:
    monitor, _ = strayed(2)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        monitor.read((FoundAnswer("5"),))


def test_a_blank_correction_stands_back_even_if_it_is_right() -> None:
    # The flawed attempt, which stands in every text, may hold the right answer.
    blank, written = Correction(["\n"], "stop"), Correction(["x", "y"], "stop")
    right, wrong = FoundAnswer("7", True), FoundAnswer("5", False, 0)
    assert choose([blank, written], {0: right, 1: wrong}).index == 1
    assert choose([blank, blank], {0: wrong, 1: right}).index == 1
