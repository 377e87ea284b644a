"""A text under one model, token by token: the answers and the refusals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from proxy.backends.base import Call, Context, Question, ScoredToken, TokenScorer
from proxy.core.thinking import Bridge, Reasoning
from proxy.engine.given_text import TextLogprobs, score_tokens
from proxy.engine.model_context import ModelContext
from proxy.errors import RequestError, UpstreamMalformed
from tests.support.scripted import ScriptedBackend, upstream

CALL = Call("one")
TEXT = "é🚀b"


@dataclass
class Teller(ScriptedBackend):
    """Tells these tokens of any text."""

    tokens: Sequence[ScoredToken] = ()

    async def token_logprobs(self, context: Context, call: Call) -> tuple[ScoredToken, ...]:
        del context, call
        return tuple(self.tokens)


async def told(
    *tokens: tuple[int, float | None], text: str = TEXT, bridge: Bridge | None = None
) -> TextLogprobs:
    teller = Teller(tokens=[ScoredToken(end, logprob) for end, logprob in tokens])
    bridge = bridge or Bridge(Reasoning(), Reasoning())
    reads = ModelContext(upstream("teacher", teller), bridge, Question(prompt="Q"), CALL)
    return await score_tokens(reads, teller, text, CALL)


def test_a_judge_tells_no_tokens() -> None:
    assert isinstance(Teller(), TokenScorer)
    assert not isinstance(ScriptedBackend(), TokenScorer)


async def test_ends_count_whole_characters() -> None:
    # The rocket's four bytes come in two tokens.
    found = await told((2, -1.0), (4, -2.0), (6, -0.5), (7, 0.0))
    assert found.ends == (1, 1, 2, 3)
    assert found.logprobs == (-1.0, -2.0, -0.5, 0.0)


async def test_a_certain_token_may_come_out_a_little_above_0() -> None:
    assert (await told((7, 1e-6))).logprobs == (0.0,)


@pytest.mark.parametrize("logprob", [None, math.nan, 0.5])
async def test_a_missing_or_impossible_log_probability_is_the_servers_fault(
    logprob: float | None,
) -> None:
    with pytest.raises(UpstreamMalformed, match="log-probability 1 of the text"):
        await told((2, -1.0), (7, logprob))


async def test_a_probability_of_0_has_no_logarithm() -> None:
    with pytest.raises(RequestError, match="token 1 of the text the probability 0") as caught:
        await told((2, -1.0), (7, -math.inf))
    assert caught.value.param == "text"


async def test_an_empty_text_has_no_tokens() -> None:
    with pytest.raises(RequestError, match="text is empty"):
        await told(text="")


async def test_a_text_that_the_model_reads_otherwise_is_refused() -> None:
    bridge = Bridge(Reasoning("think"), Reasoning("harmony"))
    with pytest.raises(RequestError, match="in a format of its own"):
        await told((7, -1.0), text="<think>\nHm.\n</think>\n\nYes.", bridge=bridge)
