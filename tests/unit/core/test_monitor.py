import math

import pytest

from proxy.core.monitor import monitor_for
from proxy.core.params import ParameterError, Params
from proxy.core.types import (
    Breached,
    Command,
    Emit,
    Finish,
    Halt,
    Monitor,
    Score,
    Scored,
    StepScore,
    Write,
    WriteEnded,
    Wrote,
)

ONE_TOKEN = 1


def scored(*values: float, entropy: float | None = 0.0, after: float | None = None) -> Scored:
    return Scored(tuple(StepScore(value, entropy, ONE_TOKEN) for value in values), after)


def begun() -> Monitor:
    """A monitor with default parameters after the student's first step."""
    monitor = monitor_for(Params())
    monitor.start()
    monitor.handle(Wrote(0, ("a.\n\n",)))
    return monitor


def without_notices(commands: list[Command]) -> list[Command]:
    return [c for c in commands if isinstance(c, Write | Halt | Score | Emit | Finish)]


def test_safe_text_is_streamed_as_soon_as_it_is_safe() -> None:
    monitor = monitor_for(Params())
    monitor.start()
    # The open step is part of the output whatever comes: a flawed step is kept.
    assert monitor.handle(Wrote(0, ("One", "."))) == [Emit("One.")]
    assert monitor.handle(Wrote(0, ("\n\nT",))) == [Emit("\n\n"), Score(("One.\n\n",), 1, False)]
    assert monitor.handle(Wrote(0, ("wo",))) == []
    assert without_notices(monitor.handle(scored(0.9))) == [Emit("Two")]
    assert monitor.handle(Wrote(0, ("!",))) == [Emit("!")]


def test_clean_stitching_streams_only_what_no_later_fall_can_take_back() -> None:
    monitor = monitor_for(Params(stitch="clean"))
    monitor.start()
    assert monitor.handle(Wrote(0, ("a.\n\n",))) == [Score(("a.\n\n",), 1, False)]
    assert monitor.handle(Wrote(0, ("b.\n\n", "c.\n\n", "d.\n\n"))) == []
    emits = [c for c in monitor.handle(scored(0.9)) if isinstance(c, Emit)]
    assert emits == [Emit("a.\n\n")]
    # The steepest fall so far is at b: if nothing steeper comes, the teacher takes over there.
    emits = [c for c in monitor.handle(scored(0.5, 0.4, 0.3)) if isinstance(c, Emit)]
    assert emits == []
    emits = [c for c in monitor.handle(WriteEnded(0, "stop")) if isinstance(c, Emit)]
    assert emits == [Emit("b.\n\nc.\n\nd.\n\n")]


def test_waiting_steps_share_one_call_and_only_one_is_in_flight() -> None:
    monitor = monitor_for(Params())
    monitor.start()
    assert Score(("a.\n\n",), 1, False) in monitor.handle(Wrote(0, ("a.\n\n",)))
    assert monitor.handle(Wrote(0, ("b.\n\n",))) == []
    assert monitor.handle(Wrote(0, ("c.\n\n",))) == []
    commands = monitor.handle(scored(0.9, after=1.0))
    assert Score(("a.\n\n", "b.\n\n", "c.\n\n"), 2, True) in commands


def test_the_entropy_of_the_next_state_is_used_where_the_call_gives_none() -> None:
    monitor = begun()
    monitor.handle(scored(0.9, after=2.0))
    monitor.handle(Wrote(0, ("b",)))
    monitor.handle(WriteEnded(0, "stop"))
    finish = monitor.handle(scored(0.9, entropy=None))[-1]
    assert isinstance(finish, Finish)
    assert [step.entropy for step in finish.trajectory.steps] == [0.0, 2.0]


def test_a_breach_halts_the_student_and_hands_over_at_the_bifurcation() -> None:
    monitor = monitor_for(Params(max_total_tokens=100))
    monitor.start()
    monitor.handle(Wrote(0, ("a.\n\n", "b.\n\n", "c.\n\n", "d.\n\n", "e")))
    commands = monitor.handle(scored(0.9, 0.5, 0.4, 0.05))
    assert Halt(0) in commands
    assert Breached(breach=3, bifurcation=1) in commands
    assert Write(1, "teacher", ("a.\n\n",), 99) in commands
    # What the student wrote after the breach is thrown away.
    assert commands[-1] == Emit("b.\n\nc.\n\nd.\n\nHowever,")
    assert monitor.handle(Wrote(0, ("late",))) == []
    assert monitor.handle(WriteEnded(0, "stop")) == []
    assert monitor.handle(Wrote(1, ("\n", "x"))) == [Emit("\n\nx")]
    finish = monitor.handle(WriteEnded(1, "length"))[-1]
    assert isinstance(finish, Finish)
    assert finish.trajectory.text == "a.\n\nb.\n\nc.\n\nd.\n\nHowever,\n\nx"
    assert finish.trajectory.finish_reason == "length"
    assert finish.trajectory.student_tokens == 4
    assert finish.trajectory.teacher_tokens == 2


def test_a_step_cut_at_its_cap_is_scored_before_the_trajectory_ends() -> None:
    monitor = monitor_for(Params(max_step_tokens=2))
    monitor.start()
    commands = monitor.handle(Wrote(0, ("a", "b", "c")))
    assert commands == [Halt(0), Emit("ab"), Score(("ab",), 1, False)]
    finish = monitor.handle(scored(0.9))[-1]
    assert isinstance(finish, Finish)
    assert finish.trajectory.finish_reason == "length"


def test_a_step_cut_at_its_cap_can_breach() -> None:
    monitor = monitor_for(Params(max_step_tokens=2))
    monitor.start()
    monitor.handle(Wrote(0, ("a", "b")))
    assert Write(1, "teacher", (), 32768) in monitor.handle(scored(0.01))


def test_an_empty_answer_is_a_trajectory() -> None:
    monitor = monitor_for(Params())
    monitor.start()
    (finish,) = monitor.handle(WriteEnded(0, "stop"))
    assert isinstance(finish, Finish)
    assert (finish.trajectory.text, finish.trajectory.spans) == ("", ())


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf])
def test_an_impossible_value_is_no_verdict(value: float) -> None:
    monitor = begun()
    with pytest.raises(ValueError, match="value must be"):
        monitor.handle(scored(value))


@pytest.mark.parametrize("entropy", [None, math.nan, -0.1, math.inf])
def test_a_step_without_an_entropy_is_no_verdict(entropy: float | None) -> None:
    monitor = begun()
    with pytest.raises(ValueError, match="entropy must be"):
        monitor.handle(scored(0.9, entropy=entropy))


def test_the_entropy_of_the_next_state_serves_one_step_only() -> None:
    monitor = begun()
    monitor.handle(scored(0.9, after=1.0))
    monitor.handle(Wrote(0, ("b.\n\n",)))
    with pytest.raises(ValueError, match="2 scores came"):
        monitor.handle(scored(0.9, 0.9))


def test_fewer_scores_than_steps_are_an_error() -> None:
    monitor = monitor_for(Params())
    monitor.start()
    monitor.handle(Wrote(0, ("a.\n\n", "b.\n\n")))
    with pytest.raises(ValueError, match="1 scores came"):
        monitor.handle(scored(0.9))


@pytest.mark.parametrize("author", ["student", "teacher"])
def test_an_author_alone_writes_everything(author: str) -> None:
    monitor = monitor_for(Params(method=author, max_total_tokens=3))  # type: ignore[arg-type]
    (write,) = monitor.start()
    assert write == Write(0, author, (), 3)  # type: ignore[arg-type]
    assert monitor.handle(Wrote(0, ("a.\n\n", "b"))) == [Emit("a.\n\nb")]
    commands = monitor.handle(Wrote(0, ("c", "d")))
    assert commands[0] == Emit("c")
    finish = commands[1]
    assert isinstance(finish, Finish)
    assert finish.trajectory.finish_reason == "length"
    assert [span.role for span in finish.trajectory.spans] == [author]
    assert [step.text for step in finish.trajectory.steps] == ["a.\n\n", "bc"]
    assert monitor.handle(Wrote(0, ("e",))) == [Halt(0)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_threshold", -0.1),
        ("base_threshold", 1.1),
        ("base_threshold", math.nan),
        ("entropy_scale", -1.0),
        ("entropy_top_k", 1),
        ("delimiter", ""),
        ("revise", ""),
        ("max_step_tokens", 0),
        ("max_total_tokens", 0),
        ("teacher_temperature", -0.1),
        ("gamma", 0.0),
        ("gamma", math.inf),
        ("beta", -0.1),
        ("beta", 1.1),
        ("beta", math.nan),
    ],
)
def test_a_parameter_out_of_bounds_is_named(field: str, value: object) -> None:
    with pytest.raises(ParameterError, match=field) as caught:
        Params(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field
