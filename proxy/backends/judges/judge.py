"""Scores a step by showing it to a model and asking for a mark: the judge rungs of the fallback
ladder, for servers that give no probabilities of given text.

A mark is not V_t (Eq. 5): it is what the model says about a step, not how likely the model was to
write it. It needs a boundary of its own, and no entropy comes with it.
"""

import logging
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from proxy.backends.base import Call, Context, Question, Scores
from proxy.core.types import Scoring, StepScore
from proxy.errors import ContextExceeded, RequestError, UpstreamMalformed, UpstreamRefused

_log = logging.getLogger(__name__)

JUDGE_PROMPT = """\
You are marking one step of a solution. Mark that step alone: does it follow from the question and \
from what stands before it, is it correct, and does it lead towards the right answer? A step that \
only begins or structures the solution well is a good step.

<question>
{question}
</question>

<solution_so_far>
{solution}
</solution_so_far>

<step>
{step}
</step>

Give the step a mark from 0 (wrong or leading astray) to 9 (certainly right). {format}"""
_DIGIT_ONLY = "Answer with that one digit and nothing else."
_DIGIT_LAST = "The last line of your answer must be that one digit and nothing else."
_AGAIN = "An answer without that digit cannot be read: no word or sign may come after it."
_NOTHING_YET = "(nothing yet: this is the first step)"

MIN_DIGIT_MASS = 0.5
"""The least total probability of the candidates that are one digit: below it the model was about to
say something else, and the digits say little about the step."""
_TOP_LOGPROBS = (20, 5)
"""OpenAI's cap, and the lowest cap in use."""
_MAX_ANSWER_TOKENS = 2048
"""Room for a judge that thinks before it marks."""
_BEST_MARK = 9
_EXAMPLE_QUESTION = "What is 12 + 30?"
_EXAMPLE_STEP = "12 + 30 = 42.\n\n"
_DIGITS = frozenset("0123456789")
# The last line: one digit, perhaps in bold type, perhaps with a full stop.
_MARK = re.compile(r"(?:^|\n)[ \t]*(?:\*\*)?([0-9])(?:\*\*)?\.?\s*\Z", re.ASCII)
# A server's rounding may leave a certain token slightly above probability 1.
_MAX_LOGPROB = 1e-3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have begun the answer, and its log-probability (natural)."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A chat model's answer, without the thoughts that came separately.

    `is_whole` says that the model ended the answer itself. `top` are the candidates for its first
    token, None if none came.
    """

    text: str
    is_whole: bool
    top: tuple[Candidate, ...] | None
    num_cached_tokens: int | None


class Asker(Protocol):
    """A chat model that can be asked one question."""

    @property
    def upstream(self) -> str:
        """The upstream's name in the configuration."""
        ...

    async def ask(
        self, prompt: str, max_tokens: int, top_logprobs: int | None, call: Call
    ) -> Answer:
        """Answer `prompt`, sent as a user's only message, with as little randomness as possible."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """A step's value, in [0, 1], and how much of the prompt came from the server's cache."""

    value: float
    num_cached_tokens: int | None


class _Judge(ABC):
    """Scores with one mark per step."""

    scoring: Scoring
    # A judge reads everything for each step anyway, however many steps a call covers.
    recomputes = False

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    @abstractmethod
    async def mark(
        self, question: str, solution: str, step: str, call: Call, *, again: bool = False
    ) -> Mark:
        """Return the mark for `step`. Raises ValueError if the answer holds none.

        `again` says in the prompt that an answer without a mark came before.
        """

    async def score(
        self,
        context: Context,
        num_new: int,
        top_k: int,  # noqa: ARG002 - for an entropy, which marks do not have
        call: Call,
        *,
        entropy_known: bool,  # noqa: ARG002
    ) -> Scores:
        """Return one mark for each of the last `num_new` steps.

        The marks are requested one after the other, because a scoring call holds only one permit of
        its upstream. Only the steps' own tokens count as scored, as on the other rungs, although a
        judge reads the whole question again for each step.
        """
        texts = list(context.texts)
        question = _question_text(context.question)
        scores: list[StepScore] = []
        num_cached: int | None = 0
        for index in range(len(texts) - num_new, len(texts)):
            mark = await self._mark(question, "".join(texts[:index]), texts[index], call)
            num_tokens = context.bounds[index + 1] - context.bounds[index]
            scores.append(StepScore(mark.value, None, num_tokens))
            if num_cached is not None:
                cached = mark.num_cached_tokens
                num_cached = None if cached is None else num_cached + cached
        num_scored = sum(score.num_tokens for score in scores)
        return Scores(tuple(scores), None, num_scored, num_cached)

    async def _mark(self, question: str, solution: str, step: str, call: Call) -> Mark:
        """Return the mark, which is asked for once more if the first answer holds none."""
        try:
            return await self.mark(question, solution, step, call)
        except (ValueError, UpstreamMalformed) as error:
            _log.info(
                "upstream '%s': %s: %s; asking again", self._asker.upstream, self.scoring, error
            )
        try:
            return await self.mark(question, solution, step, call, again=True)
        except ValueError as error:
            message = f"{self.scoring}: {error}"
            raise UpstreamMalformed(self._asker.upstream, message) from error


class JudgeLogprob(_Judge):
    """Value = sum(d * p_d) / (9 * sum(p_d)) over the digits d, with p of the first token."""

    scoring: Scoring = "judge_logprob"

    def __init__(self, asker: Asker, top_logprobs: int) -> None:
        super().__init__(asker)
        self._top_logprobs = top_logprobs

    async def mark(
        self, question: str, solution: str, step: str, call: Call, *, again: bool = False
    ) -> Mark:
        form = f"{_DIGIT_ONLY} {_AGAIN}" if again else _DIGIT_ONLY
        prompt = _prompt(question, solution, step, form)
        answer = await self._asker.ask(prompt, 1, self._top_logprobs, call)
        if not answer.top:
            raise ValueError("no log-probabilities of the answer's first token")
        return Mark(expected_mark(answer.top), answer.num_cached_tokens)


class JudgeSample(_Judge):
    """Value = d / 9, d being the digit on the last line of the answer."""

    scoring: Scoring = "judge_sample"

    async def mark(
        self, question: str, solution: str, step: str, call: Call, *, again: bool = False
    ) -> Mark:
        form = f"{_DIGIT_LAST} {_AGAIN}" if again else _DIGIT_LAST
        prompt = _prompt(question, solution, step, form)
        answer = await self._answer(prompt, call)
        if not answer.is_whole:
            raise ValueError(f"the answer was cut off, its end is {answer.text[-80:]!r}")
        return Mark(sampled_mark(answer.text), answer.num_cached_tokens)

    async def _answer(self, prompt: str, call: Call) -> Answer:
        """Return the answer, with less room for thoughts where the model's limits leave less."""
        max_tokens = _MAX_ANSWER_TOKENS
        while True:
            try:
                return await self._asker.ask(prompt, max_tokens, None, call)
            except (ContextExceeded, UpstreamRefused) as error:
                lower = max_tokens // 2
                if isinstance(error, UpstreamRefused):
                    lower = error.most_output or 0
                if not 0 < lower < max_tokens:
                    raise
                max_tokens = lower


async def find_judges(asker: Asker, call: Call) -> tuple[JudgeLogprob | JudgeSample, ...]:
    """Find the judges that this model can be, best first, by asking it.

    Empty if it cannot mark; any other failure is raised.
    """
    sample = JudgeSample(asker)
    for top_logprobs in _TOP_LOGPROBS:
        judge = JudgeLogprob(asker, top_logprobs)
        if await _marks(judge, asker.upstream, call):
            return judge, sample
    if await _marks(sample, asker.upstream, call):
        return (sample,)
    # It cannot mark; an error here says that it does not even answer.
    await asker.ask(_EXAMPLE_QUESTION, 1, None, call)
    return ()


async def _marks(judge: JudgeLogprob | JudgeSample, upstream: str, call: Call) -> bool:
    try:
        await judge.mark(_EXAMPLE_QUESTION, "", _EXAMPLE_STEP, call)
    except (ValueError, UpstreamRefused, UpstreamMalformed, RequestError) as error:
        _log.warning("upstream '%s' cannot be a %s: %s", upstream, judge.scoring, error)
        return False
    _log.info("upstream '%s' can be a %s", upstream, judge.scoring)
    return True


def expected_mark(top: tuple[Candidate, ...]) -> float:
    """The expectation over the candidates that are one digit, divided by 9.

    " 7" is a 7, "10" is not a digit. Raises `ValueError` if the digits have less than
    `MIN_DIGIT_MASS` together, or a log-probability is impossible.
    """
    mass = 0.0
    weighted = 0.0
    for candidate in top:
        if math.isnan(candidate.logprob) or candidate.logprob > _MAX_LOGPROB:
            raise ValueError(f"{candidate.logprob} is not a log-probability")
        text = candidate.text.strip()
        if text in _DIGITS:
            probability = math.exp(candidate.logprob)
            mass += probability
            weighted += int(text) * probability
    if mass < MIN_DIGIT_MASS:
        begin = ", ".join(repr(candidate.text) for candidate in top[:5])
        raise ValueError(f"the digits have probability {mass:.3f} only; the answer begins {begin}")
    return weighted / mass / _BEST_MARK


def sampled_mark(text: str) -> float:
    """The digit that is the last line of `text`, divided by 9. Raises `ValueError`."""
    found = _MARK.search(text)
    if found is None:
        raise ValueError(f"the answer's last line is not a digit: {text[-80:]!r}")
    return int(found[1]) / _BEST_MARK


def _prompt(question: str, solution: str, step: str, form: str) -> str:
    return JUDGE_PROMPT.format(
        question=question, solution=solution or _NOTHING_YET, step=step, format=form
    )


def _question_text(question: Question) -> str:
    if question.prompt is not None:
        return question.prompt
    if len(question.messages) == 1:
        return question.messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in question.messages)
