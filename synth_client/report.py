"""Writes one HTML page about a run: its numbers, and every trajectory step by step.

The page needs neither network nor scripts; its Content-Security-Policy forbids both. It holds all
records at once, which suits a demo or a sample of a run.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from synth_client.record import ROLE_LABELS, Record, Role, Verdict

_TEMPLATE: Final = "report.html.j2"
_SNIPPET_CHARS: Final = 160
_MAX_OPEN_STEPS: Final = 12

# Units of the chart.
_MAX_SLOT: Final = 42.0
_MAX_TICKS: Final = 16

_PARAM_LABELS: Final = {
    "base_threshold": "base threshold (eps_0)",
    "entropy_scale": "entropy scale (theta)",
    "boundary": "boundary",
    "backtrack": "backtrack",
    "stitch": "stitch",
}
_USAGE_LABELS: Final = {
    "student_tokens": "written by the student",
    "student_tokens_discarded": "of the student, discarded",
    "teacher_scored_tokens": "scored by the teacher",
    "teacher_cached_tokens": "context from its cache",
    "teacher_tokens": "written by the teacher",
    "student_calls": "calls to the student",
    "score_calls": "calls to score",
    "correction_calls": "calls to correct",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A line of the summary."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a run: the main ones, its setting, and its cost."""

    headline: tuple[Fact, ...]
    setting: tuple[Fact, ...]
    cost: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """One step in the chart, in its units; `top` is the value's height, `limit` the boundary's.

    Both are None where nothing was scored. `tick` is the step's index, empty where there are too
    many to write them all.
    """

    left: float
    width: float
    top: float | None
    limit: float | None
    verdict: Verdict
    mark: str
    tick: str
    title: str

    @property
    def centre(self) -> float:
        return self.left + self.width / 2


@dataclass(frozen=True, slots=True)
class Chart:
    """Value against boundary over the steps. Values 0 to 1 run from `floor` up to `ceiling`."""

    bars: tuple[Bar, ...]
    width: float = 360.0
    height: float = 150.0
    gutter: float = 28.0
    ceiling: float = 18.0
    floor: float = 132.0

    def level(self, value: float) -> float:
        """How far down `value` is drawn."""
        return self.floor - value * (self.floor - self.ceiling)


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step in the table, as it is printed."""

    index: int
    value: str
    boundary: str
    entropy: str
    td_error: str
    verdict: Verdict
    is_bifurcation: bool
    is_left_out: bool
    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class TrajectoryView:
    """A record and what the page shows of it."""

    record: Record
    rows: tuple[StepRow, ...]
    chart: Chart | None
    steps_open: bool


def write_report(records: Iterable[Record], path: Path) -> None:
    """Write the page to `path`, replacing it as a whole or, when anything fails, not at all.

    Its folder is made where it does not exist. Raises OSError where it cannot be written.
    """
    page = render_report(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(page, encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def render_report(records: Iterable[Record]) -> str:
    """The page as text."""
    shown = tuple(records)
    environment = Environment(
        loader=PackageLoader("synth_client", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        summary=summarise(shown),
        trajectories=tuple(_view(record) for record in shown),
        role_labels=ROLE_LABELS,
    )


def summarise(records: Sequence[Record]) -> Summary:
    """The numbers of the run; a share of nothing is not given."""
    checked = [record for record in records if record.correct is not None]
    num_breached = sum(record.breach is not None for record in records)
    num_right = sum(record.correct is True for record in checked)
    headline = (
        Fact("trajectories", f"{len(records):,}"),
        Fact("questions", f"{len({record.id for record in records}):,}"),
        Fact("with a breach", _share(num_breached, len(records))),
        Fact("right, of those checked", _share(num_right, len(checked))),
    )
    setting = (
        Fact("student", _distinct(record.models.student or "none" for record in records)),
        Fact("teacher", _distinct(record.models.teacher or "none" for record in records)),
        Fact("method", _distinct(record.method for record in records)),
        *(
            Fact(label, _distinct(_param(record, name) for record in records))
            for name, label in _PARAM_LABELS.items()
        ),
        Fact("motab version", _distinct(record.motab_version for record in records)),
    )
    cost = tuple(Fact(label, _total(records, name)) for name, label in _USAGE_LABELS.items())
    return Summary(headline, setting, cost)


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.0%})" if whole else "none"


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _param(record: Record, name: str) -> str:
    return str(record.params.get(name, "not recorded"))


def _total(records: Sequence[Record], name: str) -> str:
    counts: list[int | None] = [getattr(record.usage.motab, name) for record in records]
    known = [count for count in counts if count is not None]
    total = f"{sum(known):,}"
    if len(known) == len(counts):
        return total
    return f"at least {total}" if known else "not reported"


def _view(record: Record) -> TrajectoryView:
    return TrajectoryView(
        record=record,
        rows=tuple(_row(record, index) for index in range(len(record.steps))),
        chart=_chart(record),
        steps_open=len(record.steps) <= _MAX_OPEN_STEPS,
    )


def _row(record: Record, index: int) -> StepRow:
    step = record.steps[index]
    is_left_out = step.start is None
    text = (record.step_text(index) or "").strip()
    # A step left out of the output can be read nowhere else on the page.
    if len(text) > _SNIPPET_CHARS and not is_left_out:
        text = f"{text[:_SNIPPET_CHARS]}\u2026"
    return StepRow(
        index=index,
        value=_number(step.value),
        boundary=_number(step.boundary),
        entropy=_number(step.entropy),
        td_error=_number(step.td_error, signed=True),
        verdict=record.step_verdict(index),
        is_bifurcation=index == record.bifurcation,
        is_left_out=is_left_out,
        role=record.step_role(index),
        text=text,
    )


def _number(number: float | None, *, signed: bool = False) -> str:
    if number is None:
        return "\u2013"
    return f"{number:+.3f}" if signed else f"{number:.3f}"


def _chart(record: Record) -> Chart | None:
    """None where no step was scored."""
    if all(step.value is None for step in record.steps):
        return None
    empty = Chart(bars=())
    slot = min(_MAX_SLOT, (empty.width - empty.gutter) / len(record.steps))
    stride = math.ceil(len(record.steps) / _MAX_TICKS)
    bars = []
    for index, step in enumerate(record.steps):
        verdict = record.step_verdict(index)
        marks = ["t*"] if index == record.bifurcation else []
        marks += ["\u2717"] if index == record.breach else []
        bars.append(
            Bar(
                left=empty.gutter + index * slot,
                width=slot,
                top=None if step.value is None else empty.level(step.value),
                limit=None if step.boundary is None else empty.level(step.boundary),
                verdict=verdict,
                mark=" ".join(marks),
                tick="" if index % stride else str(index),
                title=f"step {index}: value {_number(step.value)},"
                f" boundary {_number(step.boundary)}, {verdict}",
            )
        )
    return replace(empty, bars=tuple(bars))
