"""Schedules for the property tests: every one of the product, and one that knows no reason."""

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.lookahead import AT_ONCE, Schedule, is_worth_a_call


@dataclass
class Whim:
    """Scores when chance will have it."""

    choose: Callable[[int], int]

    def is_due(self, num_waiting: int) -> bool:
        del num_waiting
        return self.choose(4) == 0


@dataclass
class Weighed:
    """The rule for servers that compute the whole context, at prices that change all the time."""

    choose: Callable[[int], int]

    def is_due(self, num_waiting: int) -> bool:
        hazard, price = self.choose(10) / 50, self.choose(10) / 10
        return is_worth_a_call(self.choose(100), num_waiting, hazard, price)


class Never:
    """Only the end of the text, and the limit of the look-ahead, make it score."""

    def is_due(self, num_waiting: int) -> bool:
        del num_waiting
        return False


def any_schedule(choose: Callable[[int], int]) -> Schedule:
    schedules: list[Schedule] = [AT_ONCE, Whim(choose), Weighed(choose), Never()]
    return schedules[choose(4)]


def any_limit(choose: Callable[[int], int]) -> int:
    """For `max_lookahead_tokens`."""
    return [1, 2, 5, 12, 4096][choose(5)]
