"""Compares answers to the same problems, and says how small a difference could be seen."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Final

from trainer.evaluation.pass_at_k import Interval, middle

PAIRED: Final = Interval(method="percentile bootstrap over problems and seeds, paired")
# A difference of 1.96 + 0.84 standard errors is found at the 5% level in 80% of the cases.
_STANDARD_ERRORS: Final = 2.8

Rates = Mapping[int, Mapping[str, float]]
"""By seed and by problem: the share of the answers that are right."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of one set's rates minus the other's, with an interval and a standard error.

    `low`, `high` and `error` are None for fewer than two problems.
    """

    mean: float
    low: float | None
    high: float | None
    error: float | None

    @property
    def smallest(self) -> float | None:
        """The smallest difference that would be found in 80% of the cases, at the 5% level."""
        return None if self.error is None else _STANDARD_ERRORS * self.error


def difference(ours: Rates, theirs: Rates, interval: Interval = PAIRED) -> Difference | None:
    """Return the mean difference over the seeds that both have, and over the problems that both
    have under each of them; None if there are none.

    Problems are drawn with replacement, and so are seeds; a drawn problem counts for all drawn
    seeds, because they were asked the same problems.
    """
    rows = [
        {name: rate - theirs[seed][name] for name, rate in rates.items() if name in theirs[seed]}
        for seed, rates in ours.items()
        if seed in theirs
    ]
    names = sorted(set.intersection(*map(set, rows))) if rows else []
    if not names:
        return None
    mean = _mean(rows, names)
    if len(names) == 1:
        return Difference(mean, None, None, None)
    draw = random.Random(interval.seed)  # noqa: S311 - nothing secret
    means = [
        _mean(draw.choices(rows, k=len(rows)), draw.choices(names, k=len(names)))
        for _ in range(interval.num_resamples)
    ]
    return Difference(mean, *middle(means, interval), pstdev(means))


def _mean(rows: list[dict[str, float]], names: list[str]) -> float:
    return fmean(row[name] for row in rows for name in names)
