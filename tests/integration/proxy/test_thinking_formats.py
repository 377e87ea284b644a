"""Students and teachers that open their thoughts in different ways, in one trajectory."""

import asyncio
from typing import Any

import pytest

from proxy.backends.base import Call, Message, Question, Sampling
from proxy.core.params import Params
from proxy.core.thinking import Reasoning
from proxy.core.types import Notice
from proxy.engine.given_text import score_steps
from proxy.engine.model_context import ModelContext
from proxy.engine.pair import Pair
from proxy.engine.runner import TrajectoryRun
from proxy.engine.upstream import Upstream
from proxy.engine.usage import Outcome
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import iter_of
from tests.support.scripted import ScriptedBackend, says, upstream, values

NONE, THINK, OPENED = Reasoning(), Reasoning("think"), Reasoning("think", opened=True)
HARMONY = Reasoning("harmony")
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
TO_FINAL = f"<|end|><|start|>assistant{FINAL}"
QUESTION = Question(messages=(Message("user", "Q"),))
PROMPT = "<user>Q<answer>"
A, B = "A a.\n\n", "B b.\n\n"
# As a server writes it: a special token is one piece.
HARMONY_TOKENS = ("<|channel|>", "analysis", "<|message|>", "So", ".")
TO_FINAL_TOKENS = ("<|end|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "4")


class Silent:
    def text(self, text: str) -> None:
        pass

    def notice(self, notice: Notice) -> None:
        pass


async def outcome_of(
    student: ScriptedBackend,
    teacher: ScriptedBackend,
    formats: tuple[Reasoning | None, Reasoning | None],
    question: Question = QUESTION,
    **params: Any,
) -> Outcome:
    pair = Pair(upstream("student", student, formats[0]), upstream("teacher", teacher, formats[1]))
    run = TrajectoryRun(
        pair=pair,
        question=question,
        params=Params(**params),
        sampling=Sampling(0.7),
        call=Call("r-0"),
        observer=Silent(),
        scorer=teacher if params.get("method", "motab") == "motab" else None,
    )
    async with asyncio.timeout(PATIENCE_S):
        return await run.run()


async def test_a_thinking_teacher_reads_a_plain_student_s_answer_after_an_empty_thought() -> None:
    student, teacher = ScriptedBackend(says(A, "x")), ScriptedBackend()
    outcome = await outcome_of(student, teacher, (NONE, THINK))
    prompt = PROMPT + "<think>\n\n</think>\n\n"
    assert teacher.scorings[-1].context == prompt + A + "x"
    assert teacher.marked == ["<think>\n\n</think>\n\n"]
    assert outcome.trajectory.text == A + "x"
    assert student.writes[0].context == PROMPT
    assert outcome.usage.prompt_tokens == len(PROMPT)


async def test_a_harmony_teacher_corrects_a_thought_and_the_text_keeps_the_student_s_tags() -> None:
    student = ScriptedBackend(says("<think>\n", A, B))
    teacher = ScriptedBackend(says("Right", *TO_FINAL_TOKENS), values({B: 0.01}))
    outcome = await outcome_of(student, teacher, (THINK, HARMONY))
    assert teacher.writes[0].context == PROMPT + ANALYSIS + A
    corrected = "Right\n</think>\n\n4"
    assert outcome.trajectory.text == "<think>\n" + A + B + "However,\n\n" + corrected
    assert outcome.usage.teacher_tokens == 8
    assert outcome.trajectory.teacher_tokens == 8
    assert teacher.writes[0].sampling.special_tokens
    assert not student.writes[0].sampling.special_tokens
    # The student's words are never read as markup.
    assert ANALYSIS not in teacher.encoded
    assert teacher.marked == [ANALYSIS]


async def test_the_end_of_a_student_s_thought_is_the_teacher_s_markup() -> None:
    student = ScriptedBackend(says("<think>\na\n</think>\n\nb"))
    teacher = ScriptedBackend()
    await outcome_of(student, teacher, (THINK, HARMONY))
    assert teacher.scorings[-1].context == f"{PROMPT}{ANALYSIS}a{TO_FINAL}b"
    assert teacher.marked == [ANALYSIS, TO_FINAL]
    assert teacher.encoded == ["a", "b"]


async def test_a_harmony_student_s_thoughts_reach_a_thinking_teacher_in_its_tags() -> None:
    student = ScriptedBackend(says(*HARMONY_TOKENS, *TO_FINAL_TOKENS))
    teacher = ScriptedBackend()
    outcome = await outcome_of(student, teacher, (HARMONY, OPENED))
    assert outcome.trajectory.text == "<think>\nSo.\n</think>\n\n4"
    assert teacher.scorings[-1].context == PROMPT + "So.\n</think>\n\n4"
    assert student.writes[0].sampling.special_tokens
    assert outcome.usage.student_tokens == outcome.trajectory.student_tokens == 12


async def test_a_cut_in_the_middle_of_a_header_loses_no_token() -> None:
    student = ScriptedBackend(says(*HARMONY_TOKENS, *TO_FINAL_TOKENS))
    outcome = await outcome_of(student, ScriptedBackend(), (HARMONY, HARMONY), max_total_tokens=9)
    assert outcome.trajectory.text == "<think>\nSo."
    assert outcome.trajectory.finish_reason == "length"
    assert outcome.trajectory.student_tokens == 9


@pytest.mark.parametrize("teacher_format", [THINK, OPENED])
@pytest.mark.parametrize(("stitch", "opens"), [("flawed", True), ("clean", False)])
async def test_a_correction_from_the_start_goes_on_in_the_thought_that_the_text_has_open(
    teacher_format: Reasoning, stitch: str, opens: bool
) -> None:
    flawed = "<think>\n" + A
    student = ScriptedBackend(says(flawed))
    own_opening = "" if teacher_format.opened or opens else "<think>\n"
    teacher = ScriptedBackend(says(own_opening, "Right"), values({flawed: 0.01, A: 0.01}))
    outcome = await outcome_of(student, teacher, (THINK, teacher_format), stitch=stitch)
    prefix = "<think>\n" if opens and not teacher_format.opened else ""
    assert teacher.writes[0].context == PROMPT + prefix
    expected = flawed + "However,\n\nRight" if opens else "<think>\nRight"
    assert outcome.trajectory.text == expected


@pytest.mark.parametrize("formats", [(None, HARMONY), (NONE, None), (None, None)])
async def test_where_a_format_is_not_known_nothing_is_mapped(
    formats: tuple[Reasoning | None, Reasoning | None],
) -> None:
    student = ScriptedBackend(says("<think>\na\n</think>\n\nb"))
    teacher = ScriptedBackend()
    await outcome_of(student, teacher, formats)
    assert teacher.scorings[-1].context == PROMPT + "<think>\na\n</think>\n\nb"
    assert not teacher.marked


async def test_a_chat_only_model_reads_the_text_as_it_is_and_its_thoughts_are_mapped() -> None:
    thought = "<think>\na\n</think>\n\nb"
    hosted = Upstream("hosted", (own := ScriptedBackend(says(thought))), own, (own,), 16, THINK)
    local = upstream("student", (other := ScriptedBackend(says(thought))), OPENED)
    for pair, teacher in ((Pair(hosted, local), other), (Pair(local, hosted), own)):
        run = TrajectoryRun(
            pair=pair,
            question=QUESTION,
            params=Params(),
            sampling=Sampling(0.7),
            call=Call("r-0"),
            observer=Silent(),
            scorer=teacher,
        )
        await run.run()
    assert other.scorings[-1].context == PROMPT + "a\n</think>\n\nb"
    assert own.scorings[-1].context == PROMPT + thought
    assert not own.marked


async def test_a_raw_prompt_stands_as_it_is() -> None:
    student = ScriptedBackend(says(A))
    teacher = ScriptedBackend(says("x"), values({A: 0.01}))
    await outcome_of(student, teacher, (NONE, HARMONY), Question(prompt="P"))
    assert teacher.scorings[0].context == "P" + A
    assert not teacher.writes[0].sampling.special_tokens


async def test_method_teacher_writes_as_the_teacher_would_alone() -> None:
    teacher = ScriptedBackend(says(*HARMONY_TOKENS, *TO_FINAL_TOKENS))
    outcome = await outcome_of(ScriptedBackend(), teacher, (NONE, HARMONY), method="teacher")
    assert teacher.writes[0].context == PROMPT
    assert outcome.trajectory.text == "<think>\nSo.\n</think>\n\n4"


async def test_a_given_text_is_scored_as_the_student_s() -> None:
    teacher = ScriptedBackend()
    pair = Pair(
        upstream("student", ScriptedBackend(), OPENED), upstream("teacher", teacher, HARMONY)
    )
    reads = ModelContext(
        pair.of("teacher"), pair.bridge("teacher", QUESTION), QUESTION, Call("r-0")
    )
    scored = await score_steps(reads, [teacher], "a\n</think>\n\nb", Params(), Call("r-0"))
    assert teacher.scorings[0].context == f"{PROMPT}{ANALYSIS}a{TO_FINAL}b"
    assert scored.prompt_tokens == len(PROMPT + ANALYSIS)


async def test_a_thought_that_the_correction_leaves_open_or_closes_again_is_flagged() -> None:
    closed = "</think>\n\nC c.\n\n"
    drafts = says("<think>\nA a.\n\n", "B b.\n\n", closed)
    for formats, table, correction, flags in (
        # t* lies inside the thought and the breach after its end.
        ((THINK, THINK), {"B b.\n\n": 0.3, closed: 0.05}, "No.\n</think>\n\n4", "closed_twice"),
        ((THINK, NONE), {"B b.\n\n": 0.05}, "4", "left_open"),
        ((THINK, THINK), {"B b.\n\n": 0.05}, "No.\n</think>\n\n4", None),
        ((OPENED, NONE), {"B b.\n\n": 0.05}, "<think>\n4</think>", "opened_twice"),
    ):
        student = ScriptedBackend(
            says("A a.\n\n", "B b.\n\n", closed) if formats[0] == OPENED else drafts
        )
        teacher = ScriptedBackend(says(correction), values(table))
        outcome = await outcome_of(student, teacher, formats, base_threshold=0.1)
        expected = () if flags is None else (f"thought_{flags}",)
        assert outcome.quality == expected, (formats, outcome.trajectory.text)


@pytest.mark.parametrize(("prompt", "flags"), [("Q <think>\n", ("thought_left_open",)), ("Q", ())])
async def test_a_raw_prompt_itself_opens_the_thought(prompt: str, flags: tuple[str, ...]) -> None:
    student = ScriptedBackend(says("A a."))
    formats, question = (THINK, NONE), Question(prompt=prompt)
    outcome = await outcome_of(student, ScriptedBackend(), formats, question, method="student")
    assert outcome.quality == flags


@pytest.mark.parametrize("formats", [(NONE, NONE), (None, None), (THINK, NONE), (NONE, THINK)])
@pytest.mark.parametrize("method", ["student", "motab"])
@pytest.mark.parametrize(
    ("steps", "flags"),
    [
        (("<think>\nA a.\n\n", "B b."), ("thought_left_open",)),
        (("A a.\n\n", "<think>B b."), ("thought_left_open",)),
        (("<think>\nA a.\n\n", "</think>\n\nB b."), ()),
    ],
)
async def test_a_thought_that_is_never_closed_is_flagged_whatever_the_models_format(
    formats: Any, method: str, steps: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    student = ScriptedBackend(says(*steps))
    teacher = ScriptedBackend(judge=values({}, otherwise=0.9))
    outcome = await outcome_of(student, teacher, formats, method=method, base_threshold=0.1)
    assert outcome.quality == flags


@pytest.mark.parametrize("teacher_format", [THINK, HARMONY, OPENED, NONE])
async def test_the_pen_goes_back_into_the_thought_that_a_flawed_step_opened(
    teacher_format: Reasoning,
) -> None:
    flawed, right = "<think>\n" + A, "Right.\n\n"
    student = ScriptedBackend(iter_of(says(flawed), says(B, "</think>\n\n4")))
    teacher = ScriptedBackend(says(right, "more"), values({flawed: 0, A: 0, ANALYSIS + A: 0}))
    outcome = await outcome_of(student, teacher, (THINK, teacher_format), rounds=2)
    text = flawed + "However,\n\n" + right + B + "</think>\n\n4"
    assert outcome.trajectory.text == text
    assert outcome.quality == ()
    # No model reads the flawed step, and each has its thought open in its own format.
    assert student.writes[1].context == PROMPT + "<think>\n" + right
    opening = {"think": "<think>\n", "harmony": ANALYSIS, "none": ""}[teacher_format.kind]
    before = PROMPT + ("" if teacher_format.opened else opening) + right
    end = {"think": "</think>\n\n4", "harmony": TO_FINAL + "4", "none": "4"}[teacher_format.kind]
    assert teacher.scorings[-1].context == before + B + end


@pytest.mark.parametrize("teacher_format", [THINK, HARMONY])
async def test_a_thought_that_the_text_has_open_is_not_opened_again(
    teacher_format: Reasoning,
) -> None:
    first, right = "<think>\n" + A, "Right.\n\n"
    student = ScriptedBackend(iter_of(says(first, B), says("</think>\n\n4")))
    teacher = ScriptedBackend(says(right), values({B: 0.01}))
    outcome = await outcome_of(student, teacher, (THINK, teacher_format), rounds=2)
    assert outcome.trajectory.text == first + B + "However,\n\n" + right + "</think>\n\n4"
    assert student.writes[1].context == PROMPT + first + right


async def test_a_harmony_student_continues_its_thought_after_a_correction() -> None:
    flawed, right = "<think>\nSo.\n\n", "Right.\n\n"
    student = ScriptedBackend(
        iter_of(
            says("<|channel|>", "analysis", "<|message|>", "So", ".\n\n"),
            says("Then.\n\n", *TO_FINAL_TOKENS),
        )
    )
    teacher = ScriptedBackend(says(right), values({flawed: 0.01, "So.\n\n": 0.01}))
    outcome = await outcome_of(student, teacher, (HARMONY, THINK), rounds=2)
    assert student.writes[1].context == PROMPT + ANALYSIS + right
    assert outcome.trajectory.text == (f"{flawed}However,\n\n{right}Then.\n\n\n</think>\n\n4")


async def test_an_answer_that_the_client_began_begins_with_its_own_text() -> None:
    question = Question(messages=QUESTION.messages, begun="<think>\nIt is. ")
    student = ScriptedBackend(iter_of(says(A), says("x")))
    teacher = ScriptedBackend(says(B), values({A: 0.01}))
    await outcome_of(student, teacher, (THINK, HARMONY), question, rounds=2)
    assert teacher.writes[0].context == PROMPT + ANALYSIS + "It is. "
    assert teacher.scorings[-1].context == PROMPT + ANALYSIS + "It is. " + B + "x"
    assert student.writes[1].context == PROMPT + "<think>\nIt is. " + B
