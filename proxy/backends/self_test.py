"""Tests a server's scoring: a text must get the log-probabilities with which it was written.

A wrong offset, an off-by-one or a mixed-up tokenizer gives plausible numbers and silently wrong
training data. A model's own greedy text is therefore scored as if someone else had written it.
"""

import math
from dataclasses import dataclass

from proxy.backends.base import Call, Context, Question, Reader, Scorer, Writer

TOLERANCE = 1e-2
"""Nats per token; servers sum in a different order when they read than when they write."""
_PROMPT = Question(prompt="Question: What is 12 + 30?\n\nAnswer: 12 + 30 =")
_NUM_TOKENS = 24
# The smallest K of an entropy: the self-test compares values only.
_TOP_K = 2


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The outcome: `worst` is the largest difference of a piece's mean, in nats per token.

    With nothing to compare, it is infinite.
    """

    num_tokens: int
    worst: float

    @property
    def passed(self) -> bool:
        """Return whether the scores can be trusted."""
        return self.worst <= TOLERANCE


async def self_test(writer: Writer, reader: Reader, scorer: Scorer, call: Call) -> SelfTest:
    """Compare writing and scoring on a short greedy continuation, token by token if possible.

    Raises the `UpstreamError` of the call that fails, also if the server does not support it.
    """
    context = Context(await reader.render(_PROMPT, call), question=_PROMPT)
    decoded = await writer.decode(context, _NUM_TOKENS, call)
    for piece in decoded.pieces:
        context.append(piece)
    num = len(decoded.pieces)
    if num == 0:
        return SelfTest(0, math.inf)
    scores = await scorer.score(context, num, _TOP_K, call, entropy_known=False)
    worst = 0.0
    for written, read in zip(decoded.logprobs, scores.steps, strict=True):
        mean = math.fsum(written) / len(written)
        value = -math.inf if read.value == 0.0 else math.log(read.value)
        difference = 0.0 if mean == value else abs(mean - value)
        # NaN is never small.
        worst = math.inf if math.isnan(difference) else max(worst, difference)
    return SelfTest(sum(map(len, decoded.logprobs)), worst)
