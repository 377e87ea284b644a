"""Reads questions from files and datasets of any size, one row at a time."""

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from proxy.near_names import did_you_mean
from synth_client.errors import InputError
from synth_client.questions.json_numbers import StrictJson, exact, loads_exactly
from synth_client.questions.layout import Columns, check_columns, read_row
from synth_client.questions.parquet_and_hub import read_hub, read_parquet
from synth_client.questions.question import BadRow, Question

_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
_MAX_FIELD_CHARS: Final = 2**31 - 1
_COUNT_BYTES: Final = 2**20
# An input that begins with this many bad rows, and no question, is refused.
_MOST_BAD_FIRST: Final = 100


@dataclass(frozen=True, slots=True)
class Cells:
    """A row as read: its columns, or why it has none. `place` is shown to the user."""

    place: str
    columns: Mapping[str, Any] | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The input: `rows` starts over from the first row each time and holds few rows in memory.

    `rows` raises `InputError` where the rest of the input is unreadable; a row that is wrong on its
    own is a `BadRow`. `count` gives the number of rows, None if that takes reading them all.
    `source` is the input as the user named it, `name` identifies it wherever it lies. `columns` are
    those that the user named.
    """

    name: str
    source: str
    cells: Callable[[], Iterator[Cells]]
    count_all: Callable[[], int | None]
    limit: int | None
    columns: Columns = field(default_factory=Columns)

    def rows(self) -> Iterator[Question | BadRow]:
        """Yield every row in order, up to the limit.

        Raises `InputError` if there is no row, or if none of the first rows holds a question.
        """
        rows = (self._row(cells, i) for i, cells in enumerate(islice(self.cells(), self.limit)))
        first: list[Question | BadRow] = []
        for row in islice(rows, _MOST_BAD_FIRST):
            first.append(row)
            if isinstance(row, Question):
                break
        else:
            raise self._asks_nothing(first)
        yield from first
        yield from rows

    def _row(self, cells: Cells, index: int) -> Question | BadRow:
        if cells.columns is None:
            return BadRow(str(index), cells.place, cells.fault)
        return read_row(cells.columns, index=index, place=cells.place, columns=self.columns)

    def _asks_nothing(self, rows: Sequence[Question | BadRow]) -> InputError:
        row = rows[0] if rows else None
        if not isinstance(row, BadRow):
            return InputError(f"{self.source} holds no rows")
        first = "first row holds" if len(rows) == 1 else f"first {len(rows):,} rows hold"
        return InputError(f"{self.source}: the {first} no question; {row.place}: {row.fault}")

    def count(self) -> int | None:
        """Return the number of rows within the limit, None if it is unknown."""
        total = self.count_all()
        return total if self.limit is None or total is None else min(total, self.limit)


def open_dataset(
    source: str,
    *,
    limit: int | None = None,
    split: str = "train",
    subset: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
) -> Dataset:
    """Open a file (by its suffix), a dataset's folder, or a Hugging Face dataset.

    `split` and `subset` choose within a dataset. Raises `InputError` if there is no such thing.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix not in _READERS:
            known = ", ".join(_READERS)
            meant = did_you_mean(suffix, _READERS)
            message = f"{path}: unknown format '{suffix}'; known formats are {known}{meant}"
            raise InputError(message)
        reader = _READERS[suffix]
        return Dataset(
            path.name,
            source,
            lambda: reader.read(path, columns),
            lambda: reader.count(path),
            limit,
            columns,
        )
    if suffix in _READERS:
        raise InputError(f"{path}: no such file")
    if not path.exists() and not _HUB_NAME.fullmatch(source):
        raise InputError(f"{source}: no such file or folder")
    hub = read_hub(source, split, subset)

    def cells() -> Iterator[Cells]:
        return _numbered(hub.rows())

    name = " ".join(part for part in (hub.name, subset, split) if part)
    return Dataset(name, source, cells, lambda: hub.num_rows, limit, columns)


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[Cells]:
    for number, row in enumerate(rows, start=1):
        yield Cells(f"row {number}", row)


def _read_jsonl(path: Path, _columns: Columns) -> Iterator[Cells]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number}"
            try:
                columns = loads_exactly(line.removeprefix(b"\xef\xbb\xbf").rstrip())
            except orjson.JSONDecodeError as error:
                yield Cells(place, None, _json_fault(line, error))
                continue
            except ValueError as error:
                yield Cells(place, None, f"invalid JSON: {error}")
                continue
            yield _cells(place, columns)


def _json_fault(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not valid UTF-8 at byte {wrong.start + 1} of the line"
    return f"invalid JSON: {error.msg} at character {error.pos + 1} of the line"


def _cells(place: str, columns: object) -> Cells:
    if isinstance(columns, dict):
        return Cells(place, columns)
    return Cells(place, None, f"a {type(columns).__name__}, not an object")


def _exact_cells(place: str, columns: object) -> Cells:
    try:
        return _cells(place, exact(columns))
    except RecursionError:
        return Cells(place, None, "it is nested too deeply")


def _read_json(path: Path, _columns: Columns) -> Iterator[Cells]:
    """Read an array of objects piece by piece."""
    import ijson  # noqa: PLC0415 - only this format needs it

    number = 0
    with _opened(path) as file:
        try:
            for number, columns in enumerate(ijson.items(StrictJson(file), "item"), start=1):
                yield _exact_cells(f"row {number}", columns)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            # yajl draws an arrow under the place of the error.
            reason = " ".join(str(error).partition("(right here)")[0].split())
            raise InputError(f"{path}: invalid JSON after row {number}: {reason}") from error
    if number == 0:
        raise InputError(f"{path}: does not hold an array of rows")


def _read_csv(path: Path, columns: Columns) -> Iterator[Cells]:
    csv.field_size_limit(min(sys.maxsize, _MAX_FIELD_CHARS))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Bytes that are not UTF-8 fail only their own row, so they are let through here.
    with _opened(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as f:
        reader = csv.reader(f, delimiter=delimiter, strict=True)
        num_read = 0
        try:
            header = next(reader, None)
            if header is None:
                return
            check_columns(path, header, columns)
            num_read = reader.line_num
            for values in reader:
                if values:
                    yield _csv_cells(header, values, f"line {num_read + 1}")
                num_read = reader.line_num
        except csv.Error as error:
            place = f"{path}, line {num_read + 1}"
            raise InputError(f"{place}: invalid CSV from here on: {error}") from error


def _csv_cells(header: list[str], values: list[str], place: str) -> Cells:
    if len(values) != len(header):
        return Cells(place, None, f"{len(values)} fields, but the header has {len(header)}")
    # An empty field is CSV's only way to express a missing value.
    filled = [value or None for value in values]
    return Cells(place, dict(zip(header, filled, strict=True)))


def _read_parquet(path: Path, columns: Columns) -> Iterator[Cells]:
    table = read_parquet(path)
    check_columns(path, table.columns, columns)
    return _numbered(table.rows())


def _opened(path: Path) -> Any:  # noqa: ANN401 - typeshed's BufferedReader is generic by version
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _count_lines(path: Path) -> int | None:
    """Blank lines count as rows here: the result is an estimate for the progress display."""
    total, last = 0, b"\n"
    with _opened(path) as file:
        while chunk := file.read(_COUNT_BYTES):
            total += chunk.count(b"\n")
            last = chunk[-1:]
    return total + (last != b"\n")


def _unknown(_path: Path) -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class _Reader:
    read: Callable[[Path, Columns], Iterator[Cells]]
    count: Callable[[Path], int | None]


_READERS: Final[Mapping[str, _Reader]] = {
    ".jsonl": _Reader(_read_jsonl, _count_lines),
    ".ndjson": _Reader(_read_jsonl, _count_lines),
    ".json": _Reader(_read_json, _unknown),
    ".csv": _Reader(_read_csv, _unknown),
    ".tsv": _Reader(_read_csv, _unknown),
    ".parquet": _Reader(_read_parquet, lambda path: read_parquet(path).num_rows),
}
SUFFIXES: Final = frozenset(_READERS)
"""The endings of the files that can be read."""
