"""Writes the final files from the journal, in the order of the input."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import orjson

from synth_client.errors import InputError, OutputError
from synth_client.files.atomic import AtomicFile, output_errors
from synth_client.files.journal import RECORD, Journal
from synth_client.files.workspace import Workspace
from synth_client.judging.verifier import Verifier
from synth_client.questions.question import BadRow, Unit
from synth_client.questions.repeated_ids import RepeatedIds
from synth_client.runs.failed_rows import failed_row, read_failed
from synth_client.training_data.filters import Kept
from trajectory_records.record import Record, RecordError


@dataclass(frozen=True, slots=True)
class Totals:
    """The number of lines of each file; `kept` counts what the filters did."""

    num_records: int
    num_failed: int
    kept: Kept = field(default_factory=Kept)


def write_final(
    work: Iterator[Unit | BadRow],
    journal: Journal,
    workspace: Workspace,
    verifier: Verifier,
    *,
    stop_if_asked: Callable[[], None],
) -> Totals:
    """Put both files in place at once; without failures there is no second file.

    One unit is held at a time. Raises `InputError` if the journal lacks a unit, `OutputError`,
    and what `stop_if_asked` raises, which is called before each unit; then the files that were
    there stay.
    """
    with output_errors(workspace.output), RepeatedIds() as ids:

        def lines() -> Iterator[tuple[bytes, bool]]:
            for item in work:
                stop_if_asked()
                if isinstance(item, BadRow):
                    yield failed_row(item).to_json_line(), False
                else:
                    ids.add(item.question.id, item.sample)
                    yield _line(item, journal, verifier)

        totals = write_lines(workspace, lines())
        ids.warn()
    return totals


def write_lines(workspace: Workspace, lines: Iterable[tuple[bytes, bool]]) -> Totals:
    """Write lines, each with whether it is a record or a failure, as `write_final` does."""
    num_records = num_failed = 0
    with ExitStack() as stack, output_errors(workspace.output):
        records = stack.enter_context(AtomicFile(workspace.output))
        failures = stack.enter_context(AtomicFile(workspace.failed))
        for line, is_record in lines:
            (records if is_record else failures).file.write(line)
            num_records += is_record
            num_failed += not is_record
        # Failures first, so that a reader of the new records finds their failures, too.
        failures.publish_unless_empty()
        records.publish()
    return Totals(num_records, num_failed)


def journalled(unit: Unit, journal: Journal, kind: str) -> tuple[bytes, bool]:
    """Return a unit's JSON and True, or the line of its failure and False.

    Raises `InputError` if the journal lacks the unit, which it names as a `kind`.
    """
    place = journal.get(unit.key)
    if place is None:
        raise InputError(
            f"{kind} {unit.question.id} was added to the input during the run; run the same"
            " command again"
        )
    content = journal.read(place)
    if place.kind != RECORD:
        return read_failed(content, unit).to_json_line(), False
    return content, True


def _line(unit: Unit, journal: Journal, verifier: Verifier) -> tuple[bytes, bool]:
    """Return the line of a unit, and whether it is a record.

    A record that was judged against another answer or by another rule is judged again.
    """
    content, is_record = journalled(unit, journal, "question")
    if not is_record:
        return content, False
    fields = orjson.loads(content)
    question = unit.question
    verification = fields.get("verification")
    is_judged = verification is not None and verification["rule"] == verifier.rule
    if is_judged and (fields["id"], fields["answer"]) == (question.id, question.answer):
        return content + b"\n", True
    try:
        record = Record.from_json_line(content)
    except RecordError as error:
        raise OutputError(f"the journal's entry is no record: {error}") from error
    record = record.model_copy(update={"id": question.id, "answer": question.answer})
    if not is_judged or fields["answer"] != question.answer:
        record = verifier.verify(record)
    return record.to_json_line(), True
