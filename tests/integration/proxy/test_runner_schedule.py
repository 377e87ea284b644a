"""Tests how far the student is ahead, and when its steps are scored."""

import asyncio
from asyncio import Event
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from proxy.backends.base import Call, Context, Draft, Sampling
from proxy.engine.schedule import Line
from tests.support.patience import PATIENCE_S
from tests.support.proxy.runs import A, B, C, run_of
from tests.support.scripted import ScriptedBackend, pair, says, values


@dataclass
class GatedBackend(ScriptedBackend):
    """Writes no more while the gate is shut."""

    waits: asyncio.Event = field(default_factory=asyncio.Event)

    async def write_gated(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call, gate: asyncio.Event
    ) -> AsyncGenerator[Draft]:
        async for draft in self.write(context, sampling, max_tokens, call):
            yield draft
            if not gate.is_set():
                self.waits.set()
                await gate.wait()


async def test_a_slow_teacher_makes_the_student_wait_and_changes_nothing() -> None:
    answered = asyncio.Event()
    student = GatedBackend(says(*[f"{n}.\n\n" for n in range(30)]))
    teacher = ScriptedBackend(faults={("score", 0): answered})
    models = pair(student, teacher)
    waits: list[str] = []
    models.of("student").on_wait = lambda: waits.append("student")
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(run_of(models, max_lookahead_tokens=4).run())
        await student.waits.wait()
        assert student.writes[0].pieces == [f"{n}.\n\n" for n in range(4)]
        answered.set()
    trajectory = running.result().trajectory
    assert trajectory.text == "".join(f"{n}.\n\n" for n in range(30))
    assert len(trajectory.steps) == 30
    assert waits
    assert set(waits) == {"student"}
    assert models.of("student").writing_speed._num_open == 0


async def test_a_student_that_waits_still_shows_where_the_tokens_of_its_step_end() -> None:
    student = GatedBackend(says(*[f"{n} " for n in range(30)]))
    teacher = ScriptedBackend()
    async with asyncio.timeout(PATIENCE_S):
        running = run_of(pair(student, teacher), delimiter=" ", max_lookahead_tokens=1)
        outcome = await running.run()
    assert len(outcome.trajectory.steps) == 30
    assert student.waits.is_set()


async def test_a_step_is_scored_once_the_text_after_it_shows_where_its_tokens_end() -> None:
    more = asyncio.Event()
    student = ScriptedBackend(says("x = ", "12", more, " so"))
    teacher = ScriptedBackend()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(run_of(pair(student, teacher), delimiter="= ").run())
        await student.until_called("write")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not teacher.scorings
        more.set()
    assert [step.text for step in running.result().trajectory.steps] == ["x = ", "12 so"]


async def test_a_student_that_is_faster_than_its_teacher_waits_without_a_limit() -> None:
    answered = asyncio.Event()
    student = GatedBackend(says(*[f"{n}.\n\n" for n in range(30)]))
    teacher = ScriptedBackend(faults={("score", 0): answered})
    models = pair(student, teacher)
    with models.of("student").writing_speed.writing():
        models.of("student").writing_speed.count(1000)
    measured = models.answering[teacher.scoring] = Line()
    for num_tokens in (10, 20, 40):  # a second a token
        measured.add(num_tokens, num_tokens)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(run_of(models).run())
        await student.waits.wait()
        assert student.writes[0].pieces == ["0.\n\n", "1.\n\n"]
        answered.set()
    assert len(running.result().trajectory.steps) == 30
    assert measured.mean_seconds < 20, "its calls are measured, too"


async def test_a_breach_ends_a_student_that_waits() -> None:
    answered = asyncio.Event()
    student = GatedBackend(says(*[f"{n}.\n\n" for n in range(30)]))
    teacher = ScriptedBackend(says("Right."), values({"0.\n\n": 0.0}))
    teacher.faults = {("score", 0): answered}
    models = pair(student, teacher)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(run_of(models, max_lookahead_tokens=4).run())
        await student.waits.wait()
        answered.set()
    assert running.result().trajectory.breach == 0
    assert student.writes[0].closed.is_set()
    assert len(student.writes[0].pieces) == 4
    assert models.of("student").writing_speed._num_open == 0


@pytest.mark.parametrize(
    ("recomputes", "gpus", "calls"), [(True, 1e9, 2), (True, 1e-9, 4), (False, 1e9, 4)]
)
async def test_where_calls_compute_the_whole_context_their_number_is_a_matter_of_price(
    recomputes: bool, gpus: float, calls: int
) -> None:
    steps = [Event(), Event(), Event()]
    student = ScriptedBackend(says(A, steps[0], B, steps[1], C, steps[2], "end"))
    teacher = ScriptedBackend(recomputes=recomputes)
    models = pair(student, teacher)
    models.of("teacher").gpus = gpus
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(run_of(models).run())
        for number, step in enumerate(steps, start=1):
            if number == 1 or calls == 4:
                await teacher.until_called("score", number)
            for _ in range(20):  # what the answer sets off
                await asyncio.sleep(0)
            step.set()
    assert running.result().trajectory.text == A + B + C + "end"
    assert len(teacher.scorings) == calls
    assert running.result().usage.score_calls == calls


async def test_breaches_are_remembered_for_the_next_trajectory_of_the_pair() -> None:
    student = ScriptedBackend(says(A))
    teacher = ScriptedBackend(says("x"), values({A: 0.0}), recomputes=True)
    models = pair(student, teacher)
    async with asyncio.timeout(PATIENCE_S):
        await run_of(models).run()
    before = models.hazards["motab"].a_token
    async with asyncio.timeout(PATIENCE_S):
        await run_of(models).run()
    assert models.hazards["motab"].a_token > before > 1 / 1000
