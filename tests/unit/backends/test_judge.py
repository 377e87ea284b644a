import math
from dataclasses import dataclass, field

import pytest

from proxy.backends.base import Call, Context, Message, Question, Segment
from proxy.backends.judges.judge import (
    Answer,
    Candidate,
    JudgeLogprob,
    JudgeSample,
    expected_mark,
    find_judges,
    sampled_mark,
)
from proxy.core.types import StepScore
from proxy.errors import UnsupportedField, UpstreamMalformed, UpstreamRefused, UpstreamUnreachable

CALL = Call("trajectory")


def candidates(**probabilities: float) -> tuple[Candidate, ...]:
    """The keys are texts, with `_` for a space and `d7` for "7"."""
    return tuple(
        Candidate(text.replace("_", " ").replace("d", ""), math.log(p))
        for text, p in probabilities.items()
    )


@dataclass(slots=True)
class ScriptedAsker:
    """Gives its answers in order, the last one for ever, and keeps what it was asked."""

    answers: list[Answer | Exception]
    upstream: str = "teacher"
    asked: list[tuple[str, int, int | None]] = field(default_factory=list)

    async def ask(
        self, prompt: str, max_tokens: int, top_logprobs: int | None, call: Call
    ) -> Answer:
        self.asked.append((prompt, max_tokens, top_logprobs))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def says(text: str, *, is_whole: bool = True, cached: int | None = None) -> Answer:
    return Answer(text, is_whole, None, cached)


def marks(**probabilities: float) -> Answer:
    return Answer("", is_whole=False, top=candidates(**probabilities), num_cached_tokens=0)


def context(*steps: str, question: Question | None = None) -> Context:
    asked = question or Question((Message("user", "What is 1 + 1?"),))
    segments = [Segment(text, tuple(map(ord, text))) for text in steps]
    return Context(Segment("", (1, 2, 3)), segments, question=asked)


def test_the_mark_is_the_digits_expectation_over_nine() -> None:
    # The digits have 0.8 of the probability, and 6.5 is their sum weighted with it.
    assert expected_mark(candidates(d9=0.5, d8=0.25, d0=0.05, The=0.1)) == pytest.approx(0.9027778)


def test_a_digit_after_a_space_is_the_same_digit() -> None:
    # Twice 2.7, and 0.6, over 0.8.
    assert expected_mark(candidates(d9=0.3, _d9=0.3, d3=0.2)) == pytest.approx(0.8333333)


def test_ten_is_no_digit() -> None:
    # (4 * 0.6) / 0.6 / 9: were "10" a 1 or a 10, it would be another value.
    assert expected_mark(candidates(d4=0.6, d10=0.4)) == pytest.approx(4 / 9)


@pytest.mark.parametrize(("worst", "best"), [(0, 0.0), (9, 1.0)])
def test_a_certain_mark_is_exact(worst: int, best: float) -> None:
    assert expected_mark((Candidate(str(worst), 0.0),)) == best


def test_an_impossible_digit_weighs_nothing() -> None:
    assert expected_mark((Candidate("9", 0.0), Candidate("0", -math.inf))) == 1.0


@pytest.mark.parametrize(
    "top",
    [
        (),
        candidates(The=0.9, A=0.1),
        candidates(d7=0.49, The=0.51),
        candidates(d10=1.0),
        (Candidate("²", 0.0),),
        (Candidate("٣", 0.0),),
    ],
)
def test_without_half_of_the_probability_on_digits_there_is_no_mark(
    top: tuple[Candidate, ...],
) -> None:
    with pytest.raises(ValueError, match="probability"):
        expected_mark(top)


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 0.5])
def test_an_impossible_log_probability_is_never_a_mark(logprob: float) -> None:
    with pytest.raises(ValueError, match="not a log-probability"):
        expected_mark((Candidate("9", 0.0), Candidate("x", logprob)))


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("7", 7),
        (" 7\n", 7),
        ("**7**", 7),
        ("7.", 7),
        ("Step 3 is right, so 12 + 30 = 42.\n\n9", 9),
        ("<think>\nIs it 1?\n</think>\n\n0", 0),
    ],
)
def test_the_sampled_mark_is_the_last_lines_digit(text: str, mark: int) -> None:
    assert sampled_mark(text) == mark / 9


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "42",
        "10",
        "-7",
        "3.7",
        "7/10",
        "I give it a 7",
        "7\nIt is right.",
        "12 + 30 = 4",
    ],
)
def test_an_answer_without_a_digit_as_its_last_line_is_no_mark(text: str) -> None:
    with pytest.raises(ValueError, match="not a digit"):
        sampled_mark(text)


async def test_each_new_step_is_marked_on_its_own_with_what_stands_before_it() -> None:
    asker = ScriptedAsker([marks(d9=1.0), marks(d3=1.0)])
    scores = await JudgeLogprob(asker, 20).score(
        context("One.\n\n", "Two {x}.\n\n", "Three."), 2, 20, CALL, entropy_known=False
    )
    assert scores.steps == (StepScore(1.0, None, 10), StepScore(3 / 9, None, 6))
    assert scores.next_entropy is None
    assert scores.num_tokens == 16
    assert scores.num_cached_tokens == 0
    (second, *how), (third, *_) = asker.asked
    assert how == [1, 20]
    assert "<question>\nWhat is 1 + 1?\n</question>" in second
    assert "<solution_so_far>\nOne.\n\n\n</solution_so_far>" in second
    assert "<step>\nTwo {x}.\n\n\n</step>" in second
    assert "<solution_so_far>\nOne.\n\nTwo {x}.\n\n\n</solution_so_far>" in third


async def test_the_first_step_is_marked_with_nothing_before_it() -> None:
    asker = ScriptedAsker([says("5")])
    scores = await JudgeSample(asker).score(context("One."), 1, 20, CALL, entropy_known=True)
    assert scores.steps[0].value == 5 / 9
    assert scores.num_cached_tokens is None
    assert "(nothing yet" in asker.asked[0][0]
    assert asker.asked[0][2] is None


async def test_a_conversation_is_shown_with_its_roles_and_a_raw_prompt_as_it_is() -> None:
    asker = ScriptedAsker([says("5")])
    turns = Question((Message("system", "Be short."), Message("user", "Q")))
    await JudgeSample(asker).score(context("One.", question=turns), 1, 20, CALL, entropy_known=True)
    await JudgeSample(asker).score(
        context("One.", question=Question(prompt="Q: 1 + 1\nA:")), 1, 20, CALL, entropy_known=True
    )
    assert "<question>\nsystem: Be short.\n\nuser: Q\n</question>" in asker.asked[0][0]
    assert "<question>\nQ: 1 + 1\nA:\n</question>" in asker.asked[1][0]


@pytest.mark.parametrize(
    "answer",
    [says("Certainly!"), says("9", is_whole=False)],
    ids=["no digit", "cut off before its end"],
)
async def test_an_answer_without_a_mark_is_malformed_and_no_score(answer: Answer) -> None:
    judge = JudgeSample(ScriptedAsker([says("9"), answer]))
    with pytest.raises(UpstreamMalformed, match="upstream 'teacher': judge_sample: "):
        await judge.score(context("One.", "Two."), 2, 20, CALL, entropy_known=True)


@pytest.mark.parametrize("answer", [says("9"), marks(The=1.0)], ids=["no logprobs", "no digit"])
async def test_candidates_without_a_mark_are_malformed_and_no_score(answer: Answer) -> None:
    judge = JudgeLogprob(ScriptedAsker([answer]), 20)
    with pytest.raises(UpstreamMalformed, match="upstream 'teacher': judge_logprob: "):
        await judge.score(context("One."), 1, 20, CALL, entropy_known=True)


def refused() -> UpstreamRefused:
    return UpstreamRefused("teacher", "top_logprobs must be at most 5")


async def test_a_model_that_gives_log_probabilities_is_both_judges_after_one_question() -> None:
    asker = ScriptedAsker([marks(d9=1.0)])
    assert [judge.scoring for judge in await find_judges(asker, CALL)] == [
        "judge_logprob",
        "judge_sample",
    ]
    assert len(asker.asked) == 1


async def test_an_api_with_a_lower_cap_is_asked_for_fewer_candidates() -> None:
    asker = ScriptedAsker([refused(), marks(d9=1.0)])
    judge, _ = await find_judges(asker, CALL)
    await judge.score(context("One."), 1, 20, CALL, entropy_known=True)
    assert [top_logprobs for _, _, top_logprobs in asker.asked] == [20, 5, 5]


@pytest.mark.parametrize(
    "answer",
    [refused(), UnsupportedField("no logprobs"), says("9")],
    ids=["refused", "unsupported", "ignored"],
)
async def test_a_model_without_log_probabilities_is_sampled_and_that_is_told(
    answer: Answer | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    asker = ScriptedAsker([answer, answer, says("9")])
    (judge,) = await find_judges(asker, CALL)
    assert judge.scoring == "judge_sample"
    assert "upstream 'teacher' cannot be a judge_logprob: " in caplog.text


async def test_a_model_that_does_not_mark_is_no_judge() -> None:
    assert await find_judges(ScriptedAsker([says("Certainly!")]), CALL) == ()


@pytest.mark.parametrize("fault", [UpstreamUnreachable("teacher", "gone"), refused()])
async def test_a_model_that_does_not_answer_at_all_is_an_error(fault: Exception) -> None:
    with pytest.raises(type(fault)):
        await find_judges(ScriptedAsker([fault]), CALL)
