"""Schedules for the property tests: every one of the product, and one that knows no reason."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.lookahead import AT_ONCE, Schedule, is_worth_a_call, worth_writing


@dataclass
class Whim:
    """Scores, and lets the student wait, when chance will have it."""

    choose: Callable[[int], int]

    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        del num_waiting, num_steps
        return self.choose(4) == 0

    def sent(self, num_tokens: int) -> float:
        del num_tokens
        return [0, 1, 5, math.inf][self.choose(4)]

    def answered(self) -> None:
        pass


@dataclass
class Weighed(Whim):
    """The rules of the product, at prices and speeds that change all the time."""

    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        del num_steps
        hazard, price = self.choose(10) / 50, self.choose(10) / 10
        return is_worth_a_call(self.choose(100), num_waiting, hazard, price)

    def sent(self, num_tokens: int) -> float:
        del num_tokens
        return worth_writing(self.choose(50), self.choose(30) / 10, (1 + self.choose(9)) / 50, 0.5)


class Never(Whim):
    """Only the end of the text, and the limit of the look-ahead, make it score."""

    def is_due(self, num_waiting: int, num_steps: int) -> bool:
        del num_waiting, num_steps
        return False


def any_schedule(choose: Callable[[int], int]) -> Schedule:
    schedules: list[Schedule] = [AT_ONCE, Whim(choose), Weighed(choose), Never(choose)]
    return schedules[choose(4)]


def any_limit(choose: Callable[[int], int]) -> int:
    """For `max_lookahead_tokens`."""
    return [1, 2, 5, 12, 4096][choose(5)]
