"""Measures how probable the student and the teacher find the texts, from token log-probabilities.

Every number is a ratio of two sums over trajectories: the log-probability of tokens or characters,
and their number. So records can be added one at a time, in memory that does not grow.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Final, get_args

from proxy.core.params import Method
from synth_client.report.authorship import Passage, TextKind, handover_of, passages_of
from trajectory_records.record import Record
from trajectory_records.text_logprobs import MODELS, BothModels, Model

NUM_BINS: Final = 40
"""The number of bins in plots over characters; around the handover, half lie on each side."""
RELATIVE_BINS: Final = 25
BIN_WIDTHS: Final = tuple(25 * 2**level for level in range(13))
"""In characters. The best width is only known at the end, so all are kept."""
OTHER_METHODS: Final = "other"
_METHODS: Final = frozenset(get_args(Method))
_SHARE_REACHED: Final = 0.2
_Z: Final = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio with its 95% interval, which is None for fewer than two trajectories."""

    value: float
    low: float | None
    high: float | None
    num: int


@dataclass(slots=True)
class Ratio:
    """The sum of `amount` divided by the sum of `size`, over independent trajectories."""

    num: int = 0
    _size: float = 0.0
    _amount: float = 0.0
    _sizes: float = 0.0
    _products: float = 0.0
    _amounts: float = 0.0

    def add(self, size: float, amount: float) -> None:
        """Add a trajectory; size 0 is ignored."""
        if not size:
            return
        self.num += 1
        self._size += size
        self._amount += amount
        self._sizes += size * size
        self._products += size * amount
        self._amounts += amount * amount

    def estimate(self) -> Estimate:
        """Return the ratio plus and minus 1.96 standard errors; `num` must not be 0.

        The standard error is that of a ratio estimator (Cochran 1977, 6.3). For the mean of a
        cluster sample it agrees with resampling whole trajectories.
        """
        ratio = self._amount / self._size
        if self.num == 1:
            return Estimate(ratio, None, None, 1)
        squares = self._amounts - 2 * ratio * self._products + ratio * ratio * self._sizes
        # Rounding may make the sum slightly negative.
        variance = max(squares, 0.0) * self.num / (self.num - 1)
        error = _Z * sqrt(variance) / self._size
        return Estimate(ratio, ratio - error, ratio + error, self.num)


@dataclass(slots=True)
class Measures:
    """Each model's log-probability per token, and the divergence, over the same stretches of text.

    The divergence is per character: the log-probability under the model that wrote the text minus
    the log-probability under the other model.
    """

    student: Ratio = field(default_factory=Ratio)
    teacher: Ratio = field(default_factory=Ratio)
    divergence: Ratio = field(default_factory=Ratio)

    def by(self, model: Model) -> Ratio:
        return self.student if model == "student" else self.teacher

    def add_tokens(self, readings: BothModels, stretches: Sequence[tuple[int, int]]) -> None:
        """Add stretches of one trajectory."""
        for model in MODELS:
            found = [readings.by(model).tokens(*stretch) for stretch in stretches]
            self.by(model).add(sum(num for num, _ in found), sum(total for _, total in found))

    def add(
        self, readings: BothModels, stretches: Sequence[tuple[int, int]], kind: TextKind
    ) -> None:
        """Add stretches of one trajectory, all of one kind."""
        self.add_tokens(readings, stretches)
        student, teacher = (
            sum(readings.by(model).characters(*stretch) for stretch in stretches)
            for model in MODELS
        )
        gap = student - teacher if kind.writer == "student" else teacher - student
        self.divergence.add(sum(end - start for start, end in stretches), gap)


Bins = defaultdict[int, Measures]


def _bins() -> Bins:
    return defaultdict(Measures)


Profile = tuple[Bins, ...]
"""Measures by position, binned in each of `BIN_WIDTHS`. Bin b begins at b times the width."""


def _profile() -> Profile:
    return tuple(_bins() for _ in BIN_WIDTHS)


@dataclass(slots=True)
class Reach:
    """Counts which of `BIN_WIDTHS` each text needs to fit into a given number of bins."""

    num_bins: int
    _levels: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        """Add a text's length in characters."""
        wide_enough = (
            level for level, width in enumerate(BIN_WIDTHS) if length <= width * self.num_bins
        )
        self._levels[next(wide_enough, len(BIN_WIDTHS))] += 1

    def level(self, share: float) -> int:
        """Return the index of the smallest width that holds at least this share of the texts."""
        num = 0
        for level in range(len(BIN_WIDTHS)):
            num += self._levels[level]
            if num >= share * self._levels.total():
                return level
        return len(BIN_WIDTHS) - 1

    def num_beyond(self, level: int) -> int:
        """Return the number of texts too long for this width."""
        return sum(count for found, count in self._levels.items() if found > level)


@dataclass(slots=True)
class Likelihoods:
    """The sums behind the plots of token log-probabilities.

    `by_kind` covers whole passages, `over_length` positions from the start of a passage, and
    `reach` the lengths of passages. `around_handover` aligns trajectories where the student's text
    ends and the teacher writes all the rest (bins before that are negative); `sides` counts the
    shorter sides. `along` is by method and by bins of the whole output.
    """

    num_scored: int = 0
    """The number of records with token log-probabilities and some output."""
    num_handovers: int = 0
    by_kind: defaultdict[TextKind, Measures] = field(default_factory=lambda: defaultdict(Measures))
    over_length: defaultdict[TextKind, Profile] = field(
        default_factory=lambda: defaultdict(_profile)
    )
    reach: Reach = field(default_factory=lambda: Reach(NUM_BINS))
    around_handover: Profile = field(default_factory=_profile)
    sides: Reach = field(default_factory=lambda: Reach(NUM_BINS // 2))
    along: defaultdict[str, Bins] = field(default_factory=lambda: defaultdict(_bins))

    def add(self, record: Record) -> None:
        """Add a record; one without token log-probabilities is ignored."""
        if record.token_logprobs is None or not record.output:
            return
        self.num_scored += 1
        readings = BothModels.of(record.token_logprobs)
        passages = passages_of(record)
        for kind in {passage.kind for passage in passages}:
            same = [passage for passage in passages if passage.kind == kind]
            stretches = [(passage.start, passage.end) for passage in same]
            self.by_kind[kind].add(readings, stretches, kind)
            self._add_lengths(kind, same, readings)
        handover = handover_of(passages)
        if handover is not None:
            self._add_handover(handover, len(record.output), readings)
        self._add_along(record, readings)

    def _add_lengths(
        self, kind: TextKind, passages: Sequence[Passage], readings: BothModels
    ) -> None:
        longest = max(passage.length for passage in passages)
        self.reach.add(longest)
        for width, bins in zip(BIN_WIDTHS, self.over_length[kind], strict=True):
            for index in range(min(NUM_BINS, -(-longest // width))):
                stretches = [
                    (
                        passage.start + index * width,
                        min(passage.start + (index + 1) * width, passage.end),
                    )
                    for passage in passages
                    if passage.length > index * width
                ]
                bins[index].add(readings, stretches, kind)

    def _add_handover(self, handover: int, length: int, readings: BothModels) -> None:
        self.num_handovers += 1
        self.sides.add(min(handover, length - handover))
        half = NUM_BINS // 2
        for width, bins in zip(BIN_WIDTHS, self.around_handover, strict=True):
            first = max(-half, -(handover // width) - 1)
            last = min(half, -(-(length - handover) // width))
            for index in range(first, last):
                start = max(handover + index * width, 0)
                end = min(handover + (index + 1) * width, length)
                if start < end:
                    bins[index].add_tokens(readings, [(start, end)])

    def _add_along(self, record: Record, readings: BothModels) -> None:
        bins = self.along[record.method if record.method in _METHODS else OTHER_METHODS]
        length = len(record.output)
        edges = [length * index // RELATIVE_BINS for index in range(RELATIVE_BINS + 1)]
        for index, stretch in enumerate(pairwise(edges)):
            bins[index].add_tokens(readings, [stretch])


def points_of(ratios: Iterable[tuple[int, Ratio]], num: int) -> Iterator[tuple[int, Estimate]]:
    """Yield the estimates of bins to which at least a fifth of `num` trajectories contribute."""
    for index, ratio in sorted(ratios, key=lambda one: one[0]):
        if ratio.num and ratio.num >= _SHARE_REACHED * num:
            yield index, ratio.estimate()
