"""Decisions by a scorer's values are the plain loop's with the same values."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.backends.base import Call, Message, Question
from proxy.backends.judges.http_scorer import HttpScorer
from proxy.core.types import Score, Scored
from proxy.engine.pair import Pair
from proxy.engine.upstream import Upstream
from tests.property.test_cached_equals_sequential import DirectClient
from tests.property.test_monitor_equals_sequential import Case, World, cases, run_and_compare
from tests.support.cases import num_cases
from tests.support.servers.own_scorer import values_of

MESSAGES = [{"role": "user", "content": "Q"}]
QUESTION = Question(tuple(Message(**message) for message in MESSAGES))


class ScoredWorld(World):
    """Scores as the runner does, by a context that is kept from call to call."""

    def __init__(self, case: Case, choose: Callable[[int], int], runner: asyncio.Runner) -> None:
        super().__init__(case, choose)
        self.scorer = HttpScorer(DirectClient(self._served))
        server = Upstream("scorer", self.scorer, self.scorer, (self.scorer,), 1)
        pair = Pair(server, None, scorer=server)
        self.context = pair.context(pair.scored_by(self.scorer), QUESTION, Call("t"))
        self.runner = runner
        self.asked: list[str] = []

    def _served(self, path: str, body: Any) -> Any:
        assert (path, body["messages"]) == ("/score_steps", MESSAGES)
        self.asked = body["steps"]
        return orjson.loads(orjson.dumps({"values": values_of(body, self.case.teacher.value)}))

    def answer(self, score: Score) -> Scored:
        self.num_scored += score.num_new
        return self.runner.run(self._scored(score))

    async def _scored(self, score: Score) -> Scored:
        context = await self.context.at(score.steps)
        known = score.entropy_known
        found = await self.scorer.score(context, score.num_new, 20, Call("t"), entropy_known=known)
        assert self.asked == list(score.steps)
        return Scored(found.steps, found.next_entropy)


@settings(max_examples=num_cases(1_000))
@given(case=cases(), timing=st.randoms(use_true_random=False))
def test_any_timing_and_chunking_gives_the_plain_loops_result(case: Case, timing: object) -> None:
    case.setting = replace(case.setting, adaptive=False)
    with asyncio.Runner() as runner:
        choices = timing.randrange  # type: ignore[attr-defined]
        run_and_compare(ScoredWorld(case, choices, runner))
