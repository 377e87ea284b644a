import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.monitor import monitor_for
from proxy.core.params import Params
from proxy.core.types import (
    Command,
    Emit,
    Finish,
    Halt,
    Judged,
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
from tests.property.relayed import Caps, Result, Text, imitkd, prefix, skd
from tests.property.schedules import any_limit, any_schedule
from tests.support.cases import num_cases

Method = Literal["imitkd", "skd", "prefix"]
FEW = settings(max_examples=num_cases(3_000))


@dataclass
class Models:
    """Both models: what they write and think is a function of the text alone, by a checksum."""

    seed: int
    longest: int
    levels: list[float]

    def writes(self, author: str, context: str) -> Text:
        dice = Random(zlib.crc32(f"{self.seed}|{author}|{context}".encode()))
        tokens = [dice.choice(PIECES) for _ in range(dice.randrange(self.longest + 1))]
        logprobs = [dice.choice([0.0, -0.1, -0.7, -2.5]) for _ in tokens]
        return Text(tokens, logprobs, dice.choice(["stop", "length"]))

    def value(self, context: str, step: str) -> float:
        draw = zlib.crc32(f"{self.seed}|{context}|{step}".encode())
        return self.levels[draw % len(self.levels)]


@st.composite
def some_models(draw: st.DrawFn) -> Models:
    levels = st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
    return Models(
        draw(st.integers(0, 9999)),
        draw(st.sampled_from([0, 2, 10, 40])),
        draw(st.lists(levels, min_size=1, max_size=6)),
    )


some_caps = st.builds(
    Caps,
    delimiter=ENDS,
    max_step_tokens=st.sampled_from([1, 2, 5, 1000]),
    max_total_tokens=st.sampled_from([1, 3, 8, 20, 100]),
)


class World:
    """Obeys the monitor's commands; `choose(n)` decides every question of timing."""

    def __init__(self, monitor: Any, models: Models, choose: Callable[[int], int]) -> None:
        self.monitor = monitor
        self.models = models
        self.choose = choose
        self.unsent: dict[int, Text] = {}
        self.writes: dict[int, Write] = {}
        self.num_sent: dict[int, int] = {}
        self.ended: set[int] = set()
        self.halted: set[int] = set()
        self.paused: set[int] = set()
        self.scoring: Score | None = None
        self.num_judged = 0
        self.emitted = ""
        self.result: Trajectory | None = None

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert self.result is None or isinstance(command, Halt)
            match command:
                case Write(write_id=write_id, author=author, steps=steps):
                    assert write_id not in self.writes
                    assert command.max_tokens > 0
                    self.unsent[write_id] = self.models.writes(author, "".join(steps))
                    self.writes[write_id] = command
                    self.num_sent[write_id] = 0
                    live = self.writes.keys() - self.ended - self.halted - {write_id}
                    assert all(self.is_spent(other) for other in live), "one pen at a time"
                case Halt(write_id=write_id):
                    assert write_id not in self.halted | self.ended
                    self.halted.add(write_id)
                    self.paused.discard(write_id)
                case Pause(write_id=write_id):
                    assert write_id in self.writes.keys() - self.halted - self.ended - self.paused
                    self.paused.add(write_id)
                case Resume(write_id=write_id):
                    self.paused.remove(write_id)
                case Score():
                    assert self.scoring is None, "at most one scoring call in flight"
                    self.scoring = command
                case Judged():
                    self.num_judged += 1
                case Emit(text=text):
                    assert text
                    self.emitted += text
                case Finish(trajectory=trajectory):
                    self.result = trajectory

    def is_spent(self, write_id: int) -> bool:
        return self.num_sent[write_id] >= self.writes[write_id].max_tokens

    def run(self) -> Trajectory:
        self.obey(self.monitor.start())
        while self.result is None:
            self.move()
        return self.result

    def move(self) -> None:
        # A paused write may still bring what was under way.
        waits = self.paused if self.choose(4) > 0 else set()
        moves = sorted(self.writes.keys() - self.ended - waits)
        if self.scoring is not None:
            moves += [-1, -1]
        move = moves[self.choose(len(moves))]
        if move == -1:
            score, self.scoring = self.scoring, None
            assert score is not None
            self.obey(self.monitor.handle(self.answer(score)))
            return
        text, at = self.unsent[move], self.num_sent[move]
        if at < len(text.tokens):
            # Servers keep to their limit, but for a token or so now and then.
            end = at + 1 + self.choose(5)
            told = tuple((x,) for x in text.logprobs[at:end])
            asked = self.writes[move].logprobs
            pieces = tuple(text.tokens[at:end])
            self.num_sent[move] += len(pieces)
            self.obey(self.monitor.handle(Wrote(move, pieces, told if asked else None)))
        else:
            self.ended.add(move)
            self.obey(self.monitor.handle(WriteEnded(move, text.end)))  # type: ignore[arg-type]

    def answer(self, score: Score) -> Scored:
        first = len(score.steps) - score.num_new
        return Scored(
            tuple(
                StepScore(self.models.value("".join(score.steps[:i]), score.steps[i]), None, 1)
                for i in range(first, len(score.steps))
            )
        )


def check(world: World, plain: Result) -> None:
    ours = world.run()
    assert ours.text == plain.text
    assert [(s.role, s.start, s.end) for s in ours.spans] == plain.spans
    assert [
        (
            s.author,
            s.text,
            s.student_tokens if s.author == "student" else s.teacher_tokens,
            s.start is not None,
            s.value,
            s.boundary,
        )
        for s in ours.steps
    ] == [(r.author, r.text, r.num_tokens, r.kept, r.value, r.boundary) for r in plain.rows]
    assert ours.finish_reason == plain.end
    assert (ours.breach, ours.bifurcation) == (None, None)
    assert [
        (w.author, "".join(w.steps), w.max_tokens) for _, w in sorted(world.writes.items())
    ] == plain.writes
    # What was streamed is what came out, and it could never be taken back.
    assert world.emitted == ours.text
    assert world.num_judged == sum(row.value is not None for row in plain.rows)
    for step in ours.steps:
        if step.start is not None:
            assert ours.text[step.start : step.end] == step.text
    by = {a: sum(r.num_tokens for r in plain.rows if r.kept and r.author == a) for a in AUTHORS}
    assert (ours.student_tokens, ours.teacher_tokens) == (by["student"], by["teacher"])


AUTHORS = ("student", "teacher")


def world_of(
    method: Method, models: Models, caps: Caps, timing: Any, seed: int = 0, **params: float
) -> World:
    settled = Params(
        method=method,
        delimiter=delimiter_of(caps.delimiter),
        max_step_tokens=caps.max_step_tokens,
        max_total_tokens=caps.max_total_tokens,
        max_lookahead_tokens=any_limit(timing.randrange),
        **params,  # type: ignore[arg-type]
    )
    monitor = monitor_for(settled, seed, any_schedule(timing.randrange))
    return World(monitor, models, timing.randrange)


timings = st.randoms(use_true_random=False)
seeds = st.integers(0, 2**64 - 1)


@FEW
@given(some_models(), some_caps, st.sampled_from([0.0, 0.3, 0.5, 1.0]), seeds, timings)
def test_any_timing_gives_the_imitkd_of_the_plain_loop(
    models: Models, caps: Caps, beta: float, seed: int, timing: object
) -> None:
    world = world_of("imitkd", models, caps, timing, seed, beta=beta)
    check(world, imitkd(models.writes, caps, beta, seed))


@FEW
@given(some_models(), some_caps, st.sampled_from([0.5, 0.9, 1.0, 1.1, 2.0]), timings)
def test_any_timing_gives_the_skd_of_the_plain_loop(
    models: Models, caps: Caps, gamma: float, timing: object
) -> None:
    world = world_of("skd", models, caps, timing, gamma=gamma)
    check(world, skd(models.writes, caps, gamma, models.value))


@FEW
@given(some_models(), some_caps, seeds, timings)
def test_any_timing_gives_the_prefix_of_the_plain_loop(
    models: Models, caps: Caps, seed: int, timing: object
) -> None:
    world = world_of("prefix", models, caps, timing, seed)
    check(world, prefix(models.writes, caps, seed))
