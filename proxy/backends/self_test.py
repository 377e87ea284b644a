"""The self-test: given text must get the log-probabilities that it is written by.

A wrong offset, an off-by-one or a mixed-up tokenizer gives plausible numbers and silently wrong
training data. What a model writes greedily is therefore scored as if someone else had written it.
"""

import math
from dataclasses import dataclass

from proxy.backends.base import Call, Context, Question, Reader, Scorer, Writer

TOLERANCE = 1e-2
"""Nats per token; servers sum in another order when they read than when they write."""
_PROMPT = Question(prompt="Question: What is 12 + 30?\n\nAnswer: 12 + 30 =")
_NUM_TOKENS = 24
# The smallest K that an entropy can be taken over: the self-test looks at values only.
_TOP_K = 2


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How far apart the two are: `worst` is the largest difference of a piece's mean, in nats.

    With nothing to compare, it is infinite.
    """

    num_tokens: int
    worst: float

    @property
    def passed(self) -> bool:
        """Whether the numbers can be trusted."""
        return self.worst <= TOLERANCE


async def self_test(writer: Writer, reader: Reader, scorer: Scorer, call: Call) -> SelfTest:
    """Compare the two for a short greedy continuation, token by token where text allows it.

    Raises the `UpstreamError` of whichever call fails, so also where the server cannot do one.
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
