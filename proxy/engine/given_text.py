"""Scores a given text in one call: its steps by a scorer, or its tokens under one model."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from proxy.backends.base import Call, Scorer, TokenScorer
from proxy.core.params import Params
from proxy.core.scoring import checked_logprob
from proxy.core.segmenter import steps_of
from proxy.core.types import Scoring, Step, StepTrace
from proxy.core.verdict import bifurcation_of, judge, placed
from proxy.engine.ladder import score_by_ladder
from proxy.engine.model_context import ModelContext, about_tokens
from proxy.errors import RequestError, UpstreamMalformed

_MAX_STEPS = 8192
"""The steps of a text, because each costs this process some 30 microseconds (measured)."""


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text with every step judged; `breach` and `bifurcation` are as if the student wrote it."""

    steps: tuple[StepTrace, ...]
    breach: int | None
    bifurcation: int | None
    prompt_tokens: int
    scored_tokens: int
    cached_tokens: int | None
    scoring: Scoring


async def score_steps(
    model_context: ModelContext, scorers: Sequence[Scorer], text: str, params: Params, call: Call
) -> ScoredText:
    """Cut `text` into steps and score all of them with the first of `scorers`, ways of the
    context's upstream, that makes sense of them.

    Raises `RequestError` for an empty text, and for a text of too many steps.
    """
    texts = list(islice(steps_of(text, params.delimiter), _MAX_STEPS + 1))
    if len(texts) > _MAX_STEPS:
        one = params.delimiter
        num = text.count(one) if isinstance(one, str) else f"more than {_MAX_STEPS}"
        message = f"text has {num} steps, and at most {_MAX_STEPS} are scored in a request"
        raise RequestError(message, param="text")
    if not texts:
        raise RequestError("text is empty: there is no step to score", param="text")
    server = model_context.upstream
    async with server.place_to_score(call) as own_call:
        context = await model_context.at(texts)
        server.budget.require(context)
        with about_tokens(model_context.question):
            found = await score_by_ladder(
                scorers, context, len(texts), params.entropy_top_k, own_call, entropy_known=False
            )
    scores = found.scores
    steps: list[StepTrace] = []
    try:
        for step_text, score in zip(texts, scores.steps, strict=True):
            previous = steps[-1] if steps else None
            steps.append(judge(Step(step_text, 0), score, previous, params, len(steps)))
    except ValueError as error:
        raise UpstreamMalformed(server.name, str(error)) from error
    breach = next((index for index, step in enumerate(steps) if not step.safe), None)
    return ScoredText(
        steps=placed(steps),
        breach=breach,
        bifurcation=None if breach is None else bifurcation_of(steps[: breach + 1], params),
        prompt_tokens=context.bounds[-len(texts) - 1],
        scored_tokens=scores.num_tokens,
        cached_tokens=scores.num_cached_tokens,
        scoring=found.scoring,
    )


@dataclass(frozen=True, slots=True)
class TextLogprobs:
    """A text under one model: natural logarithms of its own tokens, which cover all of it.

    `ends[i]` is the number of the text's characters that are complete once token i is read.
    """

    ends: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int


async def score_tokens(
    model_context: ModelContext, scorer: TokenScorer, text: str, call: Call
) -> TextLogprobs:
    """Score `text` as a whole with one call of `scorer`, one of the model's.

    Raises `RequestError` for an empty text, for a text that the model would read with other markup,
    so that its tokens do not cover the characters, and for a text of probability 0.
    """
    if not text:
        raise RequestError("text is empty: there is no token to score", param="text")
    upstream = model_context.upstream
    async with upstream.place_to_score(call) as own_call:
        context = await model_context.at([text])
        if context.texts[-1] != text:
            raise RequestError(
                f"'{upstream.name}' reads this text's reasoning tags in a format of its own, so its"
                " tokens do not stand for the text's characters",
                param="text",
            )
        upstream.budget.require(context)
        with about_tokens(model_context.question):
            tokens = await scorer.token_logprobs(context, own_call)
    return TextLogprobs(
        ends=_in_characters([token.end for token in tokens], text),
        logprobs=tuple(
            _possible_logprob(token.logprob, index, upstream.name)
            for index, token in enumerate(tokens)
        ),
        prompt_tokens=context.bounds[-2],
    )


def _possible_logprob(logprob: float | None, index: int, upstream: str) -> float:
    try:
        checked = checked_logprob(logprob, f"log-probability {index} of the text")
    except ValueError as error:
        raise UpstreamMalformed(upstream, str(error)) from error
    if checked == -math.inf:
        raise RequestError(
            f"'{upstream}' gives token {index} of the text the probability 0, which has no"
            " logarithm",
            param="text",
        )
    return checked


def _in_characters(ends: list[int], text: str) -> tuple[int, ...]:
    """Convert offsets in bytes to numbers of whole characters."""
    characters = list(accumulate(len(character.encode()) for character in text))
    return tuple(bisect_right(characters, end) for end in ends)
