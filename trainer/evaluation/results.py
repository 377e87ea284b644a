"""Presents an evaluation's results: as JSON (its fields are in docs/evaluation.md) and a table."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import orjson

from trainer.evaluation.pass_at_k import (
    Interval,
    Mean,
    Outcome,
    PassAtK,
    Weighted,
    estimate,
    weighted_mean,
)

SCHEMA_VERSION: Final = 1
_DIGITS: Final = re.compile(r"(\d+)")

By = Literal["all", "level", "subject"]


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """The samples of one problem: `n` were judged, `c` of them are right.

    `n` excludes the `num_failed` samples, which have no answer, and the `num_unjudged`, whose
    judging failed; it includes the `num_empty`, whose answer is empty, as wrong. `scores` are the
    means over the `n` of the judge's values other than right and wrong.
    """

    id: str
    level: str | None
    subject: str | None
    n: int
    c: int
    num_empty: int
    num_truncated: int
    num_unjudged: int
    num_failed: int
    scores: Mapping[str, Weighted] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreMean:
    """The mean of one of the judge's scores, over the problems with a judged sample."""

    name: str
    mean: Mean
    num_problems: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: all problems, or those of one level or subject."""

    by: By
    name: str | None
    num_problems: int
    pass_at_k: tuple[PassAtK, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The way in which every problem was asked. A field that is None was left to the server."""

    n: int
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    seed: int | None
    prompt: str


@dataclass(frozen=True, slots=True)
class Results:
    """`served_as` are the names that the server gave the model in its answers."""

    schema_version: int
    motab_version: str
    benchmark: str
    digest: str
    model: str
    served_as: tuple[str, ...]
    sampling: Sampling
    verify: str
    interval: Interval
    completion_tokens: int
    table: tuple[Row, ...]
    scores: tuple[ScoreMean, ...]
    problems: tuple[ProblemResult, ...]

    @property
    def num_failed(self) -> int:
        return sum(problem.num_failed for problem in self.problems)

    @property
    def num_unjudged(self) -> int:
        return sum(problem.num_unjudged for problem in self.problems)

    def to_json(self) -> bytes:
        """Return one object, indented."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def to_markdown(self) -> str:
        """Return the table in percent, followed by how it was made and what is missing."""
        ks = [one.k for one in self.table[-1].pass_at_k]
        lines = [
            f"# {_escaped(self.model)} on {_escaped(self.benchmark)}",
            "",
            f"| | problems | {' | '.join(f'pass@{k}' for k in ks)} |",
            "|---|---:|" + "---:|" * len(ks),
            *(_line(row) for row in self.table),
            "",
            *self._scores(),
            self._how(),
        ]
        return "\n".join([*lines, *self._missing()]) + "\n"

    def _scores(self) -> Iterator[str]:
        if self.scores:
            yield from ("| score | problems | mean |", "|---|---:|---:|")
            for one in self.scores:
                yield f"| {_escaped(one.name)} | {one.num_problems:,} | {_percent(one.mean)} |"
            yield ""

    def _how(self) -> str:
        sampling, interval = self.sampling, self.interval
        chosen = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
        }
        how = "".join(f", {name} {value}" for name, value in chosen.items() if value is not None)
        return (
            f"In percent; {sampling.n} samples per problem{how}; answers judged by"
            f" `{self.verify}`. pass@k is the unbiased estimate, in brackets its"
            f" {interval.level:.0%} interval ({interval.method},"
            f" {interval.num_resamples:,} resamples, seed {interval.seed})."
        )

    def _missing(self) -> Iterator[str]:
        num_truncated = sum(problem.num_truncated for problem in self.problems)
        num_empty = sum(problem.num_empty for problem in self.problems)
        num_asked = len(self.problems) * self.sampling.n
        counted = [(num_truncated, "cut off at the length limit"), (num_empty, "empty")]
        left_out = [(self.num_failed, "failed"), (self.num_unjudged, "not judged")]
        for counts, what in ((counted, "counted as they are judged"), (left_out, "not counted")):
            if parts := [f"{number:,} {how}" for number, how in counts if number]:
                yield f"\nOf {num_asked:,} samples, {' and '.join(parts)}: {what}."


def table_of(
    problems: Sequence[ProblemResult], ks: Sequence[int], interval: Interval
) -> tuple[Row, ...]:
    """Return a row for each level and each subject, then one for all problems."""
    rows = []
    for by in ("level", "subject"):
        labels = {label for one in problems if (label := getattr(one, by)) is not None}
        rows += [
            _row(by, label, [one for one in problems if getattr(one, by) == label], ks, interval)
            for label in sorted(labels, key=_natural)
        ]
    return (*rows, _row("all", None, problems, ks, interval))


def scores_of(problems: Sequence[ProblemResult], interval: Interval) -> tuple[ScoreMean, ...]:
    """Return the mean of each score, in the order in which the problems first have it."""
    found = []
    for name in dict.fromkeys(name for one in problems for name in one.scores):
        values = [one.scores[name] for one in problems if name in one.scores]
        found.append(ScoreMean(name, weighted_mean(values, interval), len(values)))
    return tuple(found)


def _row(
    by: By, name: str | None, problems: Sequence[ProblemResult], ks: Sequence[int], how: Interval
) -> Row:
    outcomes = [Outcome(one.n, one.c) for one in problems]
    return Row(by, name, len(problems), tuple(estimate(outcomes, k, how) for k in ks))


def _natural(label: str) -> list[tuple[int, str]]:
    """Sort level 10 after level 9."""
    parts = _DIGITS.split(label)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _line(row: Row) -> str:
    name = "all" if row.name is None else f"{row.by}: {_escaped(row.name)}"
    cells = [_cell(one, row.num_problems) for one in row.pass_at_k]
    return f"| {name} | {row.num_problems:,} | {' | '.join(cells)} |"


def _percent(one: PassAtK | Mean) -> str:
    if one.value is None:
        return "unknown"
    text = f"{100 * one.value:.1f}"
    if one.low is not None and one.high is not None:
        text += f" ({100 * one.low:.1f} to {100 * one.high:.1f})"
    return text


def _cell(one: PassAtK, num_problems: int) -> str:
    if one.value is None:
        return "unknown"
    text = _percent(one)
    if one.num_problems < num_problems:
        text += f", {one.num_problems:,} of {num_problems:,} problems"
    return text


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
