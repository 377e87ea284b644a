"""How much may be under way at once: at each upstream, and in the whole server."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from proxy.backends.base import MarkupReader, Reader, Scorer, Writer
from proxy.core.reasoning import Reasoning
from proxy.core.types import Scoring
from proxy.engine.pace import ComputingSpeed, WritingSpeed
from proxy.errors import Draining, OverCapacity, RequestError, ScoringUnavailable


@dataclass(slots=True)
class Upstream:
    """A server and its limit. Writing and scoring are counted apart, each up to `max_concurrent`,
    so that long drafts cannot keep the short scoring calls waiting; waiters are served in order.
    """

    name: str
    reader: Reader
    writer: Writer
    scorers: tuple[Scorer, ...]
    """The ways to score that its server offers, best first."""
    max_concurrent: int
    reasoning: Reasoning | None = None
    """How its model's text opens a thought; None where that is not known."""
    markup: MarkupReader | None = None
    """`reader`, where it knows special tokens; None: the model reads the text as it is."""
    writes_logprobs: Literal["no", "yes", "scaled"] = "no"
    """Whether its text can come with log-probabilities; `scaled`: by the sampling temperature."""
    why_not: Mapping[Scoring, str] = field(default_factory=dict)
    """Why a way that such servers may have is not among the scorers."""
    gpus: float = 1.0
    """What a second of its server costs beside one of another's."""
    writing: asyncio.Semaphore = field(init=False)
    scoring: asyncio.Semaphore = field(init=False)
    writing_speed: WritingSpeed = field(init=False, default_factory=WritingSpeed)
    computing_speed: ComputingSpeed = field(init=False, default_factory=ComputingSpeed)

    def __post_init__(self) -> None:
        self.writing = asyncio.Semaphore(self.max_concurrent)
        self.scoring = asyncio.Semaphore(self.max_concurrent)

    def scorer(self, way: Scoring | Literal["auto"]) -> Scorer:
        """The scorer of that rung, or the best one. Raises `ScoringUnavailable`."""
        for scorer in self.scorers:
            if way in {"auto", scorer.scoring}:
                return scorer
        ways = ", ".join(scorer.scoring for scorer in self.scorers) or "none"
        wanted = "no way to score" if way == "auto" else f"no '{way}'"
        reasons = "".join(f"; no '{lost}': {why}" for lost, why in self.why_not.items())
        raise ScoringUnavailable(f"upstream '{self.name}' has {wanted}; it has: {ways}{reasons}")


class Admission:
    """Counts the trajectories under way; turns away what is too much, and all while draining."""

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self.num_active = 0
        self.draining = False

    @contextmanager
    def admit(self, num_trajectories: int) -> Iterator[None]:
        """Raises `OverCapacity`, `Draining`, or `RequestError` where it could never fit."""
        if self.draining:
            raise Draining("the server is shutting down")
        if num_trajectories > self._max_concurrent:
            message = f"n = {num_trajectories} is more than this server runs at once"
            raise RequestError(f"{message} ({self._max_concurrent})", param="n")
        if self.num_active + num_trajectories > self._max_concurrent:
            message = f"{self.num_active} of {self._max_concurrent} trajectories are under way"
            raise OverCapacity(message)
        self.num_active += num_trajectories
        try:
            yield
        finally:
            self.num_active -= num_trajectories
