"""Picks what a report says first: the best example, and the right answers next to a baseline's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from synth_client.errors import ClientError
from synth_client.report.statistics import Outcomes
from trajectory_records.record import Record

_BASELINE_METHOD: Final = "student"
_RULES: Final = (
    "strayed, went back before the breach and end in the right answer",
    "strayed after a safe step and end in the right answer",
    "strayed at the first step and end in the right answer",
    "strayed (no answer of a trajectory that strayed is known to be right)",
    "strayed (all their answers are wrong)",
    "end in the right answer (none strayed)",
    "were written (none strayed, and no answer is known to be right)",
)
"""The ranks of an example, best first."""
_WRITERS: Final = {"student": "by the student alone", "teacher": "by the teacher alone"}


class BaselineError(ClientError):
    """A baseline that cannot be compared with the run."""


@dataclass(slots=True)
class Asked:
    """A question of the baseline, and how its answers turned out."""

    question: int
    student: str | None
    outcomes: Outcomes = field(default_factory=Outcomes)


class Baseline:
    """Holds the outcomes of the student alone, by the id of the question."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Read the records. Raises `BaselineError` for one that is not the student's alone."""
        self.by_id: dict[str, Asked] = {}
        seen: set[tuple[str, int]] = set()
        for record in records:
            if record.method != _BASELINE_METHOD:
                raise BaselineError(
                    f"the baseline's record {record.id} is of the method {record.method}: a"
                    f" baseline holds what the student writes alone (method {_BASELINE_METHOD})"
                )
            if (record.id, record.sample) in seen:
                raise BaselineError(
                    f"the baseline holds sample {record.sample} of {record.id} twice"
                )
            seen.add((record.id, record.sample))
            new = Asked(hash(record.messages), record.models.student)
            asked = self.by_id.setdefault(record.id, new)
            _check_same(record, asked, "another record of the baseline")
            asked.outcomes.add(record.correct)


@dataclass(frozen=True, slots=True)
class Rate:
    """The right answers of one way of writing, among its answers that were checked."""

    writer: str
    """The end of the sentence about it; empty where nothing is compared."""
    outcomes: Outcomes


@dataclass(slots=True)
class Story:
    """The best example of a run, and its right answers.

    With a baseline only the answers to its questions count, so that both are about the same.
    """

    baseline: Baseline | None = None
    example: Record | None = None
    matched: set[str] = field(default_factory=set)
    """The questions of the baseline that the run asks."""
    _rank: tuple[int, int] = (len(_RULES), 0)
    _by_method: dict[str, Outcomes] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Add a record of the run. Raises `BaselineError` where the baseline asks another question
        under its id, or another student.
        """
        rank = (_rank_of(record), len(record.output))
        if rank < self._rank:
            self._rank, self.example = rank, record
        if self.baseline is not None:
            asked = self.baseline.by_id.get(record.id)
            if asked is None:
                return
            _check_same(record, asked, "the baseline's record of that id")
            self.matched.add(record.id)
        self._by_method.setdefault(record.method, Outcomes()).add(record.correct)

    @property
    def rule(self) -> str:
        """The sentence that says why the example was chosen."""
        return f"The shortest of the trajectories that {_RULES[self._rank[0]]}."

    @property
    def has_strayed(self) -> bool:
        return self.example is not None and self.example.breach is not None

    def rates(self) -> Sequence[Rate]:
        """Return the rates to compare, the baseline's first; without checked answers there is none.

        Raises `BaselineError` where the run asks no question of the baseline.
        """
        ways = [
            Rate(_WRITERS.get(method, f"with {method}"), outcomes)
            for method, outcomes in sorted(self._by_method.items())
        ]
        if len(ways) == 1 and self.baseline is None:
            ways = [Rate("", ways[0].outcomes)]
        if self.baseline is not None:
            ways.insert(0, self._alone(self.baseline))
        return [way for way in ways if way.outcomes.num_checked]

    def _alone(self, baseline: Baseline) -> Rate:
        if not self.matched:
            raise BaselineError(
                "the baseline has no question of the run: questions are the same where their"
                " records have the same id"
            )
        outcomes = [baseline.by_id[name].outcomes for name in self.matched]
        whole = Outcomes(
            num_checked=sum(one.num_checked for one in outcomes),
            num_right=sum(one.num_right for one in outcomes),
        )
        return Rate(_WRITERS[_BASELINE_METHOD], whole)


def _rank_of(record: Record) -> int:
    """The place of the record in `_RULES`."""
    if record.breach is None:
        return 5 if record.correct else 6
    if record.correct and record.went_back:
        return 0
    if record.correct:
        return 1 if record.breach else 2
    return 3 if record.correct is None else 4


def _check_same(record: Record, asked: Asked, other: str) -> None:
    if hash(record.messages) != asked.question:
        raise BaselineError(f"{record.id} asks another question than {other}")
    if record.models.student not in {None, asked.student}:
        raise BaselineError(
            f"{record.id} has the student {record.models.student}, but {other} has {asked.student}"
        )
