"""Runs a trajectory over scripted models, and keeps what an observer sees."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.backends.base import Call, Message, Question, Sampling
from proxy.core.params import Params
from proxy.core.types import Notice
from proxy.engine.pair import Pair
from proxy.engine.runner import TrajectoryRun
from proxy.engine.usage import Outcome
from tests.support.patience import PATIENCE_S
from tests.support.scripted import ScriptedBackend, pair

QUESTION = Question(messages=(Message("user", "Q"),))
PROMPT = "<user>Q<answer>"
# Tokens: the delimiter arrives split, and one token straddles two steps.
A, B, C = "A a.\n\n", "B b.\n\n", "C c.\n\n"
STUDENT = ("A", " a", ".\n", "\n", "B b", ".\n\nC", " c.", "\n\n")


@dataclass
class Observed:
    texts: list[str] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def text(self, text: str) -> None:
        self.texts.append(text)

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)


def run_of(pair_: Pair, observer: Observed | None = None, **params: Any) -> TrajectoryRun:
    return TrajectoryRun(
        pair=pair_,
        question=QUESTION,
        params=Params(**params),
        sampling=Sampling(0.7, 0.9, seed=5),
        call=Call("r-0"),
        observer=observer or Observed(),
        scorer=pair_.of("teacher").scorer("auto") if Params(**params).scores else None,
    )


async def outcome_of(
    student: ScriptedBackend, teacher: ScriptedBackend, **params: Any
) -> tuple[Outcome, Observed]:
    observed = Observed()
    async with asyncio.timeout(PATIENCE_S):
        outcome = await run_of(pair(student, teacher), observed, **params).run()
    assert "".join(observed.texts) == outcome.trajectory.text
    return outcome, observed


async def error_of(
    student: ScriptedBackend, teacher: ScriptedBackend, **params: Any
) -> tuple[Exception, Observed]:
    observed = Observed()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
        async with asyncio.timeout(PATIENCE_S):
            await run_of(pair(student, teacher), observed, **params).run()
    return caught.value, observed


def spans_of(outcome: Outcome) -> list[tuple[str, str]]:
    text = outcome.trajectory.text
    return [(span.role, text[span.start : span.end]) for span in outcome.trajectory.spans]
