"""Tests trajectories over scripted models."""

import asyncio
import math
from dataclasses import replace

import pytest

from proxy.backends.base import Question, Sampling
from proxy.core.types import Breached, Judged
from proxy.engine.pair import Pair
from proxy.engine.upstream import Places, Upstream
from proxy.errors import MotabError
from tests.support.patience import PATIENCE_S
from tests.support.proxy.runs import PROMPT, STUDENT, A, B, C, outcome_of, run_of, spans_of
from tests.support.scripted import Script, ScriptedBackend, pair, says, upstream, values


async def test_without_a_breach_the_students_text_comes_out_byte_for_byte() -> None:
    student, teacher = ScriptedBackend(says(*STUDENT, "end")), ScriptedBackend()
    outcome, observed = await outcome_of(student, teacher)
    assert outcome.trajectory.text == A + B + C + "end"
    assert spans_of(outcome) == [("student", A + B + C + "end")]
    assert outcome.trajectory.breach is None
    assert outcome.trajectory.finish_reason == "stop"
    assert outcome.scoring == "prompt_logprobs"
    assert [n.index for n in observed.notices if isinstance(n, Judged)] == [0, 1, 2, 3]
    assert not teacher.writes
    assert student.writes[0].ended
    assert student.writes[0].context == PROMPT


async def test_a_breach_goes_back_to_the_steepest_fall_and_the_teacher_continues() -> None:
    student = ScriptedBackend(says(*STUDENT))
    teacher = ScriptedBackend(says("Right", "."), values({A: 0.9, B: 0.3, C: 0.05}))
    outcome, observed = await outcome_of(student, teacher, base_threshold=0.1)
    trajectory = outcome.trajectory
    assert (trajectory.breach, trajectory.bifurcation) == (2, 1)
    assert spans_of(outcome) == [
        ("student", A),
        ("flawed", B + C),
        ("revise", "However,\n\n"),
        ("teacher", "Right."),
    ]
    assert [step.value for step in trajectory.steps] == [0.9, 0.3, 0.05]
    assert [step.safe for step in trajectory.steps] == [True, True, False]
    assert observed.notices[-1] == Breached(2, 1)


async def test_the_correction_starts_from_the_context_before_the_bifurcation() -> None:
    student = ScriptedBackend(says(*STUDENT))
    teacher = ScriptedBackend(says("x"), values({A: 0.9, B: 0.3, C: 0.05}))
    await outcome_of(
        student, teacher, base_threshold=0.1, max_total_tokens=100, teacher_temperature=0.25
    )
    (writing,) = teacher.writes
    assert writing.context == PROMPT + A
    assert writing.steps == [A]
    assert writing.max_tokens == 100 - 4  # the tokens of the safe prefix
    assert writing.sampling == Sampling(0.25, seed=5)


async def test_the_student_writes_with_the_requests_sampling_and_the_whole_budget() -> None:
    student = ScriptedBackend(says("x"))
    await outcome_of(student, ScriptedBackend(), max_total_tokens=77)
    (writing,) = student.writes
    assert writing.sampling == Sampling(0.7, 0.9, seed=5)
    assert writing.max_tokens == 77
    assert writing.session_id == "r-0"


async def test_without_backtracking_the_teacher_takes_over_at_the_breach() -> None:
    student = ScriptedBackend(says(*STUDENT))
    teacher = ScriptedBackend(says("x"), values({A: 0.9, B: 0.3, C: 0.05}))
    outcome, _ = await outcome_of(student, teacher, base_threshold=0.1, backtrack="none")
    assert outcome.trajectory.bifurcation == 2
    assert teacher.writes[0].context == PROMPT + A + B


async def test_a_clean_stitch_leaves_the_flawed_steps_out() -> None:
    student = ScriptedBackend(says(*STUDENT))
    teacher = ScriptedBackend(says("x"), values({A: 0.9, B: 0.3, C: 0.05}))
    outcome, _ = await outcome_of(student, teacher, base_threshold=0.1, stitch="clean")
    assert spans_of(outcome) == [("student", A), ("teacher", "x")]
    usage = outcome.usage
    assert (usage.student_tokens, usage.student_tokens_discarded) == (8, 4)
    assert usage.completion_tokens == 4 + 1  # no revise token


async def test_the_student_is_cancelled_at_the_breach_before_its_end() -> None:
    never = asyncio.Event()
    student = ScriptedBackend(says("A a.\n\n", "more", never, "too late"))
    correcting = asyncio.Event()
    teacher = ScriptedBackend(says(correcting, "x"), values({}, otherwise=0.01))
    task = asyncio.create_task(run_of(pair(student, teacher)).run())
    await teacher.until_called("write")
    # The correction has not brought anything yet, and the student's stream is already gone.
    async with asyncio.timeout(PATIENCE_S):
        await student.writes[0].closed.wait()
    assert student.writes[0].cancelled
    assert student.writes[0].pieces == ["A a.\n\n", "more"]
    correcting.set()
    outcome = await task
    assert "more" not in outcome.trajectory.text
    assert outcome.usage.student_tokens_discarded == 1


async def test_a_step_cap_cancels_the_students_stream() -> None:
    student = ScriptedBackend(says("a", "b", "c", asyncio.Event()))
    outcome, _ = await outcome_of(student, ScriptedBackend(), max_step_tokens=2)
    assert outcome.trajectory.text == "ab"
    assert outcome.trajectory.finish_reason == "length"
    assert outcome.trajectory.steps[0].value == 0.9
    assert student.writes[0].cancelled


async def test_the_total_cap_ends_the_trajectory_with_length() -> None:
    student = ScriptedBackend(says("a", "b", "c"))
    outcome, _ = await outcome_of(student, ScriptedBackend(), max_total_tokens=2)
    assert outcome.trajectory.text == "ab"
    assert outcome.trajectory.finish_reason == "length"
    assert student.writes[0].ended


async def test_waiting_steps_share_the_next_scoring_call_and_only_one_is_in_flight() -> None:
    go_on, first = asyncio.Event(), asyncio.Event()
    student = ScriptedBackend(says(A, go_on, B, C, "D d.\n\n", "end"))
    teacher = ScriptedBackend(faults={("score", 0): first})
    task = asyncio.create_task(run_of(pair(student, teacher)).run())
    await teacher.until_called("score")
    go_on.set()
    await asyncio.wait_for(student.writes[0].closed.wait(), PATIENCE_S)
    assert len(teacher.scorings) == 1
    first.set()
    await task
    assert [call.num_new for call in teacher.scorings] == [1, 4]
    assert teacher.scorings[1].steps == [A, B, C, "D d.\n\n", "end"]
    assert teacher.scorings[1].context == PROMPT + A + B + C + "D d.\n\n" + "end"
    assert teacher.max_scoring == 1


async def test_steps_after_the_breach_in_one_call_are_scored_but_not_kept() -> None:
    student = ScriptedBackend(says((A, B, C)))
    teacher = ScriptedBackend(says("x"), values({A: 0.01}))
    outcome, _ = await outcome_of(student, teacher)
    assert teacher.scorings[0].num_new == 3
    assert [step.text for step in outcome.trajectory.steps] == [A]
    assert outcome.usage.teacher_scored_tokens == len(A + B + C)
    assert outcome.usage.student_tokens_discarded == 2


async def test_the_entropy_of_the_next_state_is_asked_for_once() -> None:
    first = asyncio.Event()
    student = ScriptedBackend(says(A, first, B))
    teacher = ScriptedBackend(
        judge=values({}, entropy=0.25), next_entropy=lambda text: 0.5 if text == A else None
    )
    task = asyncio.create_task(run_of(pair(student, teacher), entropy_top_k=7).run())
    await teacher.until_called("score")
    first.set()
    outcome = await task
    assert [call.entropy_known for call in teacher.scorings] == [False, True]
    assert [step.entropy for step in outcome.trajectory.steps] == [0.25, 0.5]
    assert {call.top_k for call in teacher.scorings} == {7}


async def test_the_boundary_follows_the_entropy_and_stays_put_where_it_is_static() -> None:
    def teacher() -> ScriptedBackend:
        return ScriptedBackend(says("x"), values({A: 0.15}, entropy=1.0))

    adaptive, _ = await outcome_of(ScriptedBackend(says(A)), teacher())
    assert adaptive.trajectory.breach is None
    assert adaptive.trajectory.steps[0].boundary == pytest.approx(0.2 * math.exp(-1))
    static, _ = await outcome_of(ScriptedBackend(says(A)), teacher(), boundary="static")
    assert static.trajectory.breach == 0
    assert static.trajectory.steps[0].boundary == 0.2


async def test_usage_counts_every_token_and_call_of_a_corrected_trajectory() -> None:
    student = ScriptedBackend(says(STUDENT))  # one draft, so one scoring call
    teacher = ScriptedBackend(
        Script(("Right", ".", ""), cached=11), values({A: 0.9, B: 0.3, C: 0.05}), cached=4
    )
    outcome, _ = await outcome_of(student, teacher, base_threshold=0.1)
    usage = outcome.usage
    assert usage.prompt_tokens == len(PROMPT)
    assert usage.student_tokens == 8
    assert usage.student_tokens_discarded == 0
    assert usage.teacher_scored_tokens == len(A + B + C)
    assert usage.teacher_cached_tokens == 4 + 11
    assert usage.teacher_tokens == 3
    assert (usage.student_calls, usage.score_calls, usage.correction_calls) == (1, 1, 1)
    # The revise token is counted as the student's tokenizer sees it: a token a character.
    assert usage.completion_tokens == 8 + len("However,\n\n") + 3
    assert [step.student_tokens for step in outcome.trajectory.steps] == [4, 1, 3]


async def test_cached_tokens_are_unknown_once_a_server_does_not_tell() -> None:
    student = ScriptedBackend(says(A))
    teacher = ScriptedBackend(Script(("x",), cached=3), values({A: 0.01}), cached=None)
    outcome, _ = await outcome_of(student, teacher)
    assert outcome.usage.teacher_cached_tokens is None


async def test_a_safe_trajectory_costs_no_correction_and_discards_nothing() -> None:
    outcome, _ = await outcome_of(ScriptedBackend(says(*STUDENT)), ScriptedBackend())
    assert outcome.usage.completion_tokens == outcome.usage.student_tokens == 8
    assert outcome.usage.student_tokens_discarded == 0
    assert outcome.usage.correction_calls == outcome.usage.teacher_tokens == 0


async def test_an_empty_answer_is_an_empty_trajectory() -> None:
    outcome, observed = await outcome_of(ScriptedBackend(says()), ScriptedBackend())
    assert outcome.trajectory.text == ""
    assert outcome.trajectory.spans == ()
    assert not observed.texts
    assert outcome.usage.score_calls == 0


async def test_each_step_is_encoded_once_for_a_context_that_only_grows() -> None:
    gates = [asyncio.Event() for _ in range(3)]
    student = ScriptedBackend(says(A, gates[0], B, gates[1], C, gates[2], "D"))
    teacher = ScriptedBackend()
    task = asyncio.create_task(run_of(pair(student, teacher)).run())
    for index, gate in enumerate(gates, start=1):
        await teacher.until_called("score", index)
        gate.set()
    await task
    assert teacher.encoded == [A, B, C, "D"]
    assert [call.context for call in teacher.scorings] == [
        PROMPT + A,
        PROMPT + A + B,
        PROMPT + A + B + C,
        PROMPT + A + B + C + "D",
    ]
    assert len(teacher.rendered) == 1
    assert not student.encoded  # its own text is in its cache already


async def test_the_corrections_context_needs_nothing_encoded_again() -> None:
    student = ScriptedBackend(says(*STUDENT))
    teacher = ScriptedBackend(says("x"), values({A: 0.9, B: 0.3, C: 0.05}))
    await outcome_of(student, teacher, base_threshold=0.1)
    assert sorted(teacher.encoded) == [A, B, C]
    assert len(teacher.rendered) == 1
    assert student.encoded == ["However,\n\n"]


async def test_a_raw_prompt_reaches_both_models_as_it_is() -> None:
    student, teacher = ScriptedBackend(says("x")), ScriptedBackend()
    run = run_of(pair(student, teacher))
    run.question = Question(prompt="raw ")
    await run.run()
    assert student.writes[0].context == "raw "
    assert teacher.scorings[0].context == "raw x"


async def test_trajectories_run_side_by_side_and_stay_apart() -> None:
    everyone = asyncio.Event()

    def script(sampling: Sampling) -> Script:
        return says(f"I am {sampling.seed}.\n\n", everyone, "end")

    student = ScriptedBackend(script)
    teacher = ScriptedBackend(says("no"), values({"I am 3.\n\n": 0.01}))
    both = pair(student, teacher)
    runs = [run_of(both) for _ in range(8)]
    for seed, run in enumerate(runs):
        run.sampling = replace(run.sampling, seed=seed)
    tasks = [asyncio.create_task(run.run()) for run in runs]
    await student.until_called("write", 8)  # all of them write at once
    await teacher.until_called("write")
    everyone.set()
    outcomes = await asyncio.gather(*tasks)
    assert [o.trajectory.breach for o in outcomes] == [None] * 3 + [0] + [None] * 4
    assert all(o.trajectory.text.startswith(f"I am {i}.\n\n") for i, o in enumerate(outcomes))


async def test_an_upstreams_limit_holds_for_writing_and_not_for_scoring_beside_it() -> None:
    gate = asyncio.Event()
    backend = ScriptedBackend(says(A, gate, "end"))
    only = Upstream("both", backend, backend, (backend,), max_concurrent=1)
    tasks = [asyncio.create_task(run_of(Pair(only, only)).run()) for _ in range(2)]
    await backend.until_called("score")  # although the one writing place is taken
    assert len(backend.writes) == 1
    gate.set()
    await asyncio.gather(*tasks)
    assert len(backend.writes) == 2


async def test_waiters_for_an_upstream_are_served_in_the_order_in_which_they_came() -> None:
    gates = [asyncio.Event() for _ in range(8)]
    backend = ScriptedBackend(lambda sampling: says(gates[sampling.seed or 0], "x"))
    only = Upstream("both", backend, backend, (backend,), max_concurrent=2)
    tasks = []
    for seed in range(8):
        run = run_of(Pair(only, None), method="student")
        tasks.append(asyncio.create_task(replace(run, sampling=Sampling(0.7, seed=seed)).run()))
        for _ in range(4):  # turns of the event loop, in which it gets in or takes its place
            await asyncio.sleep(0)
    gates[1].set()  # the second place is free first, and then again and again
    for seed in range(2, 8):
        await backend.until_called("write", seed + 1)
        gates[seed].set()
    gates[0].set()
    await asyncio.gather(*tasks)
    assert [writing.sampling.seed for writing in backend.writes] == list(range(8))


@pytest.mark.parametrize("method", ["motab", "skd"])
async def test_a_text_that_continues_a_trajectory_comes_before_the_drafts_that_wait(
    method: str,
) -> None:
    gate = asyncio.Event()

    def script(sampling: Sampling) -> Script:
        if sampling.temperature == 0.6:
            return says("right")
        return says(A, gate) if len(backend.writes) == 1 else says("draft")

    backend = ScriptedBackend(script, values({A: 0.01}), written_logprob=-0.1)
    backend.faults["score", 0] = judged = asyncio.Event()
    only = Upstream("both", backend, backend, (backend,), max_concurrent=1)
    runs = [run_of(Pair(only, only), method=method, gamma=0.5) for _ in range(5)]
    tasks = [asyncio.create_task(run.run()) for run in runs]
    await backend.until_called("score")
    judged.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert [writing.sampling.temperature for writing in backend.writes[:3]] == [0.7, 0.6, 0.7]


async def test_a_cancelled_waiter_for_an_upstream_leaves_its_place_to_the_next() -> None:
    places = Places(1)
    first = places.ask(continues=False)
    a, b, c, d = (places.ask(continues=name == "c") for name in "abcd")
    assert first.done()
    a.cancel()  # before its turn
    places.leave(first)
    assert [place.done() for place in (b, c, d)] == [False, True, False]
    places.leave(c)  # which its text never used
    assert [place.done() for place in (b, d)] == [True, False]
    places.leave(a)
    places.leave(b)
    places.leave(d)
    assert places.ask(continues=False).done()
    assert not places.ask(continues=True).done()


async def test_a_halted_student_makes_room_for_the_correction_on_the_same_server() -> None:
    def script(sampling: Sampling) -> Script:
        return says("right") if sampling.temperature == 0.6 else says(A, asyncio.Event())

    backend = ScriptedBackend(script, values({A: 0.01}))
    only = Upstream("both", backend, backend, (backend,), max_concurrent=1)
    async with asyncio.timeout(PATIENCE_S):
        outcome = await run_of(Pair(only, only)).run()
    assert outcome.trajectory.text == A + "However,\n\nright"


async def test_method_student_asks_the_teacher_nothing() -> None:
    student, teacher = ScriptedBackend(says(*STUDENT)), ScriptedBackend()
    outcome, observed = await outcome_of(student, teacher, method="student")
    assert outcome.trajectory.text == A + B + C
    assert spans_of(outcome) == [("student", A + B + C)]
    assert [step.value for step in outcome.trajectory.steps] == [None] * 3
    assert outcome.scoring is None
    assert not observed.notices
    assert not teacher.rendered
    assert not teacher.scorings


async def test_method_teacher_writes_alone_with_its_own_temperature() -> None:
    teacher = ScriptedBackend(Script(("T t.\n\n", "U"), cached=2))
    only = Pair(None, Upstream("teacher", teacher, teacher, (teacher,), 1))
    outcome = await run_of(only, method="teacher", max_total_tokens=50).run()
    assert spans_of(outcome) == [("teacher", "T t.\n\nU")]
    assert teacher.writes[0].sampling == Sampling(0.6, seed=5)
    assert teacher.writes[0].max_tokens == 50
    usage = outcome.usage
    assert (usage.teacher_tokens, usage.completion_tokens, usage.prompt_tokens) == (2, 2, 15)
    assert (usage.student_calls, usage.score_calls, usage.correction_calls) == (0, 0, 1)
    assert usage.teacher_cached_tokens == 2


async def test_a_method_without_its_model_is_an_error_that_says_so() -> None:
    only = Pair(None, upstream("teacher", ScriptedBackend()))
    with pytest.raises(MotabError, match="this model has no student"):
        await run_of(only, method="student").run()
