"""Rounds of MOTAB are the plain loop's at any timing and however the texts arrive."""

import zlib
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.monitor import monitor_for
from proxy.core.types import Breached, Command, Judged, Score, Scored, StepScore, StepTrace
from tests.property.pieces import ENDS
from tests.property.relayed import Rounds, in_rounds
from tests.property.schedules import any_limit, any_schedule
from tests.property.sequential import Setting
from tests.property.test_monitor_equals_sequential import BY_STEP, params_of
from tests.property.test_relay_equals_plain_loop import Models, World, timings
from tests.support.cases import num_cases


@dataclass
class Case:
    setting: Setting
    models: Models
    num_rounds: int
    correction_steps: int

    def entropy(self, context: str) -> float:
        return (zlib.crc32(f"{self.models.seed}|{context}".encode()) % 7) / 2


# Most trajectories shall have room for several breaches.
some_settings = st.builds(
    Setting,
    delimiter=ENDS,
    max_step_tokens=st.sampled_from([1, 3, 20, 1000, 1000, 1000]),
    max_total_tokens=st.sampled_from([1, 8, 30, 1000, 1000, 1000]),
    base_threshold=st.sampled_from([0.1, 0.5, 0.7, 0.8, 1.0]),
    entropy_scale=st.sampled_from([0.0, 0.1, 1.0]),
    adaptive=st.booleans(),
    backtrack=st.booleans(),
    flawed=st.booleans(),
    by_step=BY_STEP.map(tuple),
)
some_models = st.builds(
    Models,
    seed=st.integers(0, 9999),
    longest=st.sampled_from([3, 20, 60, 60]),
    levels=st.lists(st.sampled_from([0.0, 0.2, 0.6, 0.75, 0.9, 1.0]), min_size=2, max_size=6),
)
some_cases = st.builds(
    Case, some_settings, some_models, st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 1, 2, 3])
)


class EntropyWorld(World):
    """Gives entropies, and keeps what was noticed."""

    def __init__(self, case: Case, timing: Any, corrections: int = 1) -> None:
        self.case = case
        choose = timing.randrange
        params = params_of(
            case.setting,
            any_limit(choose),
            rounds=case.num_rounds,
            correction_steps=case.correction_steps,
            corrections=corrections,
        )
        monitor = monitor_for(params, schedule=any_schedule(choose))
        super().__init__(monitor, case.models, choose)
        self.judged: list[tuple[int, StepTrace]] = []
        self.breached: list[tuple[int, int]] = []

    def obey(self, commands: list[Command]) -> None:
        super().obey(commands)
        for command in commands:
            match command:
                case Judged(index, step):
                    self.judged.append((index, step))
                case Breached(breach, bifurcation):
                    self.breached.append((breach, bifurcation))

    def answer(self, score: Score) -> Scored:
        scores = []
        first = len(score.steps) - score.num_new
        for index in range(first, len(score.steps)):
            context = "".join(score.steps[:index])
            ask = not (index == first and score.entropy_known)
            value = self.models.value(context, score.steps[index])
            scores.append(StepScore(value, self.case.entropy(context) if ask else None, 1))
        after = self.case.entropy("".join(score.steps)) if self.choose(2) else None
        return Scored(tuple(scores), after)


@settings(max_examples=num_cases(3_000))
@given(some_cases, timings)
def test_any_timing_and_chunking_gives_the_rounds_of_the_plain_loop(
    case: Case, timing: object
) -> None:
    check(
        EntropyWorld(case, timing),
        in_rounds(
            case.setting,
            case.models.writes,
            case.models.value,
            case.entropy,
            case.num_rounds,
            case.correction_steps,
        ),
    )


def check(world: EntropyWorld, plain: Rounds) -> None:
    ours = world.run()
    assert ours.text == plain.text
    assert [(s.role, s.start, s.end) for s in ours.spans] == plain.spans
    assert [(s.text, s.student_tokens, s.value, s.boundary) for s in ours.steps] == [
        row
        for one in plain.results
        for row in zip(one.step_texts, one.step_tokens, one.values, one.boundaries, strict=True)
    ]
    assert [step.td_error is None for step in ours.steps] == [
        not index for one in plain.results for index in range(len(one.step_texts))
    ]
    assert ours.finish_reason == plain.end
    first = plain.breaches[0] if plain.breaches else (None, None)
    assert (ours.breach, ours.bifurcation) == first
    several = plain.breaches if len(plain.breaches) > 1 else []
    assert [(b.breach, b.bifurcation) for b in ours.breaches] == several
    assert world.breached == plain.breaches
    assert [index for index, _ in world.judged] == list(range(len(ours.steps)))
    assert [(w.author, "".join(w.steps), w.max_tokens) for w in world.writes.values()] == (
        plain.asked
    )
    assert list(world.writes) == list(range(len(plain.asked)))
    # What was streamed is what came out, and it could never be taken back.
    assert world.emitted == ours.text
    for step in ours.steps:
        assert step.start is None or ours.text[step.start : step.end] == step.text
    kept = sum(step.student_tokens for step in ours.steps if step.start is not None)
    assert ours.student_tokens == kept
    # Tokens without text at a correction's end are no part of the loop's text.
    assert ours.teacher_tokens >= plain.teacher_tokens
    if not plain.breaches or plain.results[-1].breach is None:
        assert ours.teacher_tokens == plain.teacher_tokens
