"""Trajectories whose teacher's window is full: they end with what was judged."""

import pytest

from proxy.core.monitor import monitor_for
from proxy.core.params import Params
from proxy.core.types import (
    Command,
    Emit,
    Finish,
    Halt,
    Monitor,
    Scored,
    StepScore,
    Trajectory,
    Wrote,
)

STEPS = ("a.\n\n", "b.\n\n", "c.\n\n")


def full(*values: float) -> Scored:
    return Scored(tuple(StepScore(value, 0.0, 1) for value in values), is_full=True)


def drafted(monitor: Monitor, *open_text: str) -> list[Command]:
    """The first step is being scored when the others come."""
    monitor.start()
    commands = monitor.handle(Wrote(0, STEPS[:1], ((-0.1,),)))
    others = (*STEPS[1:], *open_text)
    return commands + monitor.handle(Wrote(0, others, ((-0.1,),) * len(others)))


def emitted(commands: list[Command]) -> str:
    return "".join(c.text for c in commands if isinstance(c, Emit))


def finished(commands: list[Command]) -> Trajectory:
    assert isinstance(commands[-1], Finish)
    return commands[-1].trajectory


@pytest.mark.parametrize("stitch", ["flawed", "clean"])
@pytest.mark.parametrize("num_judged", [0, 1])
def test_only_judged_steps_are_kept_if_nothing_was_sent_before(
    stitch: str, num_judged: int
) -> None:
    params = Params(stitch="clean" if stitch == "clean" else "flawed")
    monitor = monitor_for(params, has_room=lambda: False)
    before = drafted(monitor, "d")
    assert emitted(before) == ""
    first = monitor.handle(Scored((StepScore(0.9, 0.0, 1),)))
    rest = monitor.handle(full(*[0.8] * (num_judged)))
    trajectory = finished(rest)
    assert trajectory.text == "".join(STEPS[: 1 + num_judged]) == emitted(first + rest)
    assert trajectory.finish_reason == "length"
    assert len(trajectory.steps) == 1 + num_judged
    assert Halt(0) in rest
    assert monitor.handle(Wrote(0, ("late",))) == []


def test_a_step_that_may_have_been_sent_stays_without_a_verdict() -> None:
    monitor = monitor_for(Params())
    commands = drafted(monitor)
    commands += monitor.handle(Scored((StepScore(0.9, 0.0, 1),)))
    commands += monitor.handle(full())
    trajectory = finished(commands)
    assert trajectory.text == STEPS[0] + STEPS[1] == emitted(commands)
    assert [step.value for step in trajectory.steps] == [0.9, None]
    assert trajectory.student_tokens == 2


def test_a_breach_in_the_last_scores_is_corrected_all_the_same() -> None:
    monitor = monitor_for(Params(), has_room=lambda: False)
    drafted(monitor)
    monitor.handle(Scored((StepScore(0.9, 0.0, 1),)))
    commands = monitor.handle(full(0.01))
    assert not any(isinstance(command, Finish) for command in commands)
    assert monitor.handle(Wrote(1, ("Right.",)))


def test_fewer_scores_than_steps_are_refused_unless_the_window_is_full() -> None:
    monitor = monitor_for(Params())
    drafted(monitor)
    monitor.handle(Scored((StepScore(0.9, 0.0, 1),)))
    with pytest.raises(ValueError, match="2 steps were to be scored, 1 scores came"):
        monitor.handle(Scored((StepScore(0.9, 0.0, 1),)))


def test_skd_ends_with_the_steps_that_it_kept() -> None:
    monitor = monitor_for(Params(method="skd"))
    drafted(monitor)
    monitor.handle(Scored((StepScore(0.999, 0.0, 1),)))
    commands = monitor.handle(full(0.999))
    trajectory = finished(commands)
    assert trajectory.text == STEPS[0] + STEPS[1]
    assert (trajectory.finish_reason, Halt(0) in commands) == ("length", True)
