"""Runs method `imitkd` as a state machine: a coin decides who writes the next step."""

from random import Random

from proxy.core.params import Params
from proxy.core.relay import Relay
from proxy.core.types import Author, Command, Event, Scored, WriteEnded, Wrote


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
