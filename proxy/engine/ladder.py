"""Scores by the first way of the fallback ladder that makes sense of the steps."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.backends.base import Call, Context, Scorer, Scores
from proxy.core.types import Scoring
from proxy.errors import UpstreamMalformed
from proxy.tracing.attributes import CACHED_TOKENS, INPUT_TOKENS

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LadderScores:
    """Scores, and the way in which they were obtained."""

    scores: Scores
    scoring: Scoring


async def score_by_ladder(
    scorers: Sequence[Scorer],
    context: Context,
    num_new: int,
    top_k: int,
    call: Call,
    *,
    entropy_known: bool,
) -> LadderScores:
    """Score the last `num_new` steps of `context` by the first of `scorers`, best first.

    The next is asked only if an answer of the one before made no sense; the last one's error is
    raised.
    """
    *first, last = scorers
    for scorer in first:
        try:
            scores = await scorer.score(context, num_new, top_k, call, entropy_known=entropy_known)
        except UpstreamMalformed as error:
            _log.warning("%s; the next way of scoring is asked", error)
        else:
            break
    else:
        scorer = last
        scores = await last.score(context, num_new, top_k, call, entropy_known=entropy_known)
    scoring = scores.scoring or scorer.scoring
    call.span.set(
        {
            "motab.scoring": scoring,
            "motab.num_steps": num_new,
            "motab.scored_tokens": scores.num_tokens,
            # None where nothing is counted: a prompt has tokens.
            INPUT_TOKENS: len(context.token_ids) or None,
            CACHED_TOKENS: scores.num_cached_tokens,
        }
    )
    return LadderScores(scores, scoring)
