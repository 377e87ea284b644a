"""Learns a boundary for each step from the values that right steps have at its place.

The boundary at an index is a quantile: the largest value of the right steps there below which at
most a share q of them lies, rounded down to four decimals. From the first index on, as many
consecutive indices are pooled as it takes for `LEAST_VALUES` values; what is left at the end joins
the last pool, whose boundary holds for all later steps. `threshold_rule` says what is right.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Final

from orjson import dumps
from pydantic import ConfigDict, TypeAdapter

from proxy.core.params import MOST_BOUNDARY_VALUES, Params
from synth_client.report.rescore import (
    RescoreError,
    own_thresholds,
    scored_records,
    thresholds,
)
from synth_client.report.threshold_rule import (
    Catches,
    Labelled,
    Placed,
    require_both,
    require_gain,
    require_own,
)
from trajectory_records.record import Record

LEAST_VALUES: Final = 20
SHARES: Final = tuple(Fraction(percent, 100) for percent in range(101))
"""The values of q that are tried."""
_UNIT: Final = Decimal("0.0001")
_LIST: Final = TypeAdapter(tuple[float, ...], config=ConfigDict(strict=True))


@dataclass(frozen=True, slots=True)
class StepBoundary(Catches):
    """A boundary for each step, the share q, and the numbers of wrong and right groups that it
    catches.
    """

    values: tuple[float, ...]
    share: Fraction
    num_caught: int
    num_falsely_caught: int
    num_wrong: int
    num_right: int

    @property
    def rank(self) -> tuple[int, int, Fraction]:
        """The larger, the better: the gain, then a smaller share."""
        return *self.gain, -self.share

    @property
    def params(self) -> Params:
        """The parameters with this boundary."""
        return by_step(self.values)

    def to_yaml(self) -> str:
        """Return the lines that belong into a model's `params`."""
        listed = ", ".join(f"{value:g}" for value in self.values)
        return f"boundary: quantile\nboundary_values: [{listed}]\n"


def by_step(values: Iterable[float]) -> Params:
    """Return parameters with a boundary for each step. Raises `ParameterError`, a ValueError."""
    return Params(boundary="quantile", boundary_values=tuple(values))


def parse_boundary(text: str) -> Params:
    """Read a boundary by step from a JSON list. Raises ValueError saying what would be right."""
    try:
        return by_step(_LIST.validate_json(text))
    except ValueError as error:
        most = f"1 to {MOST_BOUNDARY_VALUES} numbers from 0 to 1"
        raise ValueError(f"must be {most}, as '[0.1, 0.2]', not {text}") from error


def is_by_step(record: Record) -> bool:
    """Return whether each step of a record had a boundary of its own."""
    return record.params.get("boundary") == "quantile"


def own_boundary(record: Record) -> Params:
    """Return parameters with a record's own boundary."""
    if not is_by_step(record):
        return thresholds(*own_thresholds(record))
    try:
        return parse_boundary(dumps(record.params.get("boundary_values")).decode())
    except ValueError as error:
        raise RescoreError(f"record {record.id}: its boundary_values {error}") from error


def unlabelled_groups(records: Iterable[Record]) -> Iterator[Placed]:
    """Yield each trial record's steps as a right group, for a trial without any label.

    Raises `RescoreError` for a record that breached, and for what cannot be rescored.
    """
    for record, scored in scored_records(records, with_entropy=False):
        require_own(record, scored)
        yield Placed(0, Labelled(scored.values, scored.entropies, is_wrong=False))


def learn_by_step(placed: Sequence[Placed], share: Fraction | None = None) -> StepBoundary:
    """Return the boundary with the share q, or with the share that the rule of labels finds best
    among whole percents; of equals the one that catches fewer right groups, then the smaller.

    Raises `RescoreError` if there are too few right steps and, without a share, if only right or
    only wrong groups are there or no share catches more of the wrong than of the right groups.
    """
    num_wrong = sum(one.group.is_wrong for one in placed)
    num_right = len(placed) - num_wrong
    if share is None:
        require_both(num_wrong, num_right)
    pools = _pools(placed)
    shares = SHARES if share is None else (share,)
    ladders = [[pool.boundary(share) for share in shares] for pool in pools]
    at_index = [
        ladder for pool, ladder in zip(pools, ladders, strict=True) for _ in range(pool.num_indices)
    ]
    caught_at: defaultdict[int, Counter[bool]] = defaultdict(Counter)
    for one in placed:
        # A ladder rises with the share, so a step that one share catches, all larger ones catch.
        reached = (
            bisect_right(at_index[min(index, len(at_index) - 1)], value)
            for index, value in enumerate(one.group.values, one.first)
        )
        caught_at[min(reached, default=len(shares))][one.group.is_wrong] += 1
    found, so_far = [], Counter[bool]()
    for position, each in enumerate(shares):
        so_far.update(caught_at[position])
        values = [ladder[position] for ladder in at_index[: -pools[-1].num_indices]]
        found.append(
            StepBoundary(
                (*values, ladders[-1][position]),
                each,
                so_far[True],
                so_far[False],
                num_wrong,
                num_right,
            )
        )
    best = max(found, key=lambda one: one.rank)
    if share is None:
        require_gain(best)
    return best


def sentence_of_steps(found: StepBoundary) -> str:
    """Describe a boundary by step in a sentence."""
    num = f"{len(found.values)} values" if len(found.values) > 1 else "1 value"
    return (
        f"boundary quantile: at each step at most {float(found.share):.1%} of the right steps lie"
        f" below it; it has {num}, the last for all later steps, and catches"
        f" {found.num_caught:,} of {found.num_wrong:,} wrong and {found.num_falsely_caught:,} of"
        f" {found.num_right:,} right parts"
    )


@dataclass(frozen=True, slots=True)
class _Pool:
    """The values of right steps at consecutive indices, in ascending order and rounded down."""

    num_indices: int
    values: Sequence[float]

    def boundary(self, share: Fraction) -> float:
        """Return the largest value below which at most that share of the values lies."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


def _pools(placed: Iterable[Placed]) -> list[_Pool]:
    by_index: defaultdict[int, list[float]] = defaultdict(list)
    for one in placed:
        if not one.group.is_wrong:
            for index, value in enumerate(one.group.values, one.first):
                by_index[min(index, MOST_BOUNDARY_VALUES - 1)].append(value)
    pools: list[list[list[float]]] = [[]]
    for index in range(max(by_index, default=-1) + 1):
        if sum(map(len, pools[-1])) >= LEAST_VALUES:
            pools.append([])
        pools[-1].append(by_index[index])
    last = pools.pop()
    if sum(map(len, last)) < LEAST_VALUES and pools:
        last = pools.pop() + last
    if (num := sum(map(len, last))) < LEAST_VALUES:
        raise RescoreError(
            f"the right parts have {num} values, and a boundary by step takes at least"
            f" {LEAST_VALUES}: use more records"
        )
    return [
        _Pool(len(pool), sorted(_rounded_down(value) for values in pool for value in values))
        for pool in (*pools, last)
    ]


def _rounded_down(value: float) -> float:
    return float(Decimal(repr(value)).quantize(_UNIT, ROUND_FLOOR))
