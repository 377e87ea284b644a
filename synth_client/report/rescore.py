"""Judges records again under other thresholds, from the values and entropies that they hold.

The rules are the proxy's own (`proxy.core`). Only steps up to the first breach are judged: nothing
after it was scored or, in a trajectory of several rounds, it follows a correction that other
thresholds may not have asked for. So a trajectory that passes all these steps under other
thresholds is settled only if it had no breach; otherwise it may breach later or not at all, and
counts as open.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from proxy.core.boundary import boundary
from proxy.core.credit import bifurcation
from proxy.core.params import Params
from proxy.core.types import JUDGES, NO_PROBABILITIES
from synth_client.errors import ClientError
from trajectory_records.record import Record

# Within one table, all records must share the meaning of a step and of its numbers.
_SHARED: Final = ("delimiter", "entropy_top_k", "max_step_tokens", "backtrack", "boundary")
METHOD: Final = "motab"
"""The one method with thresholds."""


class RescoreError(ClientError):
    """Records lack what rescoring needs, or no threshold gives the wanted breach rate."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The scored steps of a record's first round, in order, each with V, H and tokens.

    An entropy is None if the teacher's server gave none, as it may under a static boundary.
    """

    values: tuple[float, ...]
    entropies: tuple[float | None, ...]
    tokens: tuple[int, ...]
    is_open: bool
    """The last step was the breach, and the text after it was not scored."""
    backtracks: bool
    """The teacher goes back to t*, not only to the breach."""
    is_continued: bool = False
    """The student wrote again after the breach's correction, in further rounds."""


@dataclass(frozen=True, slots=True)
class RescoredOutcome:
    """A trajectory under other thresholds.

    `breach` and `bifurcation` are None without a breach in the stored steps; the trajectory is then
    open (`is_open`) or settled. `accepted_tokens` counts the student's tokens before t*, or all of
    them; it is a lower bound if the trajectory is open.
    """

    breach: int | None
    bifurcation: int | None
    is_open: bool
    accepted_tokens: int


def outcome_of(scored: Scored, params: Params) -> RescoredOutcome:
    """Judge the stored steps under the thresholds of `params` (Eq. 6 to 8).

    Raises ValueError if the boundary is adaptive and an entropy is missing.
    """
    boundaries: list[float] = []
    for index, (value, entropy) in enumerate(zip(scored.values, scored.entropies, strict=True)):
        boundaries.append(boundary(entropy, params, index))
        if value < boundaries[-1]:
            cut = index
            if scored.backtracks:
                cut = bifurcation(scored.values[: index + 1], boundaries)
            return RescoredOutcome(
                index, cut, is_open=False, accepted_tokens=sum(scored.tokens[:cut])
            )
    kept = len(scored.values)
    if scored.is_open and scored.backtracks:
        # A later breach may lead back to the steepest fall so far, but to no earlier step.
        kept = max(bifurcation(scored.values, boundaries), 1)
    return RescoredOutcome(None, None, scored.is_open, sum(scored.tokens[:kept]))


def thresholds(base_threshold: float, entropy_scale: float) -> Params:
    """Return parameters with eps_0 and theta; theta 0 makes a static boundary, without entropy."""
    return Params(
        base_threshold=base_threshold,
        entropy_scale=entropy_scale,
        boundary="adaptive" if entropy_scale else "static",
    )


@dataclass(slots=True)
class Row:
    """All trajectories under the boundary of `params`."""

    params: Params
    num_trajectories: int = 0
    num_open: int = 0
    num_continued: int = 0
    """Trajectories with further rounds, which are not judged again."""
    depths: Counter[int] = field(default_factory=Counter)
    """Breach minus bifurcation, over the known breaches."""
    accepted_tokens: int = 0
    student_tokens: int = 0
    """The number of tokens in the scored steps."""

    def add(self, scored: Scored) -> None:
        """Add a trajectory."""
        outcome = outcome_of(scored, self.params)
        self.num_trajectories += 1
        self.num_open += outcome.is_open
        self.num_continued += scored.is_continued
        self.accepted_tokens += outcome.accepted_tokens
        self.student_tokens += sum(scored.tokens)
        if outcome.breach is not None and outcome.bifurcation is not None:
            self.depths[outcome.breach - outcome.bifurcation] += 1

    @property
    def base_threshold(self) -> float:
        return self.params.base_threshold

    @property
    def entropy_scale(self) -> float:
        return self.params.entropy_scale

    @property
    def num_breached(self) -> int:
        return self.depths.total()

    @property
    def lowest_rate(self) -> float:
        """The breach rate if no open trajectory breaches."""
        return self.num_breached / self.num_trajectories

    @property
    def highest_rate(self) -> float:
        """The breach rate if every open trajectory breaches."""
        return (self.num_breached + self.num_open) / self.num_trajectories

    @property
    def mean_depth(self) -> float | None:
        if not self.depths:
            return None
        return sum(depth * num for depth, num in self.depths.items()) / self.num_breached

    @property
    def accepted_share(self) -> float:
        """The share of the student's scored tokens; a lower bound if trajectories are open."""
        return self.accepted_tokens / self.student_tokens if self.student_tokens else 0.0


def first_to_rescore(records: Iterable[Record]) -> Record | None:
    """Return the first record of MOTAB; the first of all if there is none."""
    first: Record | None = None
    for record in records:
        if record.method == METHOD:
            return record
        first = first or record
    return first


def of_method(method: str, records: Iterable[Record], others: Counter[str]) -> Iterator[Record]:
    """Yield the records of one method, and count the others by theirs."""
    for record in records:
        if record.method == method:
            yield record
        else:
            others[record.method] += 1


def scored_steps(records: Iterable[Record], *, with_entropy: bool) -> Iterator[Scored]:
    """Yield the scored steps of each record; see `scored_records`."""
    return (scored for _, scored in scored_records(records, with_entropy=with_entropy))


def scored_records(
    records: Iterable[Record], *, with_entropy: bool
) -> Iterator[tuple[Record, Scored]]:
    """Yield each record with its scored steps; entropies only matter if theta is not 0.

    Raises `RescoreError` for a record without scores, and for a record whose steps and numbers
    mean something else than the first record's.
    """
    first: Record | None = None
    for record in records:
        first = first or record
        _check_same(first, record)
        yield record, _scored_of(record, with_entropy=with_entropy)


def own_thresholds(record: Record) -> tuple[float, float]:
    """Return eps_0 and theta of a record that has such; theta is 0 if its boundary was static."""
    found = []
    for name in ("base_threshold", "entropy_scale"):
        number = record.params.get(name)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise RescoreError(f"record {record.id}: its params do not hold {name}")
        found.append(float(number))
    base_threshold, entropy_scale = found
    return base_threshold, 0.0 if record.params.get("boundary") == "static" else entropy_scale


def rescore(steps: Iterable[Scored], pairs: Iterable[tuple[float, float]]) -> list[Row]:
    """Return a row for each pair of eps_0 and theta, over all trajectories.

    Raises as `rescore_under` does, and `ParameterError` (a ValueError) for a threshold out of
    bounds.
    """
    return rescore_under(steps, [thresholds(*pair) for pair in pairs])


def rescore_under(steps: Iterable[Scored], boundaries: Iterable[Params]) -> list[Row]:
    """Return a row for each boundary. Raises `RescoreError` if there are no trajectories."""
    rows = [Row(params) for params in boundaries]
    for scored in steps:
        for row in rows:
            row.add(scored)
    if rows and not rows[0].num_trajectories:
        raise RescoreError("there are no records to rescore")
    return rows


def lowest_limit(
    values: Sequence[float], entropies: Sequence[float | None], entropy_scale: float
) -> float:
    """Return the eps_0 above which at least one of the steps is unsafe; infinite if none can be.

    A step is unsafe when V < eps_0 * exp(-theta * H), that is when eps_0 is above V * exp(theta *
    H). Raises ValueError if theta is not 0 and an entropy is missing.
    """
    params = thresholds(1.0, entropy_scale)
    # At eps_0 = 1, these are the boundaries.
    units = [boundary(entropy, params, index) for index, entropy in enumerate(entropies)]
    limits = (
        value / unit if unit > 0.0 else math.inf for value, unit in zip(values, units, strict=True)
    )
    return min(limits, default=math.inf)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The eps_0 that comes closest to a wanted breach rate under one theta.

    If `exact`, every eps_0 from just above `low` to `base_threshold` gives that rate. Otherwise
    trajectories are open there: the wanted threshold lies between `low` and `base_threshold`, where
    the known breaches alone make up the rate.
    """

    base_threshold: float
    entropy_scale: float
    low: float
    exact: bool


@dataclass(slots=True)
class Calibrator:
    """Collects, for one theta, the eps_0 above which each trajectory breaches (16 bytes each)."""

    entropy_scale: float
    settled: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)

    def add(self, scored: Scored) -> None:
        """Add a trajectory."""
        limit = lowest_limit(scored.values, scored.entropies, self.entropy_scale)
        (self.opened if scored.is_open else self.settled).append(limit)

    def threshold(self, rate: float) -> Calibration:
        """Return the eps_0 whose known breaches come closest to `rate` of all trajectories.

        Raises `RescoreError` if the rate is less than half a trajectory, or if even eps_0 = 1
        falls short of it by more than that.
        """
        limits = [*self.settled, *self.opened]
        wanted = rate * len(limits)
        reached = [limit for limit in limits if limit < 1.0]
        if wanted < 0.5:
            raise RescoreError(
                f"a breach rate of {rate:g} is less than half of one of {len(limits):,}"
                " trajectories: use more records"
            )
        if wanted > len(reached) + 0.5:
            raise RescoreError(
                f"entropy_scale {self.entropy_scale:g}: even at base_threshold 1, the highest, only"
                f" {len(reached) / len(limits):.1%} breach, so {rate:.1%} is out of reach; a"
                " smaller entropy_scale raises the rate"
            )
        below, above = _gap(reached, wanted)
        chosen = plain_number(below, above)
        # At 0 nothing breaches, whatever followed the stored steps.
        if chosen == 0.0 or not any(limit >= chosen for limit in self.opened):
            return Calibration(chosen, self.entropy_scale, below, exact=True)
        # If all open trajectories breach, this many settled ones are enough.
        num_settled = wanted - len(self.opened)
        low = _gap([limit for limit in self.settled if limit < 1.0], num_settled)[0]
        return Calibration(chosen, self.entropy_scale, min(low, chosen), exact=False)


def sentence_of(calibration: Calibration, rate: float) -> str:
    """Describe the result of a calibration in a sentence."""
    found = f"entropy_scale {calibration.entropy_scale:g}: base_threshold"
    if calibration.exact:
        return (
            f"{found} {calibration.base_threshold:g} comes closest to a breach rate of {rate:.1%}"
        )
    return (
        f"{found} between {calibration.low:g} and {calibration.base_threshold:g} comes closest to a"
        f" breach rate of {rate:.1%}; the records end at their breaches and cannot narrow it down"
    )


def sentence_of_rounds(row: Row) -> str:
    """Say which rounds are judged again; empty where no trajectory has several."""
    if not row.num_continued:
        return ""
    return (
        f"{row.num_continued:,} of {row.num_trajectories:,} trajectories have several rounds, of"
        " which only the first is judged again: what follows a correction depends on it"
    )


def _gap(limits: Sequence[float], wanted: float) -> tuple[float, float]:
    """Return the interval of eps_0 in which the number of lower `limits` is closest to `wanted`."""
    counts = Counter(limits)
    so_far, best = 0, (abs(wanted), 0.0, 0.0)  # nothing breaches at 0
    for low, high in pairwise(sorted({0.0, *limits, 1.0})):
        so_far += counts[low]
        best = min(best, (abs(so_far - wanted), low, high))
    return best[1:]


def plain_number(low: float, high: float) -> float:
    """Return a number above `low`, near the middle, with as few digits as possible; at most `high`.

    No other number may be between the two; then it is `high`.
    """
    middle = (low + high) / 2
    for digits in range(1, 17):
        number = round(middle, digits)
        if low < number < high:
            return number
    return high


def _check_same(first: Record, record: Record) -> None:
    for name in _SHARED:
        if first.params.get(name) != record.params.get(name):
            raise RescoreError(
                f"records {first.id} and {record.id} differ in {name}"
                f" ({first.params.get(name)!r}, {record.params.get(name)!r}): their steps and"
                " values do not fit in one table; rescore them separately"
            )
    if first.models != record.models:
        raise RescoreError(
            f"records {first.id} and {record.id} are of different models"
            f" ({first.models.student} and {first.models.teacher}; {record.models.student} and"
            f" {record.models.teacher}): rescore them separately"
        )


def _scored_of(record: Record, *, with_entropy: bool) -> Scored:
    if record.method != METHOD:
        raise RescoreError(
            f"record {record.id} is of method {record.method}, which has no MOTAB thresholds:"
            " rescoring needs records of method motab"
        )
    if record.scoring in NO_PROBABILITIES:
        whose = "a judge's marks" if record.scoring in JUDGES else "a scorer's values"
        raise RescoreError(
            f"record {record.id} was scored by {record.scoring}: {whose} are not"
            " probabilities, so thresholds for one do not fit the other"
        )
    steps = record.steps if record.breach is None else record.steps[: record.breach + 1]
    values = tuple(step.value for step in steps if step.value is not None)
    entropies = tuple(step.entropy for step in steps)
    if len(values) < len(steps):
        raise RescoreError(f"record {record.id}: not all of its steps have a value")
    if with_entropy and None in entropies:
        raise RescoreError(
            f"record {record.id}: step {entropies.index(None)} has no entropy, so it can only be"
            " rescored with an entropy_scale of 0 (a static boundary)"
        )
    return Scored(
        values=values,
        entropies=entropies,
        tokens=tuple(step.student_tokens for step in steps),
        is_open=record.breach is not None,
        backtracks=record.params.get("backtrack") != "none",
        is_continued=len(steps) < len(record.steps),
    )
