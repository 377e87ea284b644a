"""Tests the commands of a trajectory in which the student takes the pen back."""

from typing import Any

import pytest

from proxy.core.monitor import monitor_for
from proxy.core.params import Delimiters, Params
from proxy.core.stitch import quality_of
from proxy.core.types import (
    Breached,
    Command,
    Emit,
    Finish,
    Halt,
    Judged,
    Score,
    Scored,
    ScoringMonitor,
    StepScore,
    Trajectory,
    Write,
    WriteEnded,
    Wrote,
)

A, B, C, D, E = "a.\n\n", "b.\n\n", "c.\n\n", "d.\n\n", "e.\n\n"


def scored(*values: float) -> Scored:
    return Scored(tuple(StepScore(value, 0.0, 1) for value in values))


def strayed(**params: Any) -> tuple[ScoringMonitor, Params]:
    """A monitor after the first breach, at the second step."""
    settled = Params(**{"rounds": 2, "max_total_tokens": 100} | params)
    monitor = monitor_for(settled)
    assert isinstance(monitor, ScoringMonitor)
    assert monitor.start() == [Write(0, "student", (), settled.max_total_tokens)]
    assert Score((A, B), 2, False) in monitor.handle(Wrote(0, (A, B)))
    monitor.handle(scored(0.9, 0.05))
    return monitor, settled


def finished(commands: list[Command]) -> Trajectory:
    assert isinstance(commands[-1], Finish)
    return commands[-1].trajectory


def test_the_teacher_is_halted_after_its_steps_and_the_student_continues_the_clean_path() -> None:
    monitor, _ = strayed()
    # The token that the cut goes through is the teacher's, and the rest of it is thrown away.
    assert monitor.handle(Wrote(1, ("c", ".\n\nMo", "re"))) == [
        Emit("\n\nc.\n\n"),
        Halt(1),
        Write(2, "student", (A, C), 100 - 1 - 2),
    ]
    for late in (Wrote(1, ("late",)), WriteEnded(1, "stop"), Wrote(0, ("x",))):
        assert monitor.handle(late) == []


def test_a_later_round_is_scored_after_the_clean_path_and_counted_over_the_whole() -> None:
    monitor, params = strayed()
    monitor.handle(Wrote(1, (C,)))
    # The first step of a round has no step before it, and the student may write ahead.
    assert Score((A, C, D), 1, False) in monitor.handle(Wrote(2, (D, "e")))
    assert monitor.following(2, 9).text == D + "e"
    safe, *_ = monitor.handle(scored(0.5))
    assert isinstance(safe, Judged)
    assert (safe.index, safe.step.td_error) == (2, None)
    assert Score((A, C, D, E), 1, False) in monitor.handle(Wrote(2, (".\n\n",)))
    commands = monitor.handle(scored(0.1))
    assert Breached(3, 3) in commands
    assert Write(3, "teacher", (A, C, D), 100 - 3) in commands
    # In the last round the teacher writes to its end.
    monitor.handle(Wrote(3, ("f.\n\n", "g.\n\n")))
    found = finished(monitor.handle(WriteEnded(3, "stop")))
    assert found.breaches == (Breached(1, 1), Breached(3, 3))
    assert (found.breach, found.bifurcation) == (1, 1)
    assert found.text == f"{A}{B}However,\n\n{C}{D}{E}However,\n\nf.\n\ng.\n\n"
    assert [span.role for span in found.spans] == ["student", "flawed", "revise", "teacher"] * 2
    assert [found.text[step.start : step.end] for step in found.steps] == [A, B, D, E]
    assert (found.student_tokens, found.teacher_tokens) == (5, 3)
    assert quality_of(found, params, in_thought=False) == ()


@pytest.mark.parametrize("end", ["stop", "content_filter", "length"])
def test_a_teacher_that_ends_within_its_steps_ends_the_trajectory(end: Any) -> None:
    monitor, _ = strayed(correction_steps=2)
    assert monitor.handle(Wrote(1, (C, "d"))) == [Emit("\n\nc.\n\nd")]
    found = finished(monitor.handle(WriteEnded(1, end)))
    assert (found.finish_reason, found.breaches) == (end, ())
    assert found.text == f"{A}{B}However,\n\n{C}d"


def test_an_end_right_after_the_last_step_is_not_waited_for() -> None:
    monitor, _ = strayed()
    assert Write(2, "student", (A, C), 98) in monitor.handle(Wrote(1, (C,)))
    assert monitor.handle(WriteEnded(1, "stop")) == []
    found = finished(monitor.handle(WriteEnded(2, "stop")))
    assert (found.text, found.finish_reason) == (f"{A}{B}However,\n\n{C}", "stop")


@pytest.mark.parametrize(
    ("caps", "text", "is_halted"),
    [
        ({"max_total_tokens": 3}, C, True),  # whole, but nothing is left
        ({"max_total_tokens": 3}, "cc", False),  # its server stops by itself
        ({"max_step_tokens": 2}, "cc", True),
    ],
)
def test_a_cap_within_the_correction_ends_the_trajectory(
    caps: dict[str, int], text: str, is_halted: bool
) -> None:
    monitor, _ = strayed(**caps)
    commands = monitor.handle(Wrote(1, (text[:1], text[1:])))
    assert (Halt(1) in commands) == is_halted
    found = finished(commands)
    assert (found.text, found.finish_reason) == (f"{A}{B}However,\n\n{text}", "length")
    # A server that does not keep to its limit is halted, once.
    late = monitor.handle(Wrote(1, ("late",)))
    assert late == ([] if is_halted else [Halt(1)])
    assert monitor.handle(Wrote(1, ("later",))) == []
    assert monitor.handle(WriteEnded(1, "length")) == []


def test_a_correction_is_held_against_the_flawed_steps_of_its_own_round() -> None:
    monitor, params = strayed()
    monitor.handle(Wrote(1, (D,)))
    monitor.handle(Wrote(2, (C,)))
    monitor.handle(scored(0.0))
    # The step of the first round is no flaw of the second.
    monitor.handle(Wrote(3, (B,)))
    found = finished(monitor.handle(WriteEnded(3, "stop")))
    assert quality_of(found, params, in_thought=False) == ()
    monitor, params = strayed(stitch="clean", backtrack="none")
    monitor.handle(Wrote(1, (D,)))
    monitor.handle(Wrote(2, (C,)))
    monitor.handle(scored(0.0))
    found = finished(monitor.handle(WriteEnded(3, "stop")))
    assert quality_of(found, params, in_thought=False) == ("empty_correction",)
    assert [span.role for span in found.spans] == ["student", "teacher"]
    monitor, params = strayed(stitch="clean")
    monitor.handle(Wrote(1, (D,)))
    monitor.handle(Wrote(2, (C,)))
    monitor.handle(scored(0.0))
    monitor.handle(Wrote(3, (C,)))
    found = finished(monitor.handle(WriteEnded(3, "stop")))
    assert quality_of(found, params, in_thought=False) == ("repeated_step",)
    # Each correction has a span of its own, also where nothing is between them.
    assert [span.role for span in found.spans] == ["student", "teacher", "teacher"]


def test_code_in_a_correction_is_not_cut() -> None:
    delimiter = Delimiters(any=("\n",), keep_code=True)
    monitor = monitor_for(Params(rounds=2, delimiter=delimiter))
    monitor.start()
    monitor.handle(Wrote(0, ("a\n",)))
    monitor.handle(scored(0.0))
    assert not any(isinstance(c, Write) for c in monitor.handle(Wrote(1, ("```\n", "x\n"))))
    commands = monitor.handle(Wrote(1, ("```\n",)))
    assert Write(2, "student", ("```\nx\n```\n",), 32768 - 3) in commands
    assert Score(("```\nx\n```\n", "b\n"), 1, False) in monitor.handle(Wrote(2, ("b\n",)))


@pytest.mark.parametrize("safe", ["", "a."])
def test_a_fence_in_the_line_of_the_clean_path_opens_no_code(safe: str) -> None:
    delimiter = Delimiters(any=(".",), keep_code=True)
    monitor = monitor_for(Params(rounds=2, delimiter=delimiter))
    monitor.start()
    monitor.handle(Wrote(0, (safe, "b.") if safe else ("b.",)))
    monitor.handle(scored(0.9, 0.0) if safe else scored(0.0))
    assert any(isinstance(c, Halt) for c in monitor.handle(Wrote(1, ("```c." if safe else "c.",))))
    (text,) = [c.steps[-1] for c in monitor.handle(Wrote(2, ("```", "d."))) if isinstance(c, Score)]
    assert text == "```d."
