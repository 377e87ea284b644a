"""Describes what did not become a record: one JSON object per line of OUT.failed.jsonl."""

import orjson
from pydantic import ValidationError

from synth_client.asking.pool import Failed
from synth_client.errors import OutputError
from synth_client.questions.question import BadRow, Unit
from trajectory_records.complaints import complaints_of
from trajectory_records.parts import Count, Part
from trajectory_records.record import Message, Usage

BAD_ROW = "bad_row"


class Fault(Part):
    """The cause: `kind` is the class of the error, or "bad_row". The rest is the server's error."""

    kind: str
    message: str
    status: int | None = None
    type: str | None = None
    param: str | None = None
    code: str | None = None


class FailedRow(Part):
    """A unit that failed, or, if `sample` is None, a whole row that could not be asked.

    `place` is the position of such a row in the input. `wasted` is the cost of the attempts, None
    if no answer named any.
    """

    id: str
    sample: Count | None
    place: str | None
    messages: tuple[Message, ...] | None
    answer: str | None
    error: Fault
    attempts: Count
    wasted: Usage | None = None

    def to_json_line(self) -> bytes:
        """Return one line of JSON in UTF-8, newline included."""
        left_out = {"wasted"} if self.wasted is None else set()
        return orjson.dumps(self.model_dump(exclude=left_out), option=orjson.OPT_APPEND_NEWLINE)


def failed_unit(unit: Unit, failed: Failed) -> FailedRow:
    """Return the failed row of a unit."""
    question, error = unit.question, failed.error
    return FailedRow(
        id=question.id,
        sample=unit.sample,
        place=None,
        messages=question.messages,
        answer=question.answer,
        error=Fault(
            kind=error.trouble.value,
            message=error.message,
            status=error.status,
            type=error.error_type,
            param=error.param,
            code=error.code,
        ),
        attempts=failed.attempts,
        wasted=failed.wasted,
    )


def failed_row(row: BadRow) -> FailedRow:
    """Return the failed row of an input row that asks nothing."""
    return FailedRow(
        id=row.id,
        sample=None,
        place=row.place,
        messages=None,
        answer=None,
        error=Fault(kind=BAD_ROW, message=row.fault),
        attempts=0,
    )


def read_failed(content: bytes, unit: Unit) -> FailedRow:
    """Read a journalled failure, with the present id and answer of `unit`."""
    try:
        failed = FailedRow.model_validate_json(content)
    except ValidationError as error:
        raise OutputError(
            f"the journal's entry is no failed row: {complaints_of(error)}"
        ) from error
    update = {"id": unit.question.id, "answer": unit.question.answer}
    return failed.model_copy(update=update)
