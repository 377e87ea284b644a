"""Lists the files of records that the configuration names, and reads them a part at a time.

Clients name a file by its place in the list, and never by a path.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

from proxy.errors import RequestError
from trajectory_records.record import Record, RecordError
from trajectory_records.viewer.view import entry_of, view_of

_MOST_FILES: Final = 1_000
_MOST_LOOKED_AT: Final = 20_000
_MOST_ROWS: Final = 100
_MOST_BYTES: Final = 2 * 2**20
"""What one answer reads, but for the end of a line that it has begun."""
_LONGEST_LINE: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of records; `name` is for people and for requests."""

    name: str
    path: Path
    size: int
    modified: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The file of `server.records` with its full predecessors, and the files of a folder."""

    records: Path | None
    folder: Path | None

    def found(self) -> list[RunFile]:
        """Return what there is, the latest first."""
        named = [*self._recorded(), *self._in_folder()]
        files = [file for name, path in named if (file := _described(name, path)) is not None]
        return sorted(files, key=lambda file: file.modified, reverse=True)[:_MOST_FILES]

    def part(self, name: str, start: int) -> dict[str, Any]:
        """Return rows for the viewer's list, from the line that begins at the byte `start`.

        The last item of a row is the byte where its record begins. `next` is where the next part
        begins, None at the end; `fault` says why the reading ended before.
        """
        rows: list[list[Any]] = []
        with _opened(self._file(name), start) as file:
            for at, line in _lines(file, start):
                try:
                    rows.append([*entry_of(Record.from_json_line(line)), at])
                except RecordError as error:
                    fault = f"the line at byte {at} is no record: {error.fault}"
                    return {"rows": rows, "next": None, "fault": fault}
                end = file.tell()
                if len(rows) == _MOST_ROWS or end - start > _MOST_BYTES:
                    return {"rows": rows, "next": end, "fault": None}
        return {"rows": rows, "next": None, "fault": None}

    def view(self, name: str, start: int) -> dict[str, Any]:
        """Return the viewer's view of the record that begins at the byte `start`."""
        with _opened(self._file(name), start) as file:
            for at, line in _lines(file, start):
                try:
                    return view_of(Record.from_json_line(line))
                except RecordError as error:
                    message = f"the line at byte {at} is no record: {error.fault}"
                    raise RequestError(message, param="at") from error
        raise RequestError(f"the file ends at byte {start}", param="at")

    def _file(self, name: str) -> Path:
        for file in self.found():
            if file.name == name:
                return file.path
        raise RequestError(f"there is no file '{name}' here", param="file")

    def _recorded(self) -> Iterator[tuple[str, Path]]:
        if self.records is None:
            return
        yield f"server.records: {self.records.name}", self.records
        full = self.records.parent.glob(f"{_literal(self.records.stem)}.[0-9]*.jsonl")
        for path in islice(sorted(full), _MOST_FILES):
            yield f"server.records: {path.name}", path

    def _in_folder(self) -> Iterator[tuple[str, Path]]:
        if self.folder is None:
            return
        root = self.folder.resolve()
        looked_at = (
            Path(parent, name) for parent, _, names in os.walk(root) for name in sorted(names)
        )
        for path in islice(looked_at, _MOST_LOOKED_AT):
            is_record_file = path.suffix == ".jsonl" and not path.stem.endswith(".failed")
            # A link may lead out of the folder.
            if is_record_file and path.resolve().is_relative_to(root):
                yield path.relative_to(root).as_posix(), path


def _literal(stem: str) -> str:
    """Return a pattern that matches just this text."""
    return "".join(f"[{char}]" if char in "[*?" else char for char in stem)


def _described(name: str, path: Path) -> RunFile | None:
    try:
        state = path.stat()
    except OSError:  # not there yet, or just renamed
        return None
    return RunFile(name, path, state.st_size, state.st_mtime) if path.is_file() else None


def _opened(path: Path, start: int) -> BinaryIO:
    """Open the file where a line begins. Raises `RequestError` if none begins there."""
    try:
        file = path.open("rb")
    except OSError as error:
        message = f"the file cannot be read: {error.strerror}"
        raise RequestError(message, param="file") from error
    if start:
        file.seek(start - 1)
        if file.read(1) != b"\n":
            file.close()
            raise RequestError(f"no record begins at byte {start}", param="at")
    return file


def _lines(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that have an end, with the bytes at which they begin."""
    at = start
    while line := file.readline(_LONGEST_LINE):
        if not line.endswith(b"\n"):  # still being written, or too long
            return
        if line.strip():
            yield at, line
        at += len(line)
