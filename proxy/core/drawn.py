"""Runs the methods in which chance decides who writes: `imitkd` and `prefix`."""

from dataclasses import replace
from random import Random

from proxy.core.params import Params
from proxy.core.relay import Relay
from proxy.core.types import Author, Command, Event, Scored, Step, WriteEnded, Wrote
from proxy.core.verdict import unscored


class ImitKdMonitor(Relay):
    """The teacher writes step t, counted from 0, if draw t is below beta, else the student does.

    Draw t is the t-th `random()` of Python's Mersenne Twister, started with the seed modulo 2^64.
    Steps in a row by one author are one stretch.
    """

    def __init__(self, params: Params, seed: int) -> None:
        super().__init__(params)
        self._random = Random(seed % 2**64)  # noqa: S311 - it must be repeatable
        self._authors: list[Author] = []

    def start(self) -> list[Command]:
        return self._pass_on()

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Wrote(write_id) if self._is_current(write_id):
                return self._wrote(event)
            case WriteEnded(write_id, reason):
                self._open.discard(write_id)
                return self._ended(reason) if self._is_current(write_id) else []
            case Scored():
                raise ValueError("method imitkd asks for no scores")
            case Wrote(write_id):  # more than was requested, or the rest of a halted write
                return self._halt(write_id)

    def _pass_on(self) -> list[Command]:
        first = len(self._kept)
        author = self._author(first)
        return [self._begin(author, lambda num: self._author(first + num) != author)]

    def _author(self, index: int) -> Author:
        while len(self._authors) <= index:
            by_teacher = self._random.random() < self._params.beta
            self._authors.append("teacher" if by_teacher else "student")
        return self._authors[index]


class PrefixMonitor(Relay):
    """The student writes to its end or cap; one of its n steps is drawn, and the teacher continues
    from the context before that step, to its own end or the remaining budget.

    The step's index, from 0, is floor(n r), with r the first `random()` of Python's Mersenne
    Twister, started with the seed modulo 2^64: each step is equally likely, and the teacher writes
    at least the drawn step. If the student wrote nothing, the teacher writes everything.
    """

    _DRAFT = 0

    def __init__(self, params: Params, seed: int) -> None:
        # A step cap bounds the text that waits for a score; here nothing is scored.
        super().__init__(replace(params, max_step_tokens=params.max_total_tokens + 1))
        self._random = Random(seed % 2**64)  # noqa: S311 - it must be repeatable
        self._drafted: list[Step] = []

    def start(self) -> list[Command]:
        return [self._begin("student", _never)]

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Wrote(self._DRAFT, pieces) if self._is_current(self._DRAFT):
                self._drafted += self._stretch.take(pieces).steps
                return self._pass_on() if self._stretch.is_exhausted else []
            case Wrote(write_id) if self._is_current(write_id):
                return self._wrote(event)
            case WriteEnded(write_id, reason):
                self._open.discard(write_id)
                if not self._is_current(write_id):
                    return []
                if write_id != self._DRAFT:
                    return self._ended(reason)
                self._drafted += self._stretch.close()
                return self._pass_on()
            case Scored():
                raise ValueError("method prefix asks for no scores")
            case Wrote(write_id):  # more than was requested, or the rest of a halted write
                return self._halt(write_id)

    def _pass_on(self) -> list[Command]:
        num_kept = int(len(self._drafted) * self._random.random())
        for step in self._drafted[:num_kept]:
            self._keep(unscored(step, "student"))
        emit: list[Command] = [self._emit("".join(self._kept))] if self._kept else []
        return [*emit, self._begin("teacher", _never)]


def _never(_num_steps: int) -> bool:
    return False
