"""Decisions from vLLM's prefix cache are the plain loop's, whatever happens to that cache."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.backends.base import Call, Context, Segment
from proxy.backends.servers.vllm import Vllm
from proxy.backends.servers.vllm_cached import CachedVllm
from proxy.backends.transport.calls import Calls
from proxy.backends.transport.http import UpstreamClient, request_bytes
from proxy.core.types import Score, Scored
from tests.property.test_monitor_equals_sequential import (
    Case,
    Teacher,
    World,
    cases,
    run_and_compare,
)
from tests.support.cases import num_cases
from tests.support.servers.vllm_v2 import Accident, VllmV2, state_entropy, value

ACCIDENTS: tuple[Accident, ...] = (
    "preempted",
    "recounted",
    "nan",
    "nan_row",
    "other_row",
    "no_rows",
)
FOLLOWER = 81


@dataclass
class ServedTeacher(Teacher):
    """The miniature server's model; a token is a character."""

    num_prompt: int

    def ids(self, text: str) -> list[int]:
        return [*range(5000 + self.seed, 5000 + self.seed + self.num_prompt), *map(ord, text)]

    def value(self, context: str, step: str) -> float:
        ids = self.ids(context + step)
        return value(ids, len(ids) - len(step), len(ids))

    def entropy(self, context: str) -> float:
        return state_entropy(self.ids(context))


class DirectClient(UpstreamClient):
    """Calls a server without a network: `served` gives its answer to the body of a path."""

    def __init__(self, served: Callable[[str, Any], Any]) -> None:
        Calls.__init__(self, "up", lambda *_: None)
        self._served = served

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        call: Call,
        check: Callable[[Any], None] = lambda _reply: None,
        loads: object = None,
    ) -> Any:
        del call, check, loads
        return self._served(path, orjson.loads(request_bytes(body)))


class CachedWorld(World):
    """Scores by the cached way, between accidents that `choose` decides."""

    def __init__(
        self,
        case: Case,
        teacher: ServedTeacher,
        choose: Callable[[int], int],
        runner: asyncio.Runner,
    ) -> None:
        super().__init__(case, choose)
        self.teacher = teacher
        self.server = VllmV2(block=1 + choose(6))
        client = DirectClient(self._served)
        self.scorer = CachedVllm(Vllm(client, "t", None, FOLLOWER), client, "t")
        self.runner = runner

    def _served(self, path: str, body: Any) -> Any:
        status, reply = self.server.post(path, body)
        assert status == 200
        return reply

    def answer(self, score: Score) -> Scored:
        self.num_scored += score.num_new
        ids = self.teacher.ids("".join(score.steps))
        self._have_an_accident(ids)
        prompt = Segment("", tuple(self.teacher.ids("")))
        context = Context(prompt, [Segment(s, tuple(map(ord, s))) for s in score.steps])
        scores = self.runner.run(
            self.scorer.score(
                context, score.num_new, 20, Call("t"), entropy_known=score.entropy_known
            )
        )
        self.server.accidents.clear()
        return Scored(scores.steps, scores.next_entropy if self.choose(2) else None)

    def _have_an_accident(self, ids: Sequence[int]) -> None:
        match self.choose(6):
            case 0:
                self.server.evict()
            case 1:  # another request left the beginning of this text there, or all of it
                self.server.read(ids[: 1 + self.choose(len(ids))])
            case 2:
                self.server.accidents = [ACCIDENTS[self.choose(len(ACCIDENTS))]]


@settings(max_examples=num_cases(2_000))
@given(case=cases(), num_prompt=st.integers(1, 20), timing=st.randoms(use_true_random=False))
def test_any_accident_of_the_cache_gives_the_sequential_result(
    case: Case, num_prompt: int, timing: object
) -> None:
    teacher = ServedTeacher(case.teacher.seed, case.teacher.levels, num_prompt)
    case.teacher = teacher
    with asyncio.Runner() as runner:
        choices = timing.randrange  # type: ignore[attr-defined]
        run_and_compare(CachedWorld(case, teacher, choices, runner))
