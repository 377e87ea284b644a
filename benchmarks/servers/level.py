"""Runs plain student, motab and the published loop with a number of trajectories at once."""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from benchmarks.load import by_workers
from benchmarks.processes import PAIR, Pair, Process, Served, published_loop
from benchmarks.published_loop import Report
from benchmarks.servers.asked import Answer, ask
from benchmarks.servers.counted import tokens_computed
from benchmarks.servers.found import loop_can_ask
from benchmarks.servers.prompts import Prompt

DELIMITER: Final = "\n\n"
_WARM_UP_TOKENS: Final = 32
# Nothing strays below this threshold, so only the way to the end is compared.
_NEVER: Final = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """Texts that were written by one of the ways, and what the teacher computed meanwhile."""

    seconds: float
    answers: Sequence[Answer]
    teacher_computed: float | None
    proxy_cpu_s: float

    @property
    def num_tokens(self) -> int:
        """The tokens of all texts."""
        return sum(answer.num_tokens for answer in self.answers)

    @property
    def num_steps(self) -> int:
        """The judged steps of all texts."""
        return sum(len(answer.trace["steps"]) for answer in self.answers)

    def used(self, name: str) -> int:
        """Return the sum of a field of `usage.motab`."""
        return sum(answer.usage[name] for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Loop:
    """The published loop's texts, and what the teacher computed meanwhile."""

    report: Report
    teacher_computed: float | None

    @property
    def num_tokens(self) -> int:
        """The tokens of all texts."""
        return sum(done.num_tokens for done in self.report.done)


@dataclass(frozen=True, slots=True)
class Level:
    """All that was measured with `at_once` trajectories at once."""

    at_once: int
    plain: Part
    motab: Part
    """Without breaches, as in `published`."""
    straying: Part
    """With the threshold that makes breaches."""
    published: Loop | None
    """None where a server is of a kind that the loop cannot ask."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs levels on a pair of servers and a proxy in front of them."""

    http: aiohttp.ClientSession
    pair: Pair[Served]
    proxy: Process
    prompts: Iterator[Prompt]
    """Each is used once, because servers would find its text in their caches."""
    max_tokens: int
    base_threshold: float

    async def level(self, at_once: int, at_least: int) -> Level:
        """Write `at_once` texts at once by each way, and at least `at_least` in all."""
        num = max(at_once, at_least)
        # A server's first requests of a kind, and with a number of texts, are slow.
        await self._motab(at_once, at_once, _NEVER, _WARM_UP_TOKENS)
        plain = await self._plain(at_once, num)
        motab = await self._motab(at_once, num, _NEVER, self.max_tokens)
        published = await self._published(at_once, num)
        straying = await self._motab(at_once, num, self.base_threshold, self.max_tokens)
        return Level(at_once, plain, motab, straying, published)

    async def _plain(self, at_once: int, num: int) -> Part:
        student = self.pair.student

        async def one() -> Answer:
            prompt = next(self.prompts)
            return await ask(self.http, student.base_url, student.model, prompt, self.max_tokens)

        return await self._metered(at_once, num, one)

    async def _motab(self, at_once: int, num: int, threshold: float, max_tokens: int) -> Part:
        asked: dict[str, Any] = {"delimiter": DELIMITER, "base_threshold": threshold}
        asked["trace"] = "full"

        async def one() -> Answer:
            prompt = next(self.prompts)
            return await ask(self.http, self.proxy.base_url, PAIR, prompt, max_tokens, asked)

        return await self._metered(at_once, num, one)

    async def _metered(self, at_once: int, num: int, one: Callable[[], Awaitable[Answer]]) -> Part:
        computed, cpu_s = await self._computed(), self.proxy.cpu_s()
        started = time.perf_counter()
        answers = await by_workers(at_once, [one] * num)
        seconds = time.perf_counter() - started
        used_s = self.proxy.cpu_s() - cpu_s
        return Part(seconds, answers, _more(computed, await self._computed()), used_s)

    async def _published(self, at_once: int, num: int) -> Loop | None:
        if not loop_can_ask(self.pair):
            return None
        computed = await self._computed()
        prompts = [next(self.prompts) for _ in range(num)]
        report = await published_loop(
            self.pair,
            [prompt.student for prompt in prompts],
            teacher_prompts=[prompt.teacher for prompt in prompts],
            workers=at_once,
            delimiter=DELIMITER,
            base_threshold=_NEVER,
            max_tokens=self.max_tokens,
        )
        return Loop(report, _more(computed, await self._computed()))

    async def _computed(self) -> float | None:
        return await tokens_computed(self.http, self.pair.teacher)


def _more(before: float | None, after: float | None) -> float | None:
    """Return the difference; a counter that nothing has counted yet is absent."""
    return None if after is None else after - (before or 0.0)
