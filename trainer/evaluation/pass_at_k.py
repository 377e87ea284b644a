"""Estimates pass@k without bias, and how far the estimate can be trusted."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean
from typing import Final


@dataclass(frozen=True, slots=True)
class Interval:
    """The method for intervals, which cover both the choice of problems and the luck of samples."""

    method: str = "percentile bootstrap over problems"
    level: float = 0.95
    num_resamples: int = 2000
    seed: int = 0


INTERVAL: Final = Interval()


@dataclass(frozen=True, slots=True)
class Outcome:
    """`c` of the `n` judged samples of a problem are right."""

    n: int
    c: int


@dataclass(frozen=True, slots=True)
class PassAtK:
    """The mean of pass@k, between 0 and 1, over the problems with at least k judged samples.

    `value` is None without such a problem; `low` and `high` are None for fewer than two.
    """

    k: int
    value: float | None
    low: float | None
    high: float | None
    num_problems: int


@dataclass(frozen=True, slots=True)
class Weighted:
    """A value and its weight in a mean."""

    value: float
    weight: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted mean. `low` and `high` are None for fewer than two values, `value` for none."""

    value: float | None
    low: float | None
    high: float | None


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that k of the n samples, drawn without replacement, include a right one.

    Unbiased for the chance that k new samples include one: 1 - C(n-c, k) / C(n, k) (Chen et al.
    2021, arXiv 2107.03374, eq. 1). Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples cannot be right")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    return 1 - comb(n - c, k) / comb(n, k)


def estimate(outcomes: Sequence[Outcome], k: int, interval: Interval = INTERVAL) -> PassAtK:
    """Return pass@k over problems, with its interval."""
    chances = [pass_at_k(one.n, one.c, k) for one in outcomes if one.n >= k]
    if not chances:
        return PassAtK(k, None, None, None, 0)
    value = fmean(chances)
    if len(chances) == 1:
        return PassAtK(k, value, None, None, 1)
    low, high = middle(_resampled(chances, interval), interval)
    return PassAtK(k, value, low, high, len(chances))


def weighted_mean(values: Sequence[Weighted], interval: Interval = INTERVAL) -> Mean:
    """Return the mean of a score over problems, with its interval. Every weight is above 0."""
    if not values:
        return Mean(None, None, None)
    value = _ratio(Counter(values))
    if len(values) == 1:
        return Mean(value, None, None)
    draw = random.Random(interval.seed)  # noqa: S311 - nothing secret
    means = [
        _ratio(Counter(draw.choices(values, k=len(values)))) for _ in range(interval.num_resamples)
    ]
    return Mean(value, *middle(means, interval))


def _ratio(drawn: Counter[Weighted]) -> float:
    # In a fixed order, whatever was drawn first, because sums of floats depend on it.
    counts = sorted(drawn.items(), key=lambda item: (item[0].value, item[0].weight))
    total = sum(one.value * one.weight * num for one, num in counts)
    return total / sum(one.weight * num for one, num in counts)


def middle(means: list[float], interval: Interval) -> tuple[float, float]:
    """Return the ends of the interval's level in the middle of the resampled means."""
    means = sorted(means)
    num_outside = int((1 - interval.level) / 2 * len(means))
    return means[num_outside], means[-1 - num_outside]


def _resampled(chances: Sequence[float], interval: Interval) -> list[float]:
    draw = random.Random(interval.seed)  # noqa: S311 - nothing secret
    means = []
    for _ in range(interval.num_resamples):
        # Few chances are distinct, so most of the work is the drawing itself.
        drawn = Counter(draw.choices(chances, k=len(chances)))
        total = sum(chance * num for chance, num in sorted(drawn.items()))
        means.append(total / len(chances))
    return means


def default_ks(num_samples: int) -> tuple[int, ...]:
    """Return those of 1, 4 and 8 that as many samples of a problem can estimate."""
    return tuple(k for k in (1, 4, 8) if k <= num_samples)
