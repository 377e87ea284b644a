"""Gives records to export, and writes records to files."""

from collections.abc import Iterable
from pathlib import Path

from tests.support.records import breached, record_of, scored, spans_of, unbroken
from trajectory_records.record import Record

THINKING = "<think>\nIs it 36?\n</think>\n\n  Yes: “36” \U0001f34e\r\n\t\\boxed{36}\n\n"


CONVERSATION = [
    {"role": "system", "content": "Think."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "6 * 6?"},
]


RECORDS = [
    record_of(breached()),
    record_of(
        scored()
        | {"sample": 1, "verification": {"rule": "x", "fault": None, "scores": {"strict": 0.5}}}
    ),
    record_of(
        unbroken(
            id="thinks",
            messages=CONVERSATION,
            output=THINKING,
            spans=spans_of([("teacher", THINKING)]),
            steps=[],
            params={},
            models={"student": None, "teacher": "big"},
            predicted=None,
            correct=None,
            verification=None,
        )
    ),
]


def written(path: Path, records: Iterable[Record] = RECORDS) -> Path:
    path.write_bytes(b"".join(record.to_json_line() for record in records))
    return path
