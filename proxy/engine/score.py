"""Values, entropies and boundaries of a given text, in one scoring call."""

from dataclasses import dataclass

from proxy.backends.base import Call, Scorer
from proxy.core.params import Params
from proxy.core.segmenter import split_steps
from proxy.core.types import Step, StepTrace
from proxy.core.verdict import bifurcation_of, judge, placed
from proxy.engine.contexts import ModelContext
from proxy.errors import RequestError, UpstreamMalformed


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Every step judged; `breach` and `bifurcation` as if the student had written the text."""

    steps: tuple[StepTrace, ...]
    breach: int | None
    bifurcation: int | None
    prompt_tokens: int
    scored_tokens: int
    cached_tokens: int | None


async def score_text(
    reads: ModelContext, scorer: Scorer, text: str, params: Params, call: Call
) -> ScoredText:
    """Cut `text` into steps and let `scorer`, one of the teacher's that `reads`, score all of them.

    Raises `RequestError` for an empty text.
    """
    texts = split_steps(text, params.delimiter)
    if not texts:
        raise RequestError("text is empty: there is no step to score", param="text")
    teacher = reads.upstream
    async with teacher.scoring:
        context = await reads.at(texts)
        scores = await scorer.score(
            context, len(texts), params.entropy_top_k, call, entropy_known=False
        )
    steps: list[StepTrace] = []
    try:
        for step_text, score in zip(texts, scores.steps, strict=True):
            previous = steps[-1] if steps else None
            steps.append(judge(Step(step_text, 0), score, previous, params))
    except ValueError as error:
        raise UpstreamMalformed(teacher.name, str(error)) from error
    breach = next((index for index, step in enumerate(steps) if not step.safe), None)
    return ScoredText(
        steps=placed(steps, len(steps)),
        breach=breach,
        bifurcation=None if breach is None else bifurcation_of(steps[: breach + 1], params),
        prompt_tokens=context.bounds[0],
        scored_tokens=scores.num_tokens,
        cached_tokens=scores.num_cached_tokens,
    )
