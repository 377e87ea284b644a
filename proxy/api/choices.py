"""Runs the choices of a request at once, so that one that fails fails alone."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.api.errors import as_motab_error, error_body
from proxy.backends.base import Call
from proxy.engine.usage import Outcome, Usage
from proxy.errors import DeadlineExceeded, MotabError, RequestError


class ChoiceRun(Protocol):
    """One trajectory in the making; see `TrajectoryRun`."""

    @property
    def call(self) -> Call: ...

    @property
    def usage(self) -> Usage: ...

    async def run(self) -> Outcome: ...

    def abandoned(self) -> Usage: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt that made a choice: its number, from 1, and its seconds."""

    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FailedChoice:
    """A choice that came to no end, its last attempt's error, and the tokens of its prompt."""

    index: int
    error: MotabError
    prompt_tokens: int = 0


@dataclass(slots=True)
class Choices:
    """The choices of a request by index: the finished, the failed, and what was spent in vain."""

    done: dict[int, Outcome] = field(default_factory=dict)
    failed: list[FailedChoice] = field(default_factory=list)
    wasted: list[Usage] = field(default_factory=list)

    def usages(self) -> list[Usage]:
        """The cost of all choices."""
        return [*(outcome.usage for outcome in self.done.values()), *self.wasted]

    def prompt_tokens(self, n: int) -> int:
        """The tokens of all prompts, each counted once for its `n` choices, as OpenAI does."""
        finished = sorted(self.done.items(), reverse=True)
        of_prompts = {index // n: outcome.usage.prompt_tokens for index, outcome in finished}
        if not finished:  # the answer is an error, and its usage is what was spent in vain
            of_prompts = {one.index // n: one.prompt_tokens for one in self.failed}
        return sum(of_prompts.values())


@dataclass(frozen=True, slots=True)
class ChoiceRunner:
    """Makes the choices. `make` begins an attempt at one of them; `is_sent` says whether the client
    has some of its text already; every end is reported. `keep` gets a choice when its usage has
    what failed attempts at it have cost.
    """

    make: Callable[[int], ChoiceRun]
    is_sent: Callable[[int], bool]
    on_finished: Callable[[int, Outcome], None]
    on_failed: Callable[[Usage], None]
    keep: Callable[[int, Outcome, Attempt], None]
    deadline_s: float

    async def run(self, num_choices: int) -> Choices:
        """Run all choices, each within the deadline.

        One of several that fails is made once more, unless its text was sent or no other attempt
        could help, and then fails alone.
        """
        choices = Choices()
        until = asyncio.get_running_loop().time() + self.deadline_s
        if num_choices == 1:
            await self._one(0, choices, until, num_attempts=1)
        else:
            async with asyncio.TaskGroup() as group:
                for index in range(num_choices):
                    group.create_task(self._one(index, choices, until, num_attempts=2))
        choices.done = dict(sorted(choices.done.items()))
        choices.failed.sort(key=lambda failed: failed.index)
        return choices

    async def _one(self, index: int, choices: Choices, until: float, num_attempts: int) -> None:
        wasted: list[Usage] = []
        clock = asyncio.get_running_loop().time
        for attempt in range(1, num_attempts + 1):
            made, began = self.make(index), clock()
            try:
                outcome = await self._attempt(made, until)
            except Exception as error:  # noqa: BLE001 - the client gets any error
                spent = made.abandoned()
                self.on_failed(spent)
                wasted.append(spent)
                failure = as_motab_error(error)
                is_final = isinstance(failure, RequestError | DeadlineExceeded)
                if attempt == num_attempts or is_final or self.is_sent(index):
                    choices.failed.append(FailedChoice(index, failure, spent.prompt_tokens))
                    choices.wasted += wasted
                    return
            except asyncio.CancelledError:
                self.on_failed(made.abandoned())
                raise
            else:
                self.on_finished(index, outcome)
                for spent in wasted:
                    outcome.usage.add_wasted(spent)
                self.keep(index, outcome, Attempt(attempt, clock() - began))
                choices.done[index] = outcome
                return

    async def _attempt(self, made: ChoiceRun, until: float) -> Outcome:
        """Make one attempt at a choice, in its span."""
        with made.call.span as span:
            try:
                outcome = await self._before(until, made.run())
                if span.is_recording:
                    span.set(outcome.attributes())
            finally:
                if span.is_recording:
                    span.set(made.usage.attributes())
        return outcome

    async def _before(self, until: float, work: Awaitable[Outcome]) -> Outcome:
        limit = asyncio.timeout_at(until)
        try:
            async with limit:
                return await work
        except TimeoutError as error:
            if not limit.expired():
                raise
            message = f"the request took longer than {self.deadline_s:g} s"
            raise DeadlineExceeded(message) from error


def failures_of(failed: Sequence[FailedChoice]) -> dict[str, Any]:
    """The `motab` object of an answer that lacks some of its choices: each by its error."""
    return {"failed": [{"index": one.index, **error_body(one.error)} for one in failed]}
