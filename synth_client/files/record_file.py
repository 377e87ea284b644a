"""Reads files of records, one JSON object a line, one record at a time."""

import logging
from collections.abc import Iterator
from pathlib import Path

import orjson

from synth_client.errors import InputError
from trajectory_records.record import Record, RecordError

_log = logging.getLogger(__name__)


class BadLine(RecordError, InputError):
    """A line of a file is not a record."""


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file; blank lines are skipped.

    So is a last line that has no end: a server is still writing it, or was killed while it did.
    Raises `BadLine`, naming file and line, at the first line that is not a record, and `InputError`
    if the file cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if _is_torn(line):
                    _log.warning("%s, line %d: the line has no end and is skipped", path, number)
                elif line.strip():
                    yield _record(line, path, number)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _is_torn(line: bytes) -> bool:
    """Return whether a line lacks its newline, and not only that."""
    if line.endswith(b"\n"):
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return bool(line.strip())
    return False


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        return Record.from_json_line(line)
    except RecordError as error:
        raise BadLine(error.fault, path=path, line=number) from error
