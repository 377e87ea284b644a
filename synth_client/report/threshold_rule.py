"""Learns eps_0 and theta from trial trajectories whose right and wrong parts are known.

A group is what one label covers: a step whose own label is known, or the steps of a trajectory of
which only the answer is known. A group is caught when any of its steps is below the boundary. The
rule takes the thresholds that maximise the share of the wrong groups that is caught minus the share
of the right groups that is caught, too.

A trial must be the student's alone. After a breach the answer is the teacher's, and says nothing
about the steps before.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from synth_client.report.rescore import (
    RescoreError,
    Scored,
    lowest_limit,
    plain_number,
    scored_records,
)
from trajectory_records.record import Record

SCALES: Final = (0.0, 0.25, 0.5, 1.0)
"""The values of theta that are tried."""
RIGHT_STEPS: Final = "right_steps"
"""The score of a verification rule that knows the steps: how many are right before the first wrong
step; all of them if no step is wrong."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """The values V and entropies H of a group's steps, and whether the group is wrong."""

    values: tuple[float, ...]
    entropies: tuple[float | None, ...]
    is_wrong: bool


class Catches:
    """The numbers of wrong and right groups, and how many of each a boundary catches."""

    __slots__ = ()
    num_caught: int
    num_falsely_caught: int
    num_wrong: int
    num_right: int

    @property
    def caught(self) -> float:
        """The share of the wrong groups."""
        return self.num_caught / self.num_wrong

    @property
    def falsely_caught(self) -> float:
        """The share of the right groups."""
        return self.num_falsely_caught / self.num_right

    @property
    def gain(self) -> tuple[int, int]:
        """The larger, the better: the difference of the shares, times both numbers of groups, which
        is whole, so that equals are equal; then fewer false catches.
        """
        margin = self.num_caught * self.num_right - self.num_falsely_caught * self.num_wrong
        return margin, -self.num_falsely_caught


@dataclass(frozen=True, slots=True)
class Learned(Catches):
    """The thresholds that the rule takes, with the numbers of wrong and right groups they catch."""

    base_threshold: float
    entropy_scale: float
    num_caught: int
    num_falsely_caught: int
    num_wrong: int
    num_right: int

    @property
    def rank(self) -> tuple[int, int, float]:
        """The larger, the better: the gain, then a smaller theta."""
        return *self.gain, -self.entropy_scale


def choose(groups: Sequence[Labelled], scales: Sequence[float] = SCALES) -> Learned:
    """Return the thresholds of the rule; `scales=(0.0,)` gives those of a static boundary.

    Among equals it prefers fewer falsely caught groups, then the smaller theta. Raises
    `RescoreError` if only right or only wrong groups are there, and if no thresholds catch a larger
    share of the wrong groups; ValueError if an entropy is missing where a theta needs it.
    """
    return best_of([best_of_scale(groups, scale) for scale in scales])


def best_of(found: Sequence[Learned]) -> Learned:
    """Return the best; raises `RescoreError` if none is better than a boundary without catches."""
    best = max(found, key=lambda one: one.rank)
    require_gain(best)
    return best


def require_gain(best: Catches) -> None:
    """Raise `RescoreError` if even the best boundary is no better than one without catches."""
    if best.gain[0] <= 0:
        raise RescoreError(
            "no thresholds catch a larger share of the wrong parts than of the right parts: the"
            " teacher's values do not tell them apart"
        )


def best_of_scale(groups: Sequence[Labelled], entropy_scale: float) -> Learned:
    """Return the best thresholds with one theta; see `choose`."""
    num_wrong = sum(group.is_wrong for group in groups)
    num_right = len(groups) - num_wrong
    require_both(num_wrong, num_right)
    at_limit: dict[float, Counter[bool]] = {0.0: Counter()}
    for group in groups:
        limit = lowest_limit(group.values, group.entropies, entropy_scale)
        if limit < 1.0:
            at_limit.setdefault(limit, Counter())[group.is_wrong] += 1
    found, so_far = [], Counter[bool]()
    # Every eps_0 above `low`, up to `high`, catches the same groups.
    for low, high in pairwise(sorted({*at_limit, 1.0})):
        so_far.update(at_limit[low])
        found.append(
            Learned(
                plain_number(low, high),
                entropy_scale,
                so_far[True],
                so_far[False],
                num_wrong,
                num_right,
            )
        )
    return max(found, key=lambda one: one.rank)


def require_both(num_wrong: int, num_right: int) -> None:
    """Raise `RescoreError` if only right or only wrong groups are there."""
    if not num_wrong or not num_right:
        lacking = "wrong" if num_right else "right"
        raise RescoreError(
            f"of the labelled parts ({num_wrong + num_right:,}) none is {lacking}: thresholds can"
            " only be learned from right and wrong parts; use more records, or easier or harder"
            " questions"
        )


def sentence_of_learned(learned: Learned) -> str:
    """Describe what the rule found with one theta in a sentence."""
    return (
        f"entropy_scale {learned.entropy_scale:g}: base_threshold {learned.base_threshold:g}"
        f" catches {learned.caught:.1%} of {learned.num_wrong:,} wrong and"
        f" {learned.falsely_caught:.1%} of {learned.num_right:,} right parts"
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """A group, and the index of its first step in its trajectory."""

    first: int
    group: Labelled


def labelled_groups(
    records: Iterable[Record], *, with_entropy: bool, left_out: Counter[str]
) -> Iterator[Labelled]:
    """Yield the groups of trial records; see `placed_groups`."""
    placed = placed_groups(records, with_entropy=with_entropy, left_out=left_out)
    return (one.group for one in placed)


def placed_groups(
    records: Iterable[Record], *, with_entropy: bool, left_out: Counter[str]
) -> Iterator[Placed]:
    """Yield the groups of trial records, and count the records without a label in `left_out`.

    Where the verification rule gives `right_steps`, every step up to the first wrong step is a
    group; later steps start from a mistake, and are neither. Otherwise the verdict on the answer
    labels the trajectory as a group. Raises `RescoreError` for a record that breached, for labels
    of both kinds, and for what cannot be rescored.
    """
    first: Record | None = None
    for record, scored in scored_records(records, with_entropy=with_entropy):
        num_right = _num_right(record, scored)
        if num_right is None and record.correct is None:
            left_out["without a verdict"] += 1
            continue
        require_own(record, scored)
        first = first or record
        if (RIGHT_STEPS in _scores(first)) != (num_right is not None):
            raise RescoreError(
                f"of the records {first.id} and {record.id} only one has the score {RIGHT_STEPS}:"
                " judge all records by the same rule"
            )
        if num_right is None:
            group = Labelled(scored.values, scored.entropies, is_wrong=not record.correct)
            yield Placed(0, group)
            continue
        steps = zip(scored.values, scored.entropies, strict=True)
        for index, (value, entropy) in enumerate(steps):
            if index <= num_right:
                yield Placed(index, Labelled((value,), (entropy,), is_wrong=index == num_right))


def require_own(record: Record, scored: Scored) -> None:
    """Raise `RescoreError` if the student did not write all of the text."""
    if scored.is_open:
        raise RescoreError(
            f"record {record.id} breached, so its answer is the teacher's and says nothing"
            " about the student's steps: learn thresholds from a trial that was made with"
            " base_threshold 0"
        )


def _scores(record: Record) -> dict[str, float]:
    return {} if record.verification is None else dict(record.verification.scores)


def _num_right(record: Record, scored: Scored) -> int | None:
    number = _scores(record).get(RIGHT_STEPS)
    if number is None:
        return None
    if number not in range(len(scored.values) + 1):
        raise RescoreError(
            f"record {record.id}: the score {RIGHT_STEPS} is {number:g}, but must be a whole number"
            f" from 0 to its {len(scored.values)} steps"
        )
    return int(number)
