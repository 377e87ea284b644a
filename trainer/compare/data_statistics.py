"""Sums up the data that a student learned from, and shows it as a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from synth_client.report.rescore import METHOD, own_thresholds
from synth_client.report.step_boundary import is_by_step
from trajectory_records.record import Record


@dataclass(frozen=True, slots=True)
class Data:
    """The data that one unit learned from: tokens per question; `right`, `breached` as shares.

    `breaches` is their mean number in a trajectory, which may have several. `teacher_tokens` has
    all that the teacher wrote, of which `teacher_tokens_discarded` are in no output. The thresholds
    are None for methods that have none.
    """

    num_examples: int
    right: float
    breached: float
    breaches: float
    student_tokens: float
    teacher_tokens: float
    teacher_tokens_discarded: float
    teacher_scored_tokens: float
    output_characters: float
    base_threshold: float | None
    entropy_scale: float | None


def data_of(records: Sequence[Record], used: Sequence[Record]) -> Data:
    """Sum up records, of which those in `used` are learned; neither may be empty."""
    num = len(records)
    num_questions = len({record.id for record in records})
    usages = [record.usage.motab for record in records]
    base_threshold, entropy_scale = (
        own_thresholds(records[0])
        if records[0].method == METHOD and not is_by_step(records[0])
        else (None, None)
    )
    return Data(
        num_examples=len(used),
        right=sum(bool(record.correct) for record in records) / num,
        breached=sum(record.breach is not None for record in records) / num,
        breaches=sum(len(record.all_breaches) for record in records) / num,
        student_tokens=sum(usage.student_tokens for usage in usages) / num_questions,
        teacher_tokens=sum(usage.teacher_tokens or 0 for usage in usages) / num_questions,
        teacher_tokens_discarded=sum(usage.teacher_tokens_discarded for usage in usages)
        / num_questions,
        teacher_scored_tokens=sum(usage.teacher_scored_tokens for usage in usages) / num_questions,
        output_characters=fmean(len(record.output) for record in used),
        base_threshold=base_threshold,
        entropy_scale=entropy_scale,
    )


def data_lines(by_label: Mapping[str, Sequence[Data]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, one of the means over an arm's data."""
    yield (
        "| Data, mean over the seeds | examples | right, % | breached, % | breaches each |"
        " characters | student tokens | teacher tokens written | of these thrown away |"
        " teacher tokens scored |"
    )
    yield "|---|" + "---:|" * 9
    for label, data in by_label.items():
        cells = (
            f"{fmean(each.num_examples for each in data):.0f}",
            f"{fmean(each.right for each in data) * 100:.1f}",
            f"{fmean(each.breached for each in data) * 100:.1f}",
            f"{fmean(each.breaches for each in data):.2f}",
            f"{fmean(each.output_characters for each in data):.0f}",
            f"{fmean(each.student_tokens for each in data):.0f}",
            f"{fmean(each.teacher_tokens for each in data):.0f}",
            f"{fmean(each.teacher_tokens_discarded for each in data):.0f}",
            f"{fmean(each.teacher_scored_tokens for each in data):.0f}",
        )
        yield f"| {label} | {' | '.join(cells)} |"
