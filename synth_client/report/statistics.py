"""Adds up the numbers and plots of a report, one record at a time.

Numbers are kept as counts of rounded values, so memory grows with the steps shown and not with the
records; only the count of distinct questions needs a hash for each question.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from synth_client.prices import PRICED, priced_tokens
from trajectory_records.record import Record
from trajectory_records.steps import StepRecord

NUM_STEPS_SHOWN: Final = 60
"""Plots over steps end here: only smaller step indices are kept."""
RELATIVE_BINS: Final = 20
_PER_ONE: Final = 200
"""Numbers are rounded to multiples of 1 / `_PER_ONE`."""
_NUM_NAMES_SHOWN: Final = 6

PARAM_LABELS: Final[Mapping[str, str]] = {
    "base_threshold": "base threshold (eps_0)",
    "entropy_scale": "entropy scale (theta)",
    "boundary": "boundary",
    "backtrack": "backtrack",
    "stitch": "stitch",
}
_CHOOSERS: Final = ("reference", "majority")
_ONE_ROUND: Final[Mapping[str, int]] = {"rounds": 1, "correction_steps": 1}
"""The options of rounds, as in records from before there were any."""
USAGE_LABELS: Final[Mapping[str, str]] = {
    "student_tokens": "written by the student",
    "student_tokens_discarded": "of the student, discarded",
    "teacher_scored_tokens": "scored by the teacher",
    "teacher_cached_tokens": "context from its cache",
    "teacher_tokens": "written by the teacher",
    "teacher_tokens_discarded": "of the teacher, discarded",
    "student_calls": "calls to the student",
    "score_calls": "calls to score",
    "correction_calls": "calls to correct",
}


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The median of a distribution, with its first and last decile."""

    low: float
    median: float
    high: float


@dataclass(slots=True)
class Spread:
    """A distribution of numbers, each rounded to a multiple of 0.005."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, number: float) -> None:
        """Add a number."""
        self.counts[round(number * _PER_ONE)] += 1

    @property
    def num(self) -> int:
        return self.counts.total()

    def quantiles(self) -> Quantiles:
        """The numbers at ranks ceil(n / 10), ceil(n / 2) and ceil(9 n / 10); n must not be 0."""
        low, median, high = (self._at(-(-self.num * tenths // 10)) for tenths in (1, 5, 9))
        return Quantiles(low, median, high)

    def binned(self, width: float) -> Counter[int]:
        """Return the counts in bins of this width; bin b begins at b * width."""
        # A rounded value stands for the numbers around it, so a value on an edge counts upwards.
        binned: Counter[int] = Counter()
        for number, count in self.counts.items():
            binned[math.floor(number / _PER_ONE / width + 1e-9)] += count
        return binned

    def _at(self, rank: int) -> float:
        so_far = 0
        for number in sorted(self.counts):
            so_far += self.counts[number]
            if so_far >= rank:
                return number / _PER_ONE
        raise ValueError("an empty distribution has no quantiles")


Spreads = defaultdict[int, Spread]


def _spreads() -> Spreads:
    return defaultdict(Spread)


@dataclass(slots=True)
class Names:
    """The values of a setting that occur in the records."""

    found: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        names = sorted(self.found)
        num_hidden = len(names) - _NUM_NAMES_SHOWN
        shown = ", ".join(names[:_NUM_NAMES_SHOWN])
        return f"{shown} and {num_hidden:,} more" if num_hidden > 0 else shown


@dataclass(slots=True)
class Outcomes:
    """The number of answers that were checked, and of answers that were right."""

    num_checked: int = 0
    num_right: int = 0

    def add(self, correct: bool | None) -> None:  # noqa: FBT001
        """Add an answer."""
        if correct is not None:
            self.num_checked += 1
            self.num_right += correct


@dataclass(slots=True)
class Margins:
    """The safety margin V_t - eps_t of the scored steps: by step, and over all steps."""

    over_steps: Spreads = field(default_factory=_spreads)
    of_all: Spread = field(default_factory=Spread)


@dataclass(slots=True)
class Statistics:
    """A run in numbers. Steps count from 0.

    The *absolute* unsafe point is the breach's index. The *relative* unsafe point is the text that
    both models had written at the end of the breach, as a share of all that they wrote, in
    characters; it is unknown (`num_unplaced`) if the text of left-out steps was not kept. The
    *depth* of backtracking is breach minus bifurcation, in steps. A trajectory of several rounds
    counts in all three with each of its breaches. Margins are separate for trajectories with and
    without a breach; with a breach, they are also kept over the steps of its round
    (`margins_to_breach`; key -1 is the step before the breach).
    """

    num_records: int = 0
    num_breached: int = 0
    """Trajectories with at least one breach."""
    num_breaches: int = 0
    num_backtracked: int = 0
    """Trajectories corrected from a step before a breach."""
    num_scored: int = 0
    """Trajectories with at least one scored step."""
    num_long: int = 0
    """Trajectories with scored steps beyond those shown."""
    num_unplaced: int = 0
    questions: set[int] = field(default_factory=set)
    students: Names = field(default_factory=Names)
    teachers: Names = field(default_factory=Names)
    methods: Names = field(default_factory=Names)
    scorings: Names = field(default_factory=Names)
    versions: Names = field(default_factory=Names)
    params: Mapping[str, Names] = field(
        default_factory=lambda: {name: Names() for name in PARAM_LABELS}
    )
    rounds: Mapping[str, Names] = field(
        default_factory=lambda: {name: Names() for name in _ONE_ROUND}
    )
    outcomes: Mapping[bool, Outcomes] = field(
        default_factory=lambda: {False: Outcomes(), True: Outcomes()}
    )
    """By whether there was a breach."""
    tokens: Counter[str] = field(default_factory=Counter)
    priced: Counter[str] = field(default_factory=Counter)
    """Tokens by what they are for, with those of failed attempts."""
    wasted: Counter[str] = field(default_factory=Counter)
    """The part of `priced` that failed attempts used."""
    num_fallbacks: Counter[str] = field(default_factory=Counter)
    """Steps that another judge had to mark, by its way of scoring."""
    num_limited: Counter[str] = field(default_factory=Counter)
    """The texts that a model's limit ended, by limit."""
    num_chosen: Counter[str] = field(default_factory=Counter)
    """Trajectories that kept one of several corrections, by what decided."""
    num_corrections: Counter[str] = field(default_factory=Counter)
    """The corrections they chose among: `all`, and the `lost` of them."""
    num_cache_unknown: int = 0
    unsafe_points: Counter[int] = field(default_factory=Counter)
    relative_points: Counter[int] = field(default_factory=Counter)
    """By bin: bin b of `RELATIVE_BINS` holds shares from b / RELATIVE_BINS upwards."""
    depths: Counter[int] = field(default_factory=Counter)
    values: Spreads = field(default_factory=_spreads)
    entropies: Spreads = field(default_factory=_spreads)
    boundaries: Spreads = field(default_factory=_spreads)
    margins: Mapping[bool, Margins] = field(
        default_factory=lambda: {False: Margins(), True: Margins()}
    )
    """By whether there was a breach."""
    margins_to_breach: Spreads = field(default_factory=_spreads)

    def add(self, record: Record) -> None:
        """Add a record."""
        self.num_records += 1
        # A server knows no question's id: its records have ids of their own.
        is_served = record.response_id is not None
        self.questions.add(hash(record.messages if is_served else record.id))
        self.outcomes[record.breach is not None].add(record.correct)
        self._add_setting(record)
        self._add_tokens(record)
        self.num_breached += record.breach is not None
        self.num_backtracked += record.went_back
        self._add_breaches(record)
        scored = [
            (index, step) for index, step in enumerate(record.steps) if step.value is not None
        ]
        self.num_scored += bool(scored)
        self.num_long += any(index >= NUM_STEPS_SHOWN for index, _ in scored)
        for index, step in scored:
            self._add_step(index, step, record)

    @property
    def num_checked(self) -> int:
        return sum(outcomes.num_checked for outcomes in self.outcomes.values())

    @property
    def num_right(self) -> int:
        return sum(outcomes.num_right for outcomes in self.outcomes.values())

    def _add_setting(self, record: Record) -> None:
        self.students.found.add(record.models.student or "none")
        self.teachers.found.add(record.models.teacher or "none")
        self.methods.found.add(record.method)
        self.scorings.found.add(record.scoring or "none")
        for way, indices in (record.scoring_fallbacks or {}).items():
            self.num_fallbacks[way] += len(indices)
        if (limited := record.limited_by) is not None:
            self.num_limited[f"the {limited.model}'s {limited.limit}"] += 1
        self.versions.found.add(record.motab_version)
        for name, names in self.params.items():
            names.found.add(str(record.params.get(name, "not recorded")))
        for name, names in self.rounds.items():
            names.found.add(str(record.params.get(name, _ONE_ROUND[name])))

    def _add_tokens(self, record: Record) -> None:
        usage = record.usage.motab
        self.tokens["prompt"] += record.usage.prompt_tokens or 0
        for name in USAGE_LABELS:
            self.tokens[name] += getattr(usage, name) or 0
        self.priced.update(priced_tokens(record.usage))
        if record.wasted is not None:
            wasted = priced_tokens(record.wasted)
            self.priced.update(wasted)
            self.wasted.update(wasted)
        self.num_cache_unknown += usage.teacher_cached_tokens is None

    def _add_breaches(self, record: Record) -> None:
        if (chosen := record.chosen) is not None:
            self.num_chosen[chosen.by] += 1
            self.num_corrections.update(all=len(chosen.answers), lost=len(chosen.lost or ()))
        breaches = record.all_breaches
        self.num_breaches += len(breaches)
        for one in breaches:
            self.unsafe_points[one.breach] += 1
            self.depths[one.depth] += 1
        if not breaches:
            return
        texts = [record.step_text(index) for index in range(len(record.steps))]
        sizes = [len(text) for text in texts if text is not None]
        corrections = [
            sum(len(piece.text) for piece in pieces if piece.role == "teacher")
            for pieces in record.corrections()
        ]
        whole = sum(sizes) + sum(corrections)
        if None in texts or not whole:
            self.num_unplaced += 1
            return
        ends, corrected = list(accumulate(sizes)), accumulate(corrections, initial=0)
        for one, before in zip(breaches, corrected, strict=False):
            written = ends[one.breach] + before
            self.relative_points[min(RELATIVE_BINS * written // whole, RELATIVE_BINS - 1)] += 1

    def _add_step(self, index: int, step: StepRecord, record: Record) -> None:
        is_shown = index < NUM_STEPS_SHOWN
        if is_shown:
            shown = (self.values, self.entropies, self.boundaries)
            for spreads, number in zip(
                shown, (step.value, step.entropy, step.boundary), strict=True
            ):
                if number is not None:
                    spreads[index].add(number)
        if step.value is None or step.boundary is None:
            return
        margin = step.value - step.boundary
        margins = self.margins[record.breach is not None]
        margins.of_all.add(margin)
        if is_shown:
            margins.over_steps[index].add(margin)
        its = record.breach_from(index)
        if its is not None and its.breach - index < NUM_STEPS_SHOWN:
            self.margins_to_breach[index - its.breach].add(margin)


@dataclass(frozen=True, slots=True)
class Fact:
    """A line of the summary; `detail` gives the two numbers behind a share."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a run: its models, the main ones, its setting, and its cost."""

    models: tuple[Fact, ...]
    headline: tuple[Fact, ...]
    setting: tuple[Fact, ...]
    cost: tuple[Fact, ...]


def summarise(run: Statistics) -> Summary:
    """Return the numbers of the run; a share of nothing reads "none"."""
    models = (Fact("student", str(run.students)), Fact("teacher", str(run.teachers)))
    headline = (
        Fact("trajectories", f"{run.num_records:,}"),
        Fact("questions", f"{len(run.questions):,}"),
        _share("strayed", run.num_breached, run.num_records),
        _share("of these, corrected from an earlier step", run.num_backtracked, run.num_breached),
        *_breaches_of(run),
        *_choices_of(run),
        _share("right answers, of those checked", run.num_right, run.num_checked),
    )
    setting = (
        Fact("method", str(run.methods)),
        Fact("scoring", str(run.scorings)),
        *(Fact(f"steps marked by {way}", f"{num:,}") for way, num in run.num_fallbacks.items()),
        *(Fact(f"texts cut at {limit}", f"{num:,}") for limit, num in run.num_limited.items()),
        *(Fact(label, str(run.params[name])) for name, label in PARAM_LABELS.items()),
        *_rounds_of(run),
        Fact("motab version", str(run.versions)),
    )
    cost = (
        *(Fact(label, _total(run, name)) for name, label in USAGE_LABELS.items()),
        *(
            Fact(f"failed attempts: {PRICED[name]}", f"{num:,}")
            for name, num in run.wasted.items()
            if num
        ),
    )
    return Summary(models, headline, setting, cost)


def _rounds_of(run: Statistics) -> Sequence[Fact]:
    """Return the settings of several rounds, where a trajectory may have them."""
    if run.rounds["rounds"].found <= {str(_ONE_ROUND["rounds"])}:
        return ()
    return tuple(Fact(name.replace("_", " "), str(names)) for name, names in run.rounds.items())


def _breaches_of(run: Statistics) -> Sequence[Fact]:
    """Return the breaches of a trajectory that strayed, where one has several."""
    num, whole = run.num_breaches, run.num_breached
    if num == whole:
        return ()
    return (Fact("breaches of these", f"{num / whole:.2f}", f"{num:,} in {whole:,}"),)


def _choices_of(run: Statistics) -> Sequence[Fact]:
    """Return what decided which correction was kept, where there were several."""
    num, of = run.num_chosen, run.num_corrections
    kept = [_share(f"corrections kept by {by}", num[by], num.total()) for by in _CHOOSERS]
    lost = _share("corrections lost to failures", of["lost"], of["all"])
    return (*kept, lost) if num else ()


def _share(label: str, part: int, whole: int) -> Fact:
    if not whole:
        return Fact(label, "none")
    return Fact(label, f"{part / whole:.0%}", f"{part:,} of {whole:,}")


def _total(statistics: Statistics, name: str) -> str:
    total = f"{statistics.tokens[name]:,}"
    if name != "teacher_cached_tokens" or not statistics.num_cache_unknown:
        return total
    is_known = statistics.num_cache_unknown < statistics.num_records
    return f"at least {total}" if is_known else "not reported"


def mean(counts: Mapping[int, int]) -> float | None:
    """Return the mean of counted numbers, None if there are none."""
    num = sum(counts.values())
    return sum(number * count for number, count in counts.items()) / num if num else None


def quantiles_by_step(spreads: Mapping[int, Spread]) -> Sequence[tuple[int, Quantiles]]:
    """Return the quantiles at each step, in order of the steps."""
    return [(index, spreads[index].quantiles()) for index in sorted(spreads)]
