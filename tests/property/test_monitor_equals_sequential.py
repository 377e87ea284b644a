import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.monitor import monitor_for
from proxy.core.params import Params
from proxy.core.types import (
    Command,
    Emit,
    Finish,
    Halt,
    Pause,
    Resume,
    Score,
    Scored,
    StepScore,
    Trajectory,
    Write,
    WriteEnded,
    Wrote,
)
from tests.property.pieces import ENDS, PIECES, delimiter_of
from tests.property.schedules import any_limit, any_schedule
from tests.property.sequential import Setting, run
from tests.support.cases import num_cases

LEVELS = st.sampled_from([0.0, 0.04, 0.3, 0.5, 0.7, 1.0])
BY_STEP: st.SearchStrategy[list[float]] = st.just([]) | st.lists(LEVELS, min_size=1, max_size=4)


@dataclass
class Teacher:
    """A fixed teacher: its numbers are a function of the text alone, drawn by a checksum."""

    seed: int
    levels: list[float]

    def _draw(self, text: str) -> int:
        return zlib.crc32(f"{self.seed}|{text}".encode())

    def value(self, context: str, step: str) -> float:
        return self.levels[self._draw(context + "|" + step) % len(self.levels)]

    def entropy(self, context: str) -> float:
        return (self._draw(context) % 7) / 2


@dataclass
class Case:
    setting: Setting
    tokens: list[str]
    student_end: str
    teacher: Teacher
    correction: list[str]
    correction_end: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    setting = Setting(
        delimiter=draw(ENDS),
        max_step_tokens=draw(st.sampled_from([1, 2, 5, 1000])),
        max_total_tokens=draw(st.sampled_from([1, 3, 8, 20, 1000])),
        base_threshold=draw(st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0])),
        entropy_scale=draw(st.sampled_from([0.0, 0.5, 1.0])),
        adaptive=draw(st.booleans()),
        backtrack=draw(st.booleans()),
        flawed=draw(st.booleans()),
        by_step=tuple(draw(BY_STEP)),
    )
    levels = draw(st.lists(LEVELS, min_size=1, max_size=6))
    end = st.sampled_from(["stop", "length"])
    pieces = st.lists(st.sampled_from(PIECES), max_size=40)
    return Case(
        setting,
        draw(pieces),
        draw(end),
        Teacher(draw(st.integers(0, 999)), levels),
        draw(st.lists(st.sampled_from(PIECES), max_size=6)),
        draw(end),
    )


def boundary_of(setting: Setting) -> Literal["adaptive", "static", "quantile"]:
    if setting.by_step:
        return "quantile"
    return "adaptive" if setting.adaptive else "static"


def params_of(setting: Setting, max_lookahead_tokens: int, **rounds: int) -> Params:
    return Params(
        max_lookahead_tokens=max_lookahead_tokens,
        base_threshold=setting.base_threshold,
        entropy_scale=setting.entropy_scale,
        delimiter=delimiter_of(setting.delimiter),
        max_step_tokens=setting.max_step_tokens,
        max_total_tokens=setting.max_total_tokens,
        revise=setting.revise,
        boundary=boundary_of(setting),
        boundary_values=setting.by_step,
        backtrack="td_error" if setting.backtrack else "none",
        stitch="flawed" if setting.flawed else "clean",
        **rounds,  # type: ignore[arg-type]
    )


class World:
    """Obeys the monitor's commands; `choose(n)` decides every question of timing."""

    def __init__(self, case: Case, choose: Callable[[int], int]) -> None:
        self.case = case
        self.choose = choose
        params = params_of(case.setting, any_limit(choose))
        self.monitor = monitor_for(params, schedule=any_schedule(choose))
        self.unsent = {0: list(case.tokens), 1: list(case.correction)}
        self.ends = {0: case.student_end, 1: case.correction_end}
        self.writing: set[int] = set()
        self.halted: set[int] = set()
        self.is_paused = False
        self.scoring: Score | None = None
        self.emitted = ""
        self.correction: Write | None = None
        self.num_scored = 0
        self.sent = 0
        self.result: Trajectory | None = None

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert self.result is None or isinstance(command, Halt)
            match command:
                case Write(write_id=write_id):
                    self.writing.add(write_id)
                    if write_id == 1:
                        self.correction = command
                case Halt(write_id=write_id):
                    assert write_id in self.writing
                    self.halted.add(write_id)
                case Pause(write_id=write_id):
                    assert write_id == 0
                    assert 0 in self.writing - self.halted
                    assert not self.is_paused
                    self.is_paused = True
                case Resume(write_id=write_id):
                    assert write_id == 0
                    assert self.is_paused
                    self.is_paused = False
                case Score():
                    assert self.scoring is None, "at most one scoring call in flight"
                    self.scoring = command
                case Emit(text=text):
                    assert text
                    self.emitted += text
                case Finish(trajectory=trajectory):
                    self.result = trajectory

    def answer(self, score: Score) -> Scored:
        teacher = self.case.teacher
        scores = []
        first = len(score.steps) - score.num_new
        self.num_scored += score.num_new
        for index in range(first, len(score.steps)):
            context = "".join(score.steps[:index])
            ask = not (index == first and score.entropy_known)
            value = teacher.value(context, score.steps[index])
            scores.append(StepScore(value, teacher.entropy(context) if ask else None, 1))
        after = teacher.entropy("".join(score.steps)) if self.choose(2) else None
        return Scored(tuple(scores), after)

    def run(self) -> Trajectory:
        self.obey(self.monitor.start())
        while self.result is None:
            self.move()
        return self.result

    def move(self) -> None:
        # A halted or paused write may still bring what was under way; only the live ones must.
        moves = sorted(self.writing)
        waits = self.is_paused and 0 not in self.halted and self.choose(4) > 0
        if waits and 0 in moves:
            moves.remove(0)
            assert moves or self.scoring is not None, "it waits for nothing"
        if self.scoring is not None:
            moves += [-1, -1]
        move = moves[self.choose(len(moves))]
        if move == -1:
            assert self.scoring is not None
            score, self.scoring = self.scoring, None
            self.obey(self.monitor.handle(self.answer(score)))
        elif self.unsent[move]:
            size = 1 + self.choose(5)
            pieces, self.unsent[move] = self.unsent[move][:size], self.unsent[move][size:]
            self.sent += len(pieces) if move == 0 else 0
            self.obey(self.monitor.handle(Wrote(move, tuple(pieces))))
        else:
            self.writing.discard(move)
            self.end(move)

    def end(self, write_id: int) -> None:
        reason = self.ends[write_id]
        assert reason in ("stop", "length")
        self.obey(self.monitor.handle(WriteEnded(write_id, reason)))  # type: ignore[arg-type]


@settings(max_examples=num_cases(10_000))
@given(case=cases(), timing=st.randoms(use_true_random=False))
def test_any_timing_and_chunking_gives_the_sequential_result(case: Case, timing: object) -> None:
    choices = timing.randrange  # type: ignore[attr-defined]
    run_and_compare(World(case, choices))


def run_and_compare(world: World) -> None:
    """Hold the monitor's result against the plain loop's."""
    case, ours = world.case, world.run()
    plain = run(
        case.setting,
        case.tokens,
        case.student_end,
        case.teacher.value,
        case.teacher.entropy,
        "".join(case.correction),
        case.correction_end,
    )

    assert ours.text == plain.text
    assert [(s.role, s.start, s.end) for s in ours.spans] == plain.spans
    assert [s.text for s in ours.steps] == plain.step_texts
    assert [s.student_tokens for s in ours.steps] == plain.step_tokens
    assert [s.value for s in ours.steps] == plain.values
    assert [s.boundary for s in ours.steps] == plain.boundaries
    assert (ours.breach, ours.bifurcation) == (plain.breach, plain.bifurcation)
    assert ours.finish_reason == plain.finish_reason
    # What was streamed is what came out, and it could never be taken back.
    assert world.emitted == ours.text
    if plain.breach is None:
        assert world.correction is None
    else:
        assert world.correction is not None
        assert "".join(world.correction.steps) == plain.correction_context
        assert world.correction.max_tokens == plain.correction_budget
        # The student is stopped unless its text had ended before the breach was known.
        ended = 0 not in world.writing or world.sent >= case.setting.max_total_tokens
        assert 0 in world.halted or ended
    for step in ours.steps:
        if step.start is not None:
            assert ours.text[step.start : step.end] == step.text
