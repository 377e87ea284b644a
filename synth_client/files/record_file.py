"""Reads files of records, one JSON object a line, one record at a time."""

from collections.abc import Iterator
from pathlib import Path

from synth_client.errors import InputError
from synth_client.record import Record, RecordError


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file; blank lines are skipped.

    Raises `RecordError`, naming file and line, at the first line that is not a record, and
    `InputError` if the file cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _record(line, path, number)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        return Record.from_json_line(line)
    except RecordError as error:
        raise RecordError(error.fault, path=path, line=number) from error
