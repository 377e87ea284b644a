"""Keeps the journal: finished units on disk, in the order in which they were finished.

One entry per line: `LENGTH CHECKSUM KEY KIND JSON`, the first three in hexadecimal. The length
covers everything after the checksum, which is BLAKE2b over the same bytes. An entry counts once
`append` has returned: then it has been written and fsynced, together with all entries that arrived
during the fsync before. A crash leaves a torn last line, which is cut off. Damage anywhere else
costs the entries that it hit: if an entry's newline is damaged, its length finds the entry's end,
and the other way round.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Final, Literal, NamedTuple

from synth_client.errors import OutputError, first_of
from synth_client.files.atomic import output_errors
from synth_client.files.spill_table import SpillTable
from trajectory_records.disk import sync

_log = logging.getLogger(__name__)

Kind = Literal["R", "F"]
RECORD: Final = "R"
FAILURE: Final = "F"

_HEAD: Final = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{16}) ")
_ANY_HEAD: Final = re.compile(rb"[0-9a-f]{8} [0-9a-f]{16} [0-9a-f]{32} [RF] ")
_BODY: Final = re.compile(rb"([0-9a-f]{32}) ([RF]) ")
_HEAD_BYTES: Final = 26
_BODY_HEAD_BYTES: Final = 35


class Place(NamedTuple):
    """The place of an entry's content in the file."""

    kind: Kind
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A record or a failure as JSON, under its unit's key."""

    key: bytes
    kind: Kind
    content: bytes

    def line(self) -> bytes:
        """Return the entry as written, newline included."""
        body = b"%s %s %s" % (self.key.hex().encode(), self.kind.encode(), self.content)
        return b"%08x %s %s\n" % (len(body), _checksum(body), body)


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry, or damage if `key` is None, from `start` to `end` (exclusive)."""

    start: int
    end: int
    key: bytes | None = None
    kind: Kind = RECORD


class Journal:
    """One open journal. Made by `open_journal`.

    Failures of earlier runs are not in the index, so their units are asked again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index = SpillTable("kind TEXT", "start INTEGER", "length INTEGER")
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._came = asyncio.Event()
        self._end = 0
        self.num_damaged = 0
        """The number of damaged stretches that were skipped."""
        self.first: Place | None = None
        """The first record that was there when the journal was opened."""
        with output_errors(path):
            self._file = _opened(path)
            self._recover(os.fstat(self._file.fileno()).st_size)

    def get(self, key: bytes) -> Place | None:
        """Return the place of a key's entry, None if there is none yet."""
        found = self._index.get(key)
        return None if found is None else Place(*found)

    def read(self, place: Place) -> bytes:
        """Return the JSON of an entry."""
        with output_errors(self._path):
            content = os.pread(self._file.fileno(), place.length, place.start)
        if len(content) != place.length:
            raise OutputError(f"{self._path}: became shorter while it was being read")
        return content

    async def append(self, entry: Entry) -> None:
        """Return when the entry is on disk. Raises `OutputError` if it cannot be written."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        self._came.set()
        await done

    async def write(self) -> None:
        """Run the one writer until it is cancelled. Its failure fails every waiting `append`."""
        while True:
            await self._came.wait()
            self._came.clear()
            batch, self._waiting = self._waiting, []
            lines = [entry.line() for entry, _ in batch]
            # Not to be cancelled half-way: the thread would continue without us.
            await _uncancelled(asyncio.to_thread(self._commit, b"".join(lines)))
            with output_errors(self._path):
                for (entry, done), line in zip(batch, lines, strict=True):
                    self._place(entry.key, entry.kind, self._end, len(line))
                    self._end += len(line)
                    if not done.done():
                        done.set_result(None)

    def close(self) -> None:
        self._file.close()
        self._index.close()

    def _place(self, key: bytes, kind: Kind, start: int, length: int) -> Place:
        head = _HEAD_BYTES + _BODY_HEAD_BYTES
        place = Place(kind, start + head, length - head - 1)
        self._index.put(key, kind, place.start, place.length)
        return place

    def _commit(self, content: bytes) -> None:
        with output_errors(self._path):
            try:
                self._write_all(content)
                os.fsync(self._file.fileno())
            except OSError:
                # On a full disk a part may have been written. Its whole entries would do no harm,
                # but `append` has not returned for them.
                self._file.truncate(self._end)
                raise

    def _write_all(self, content: bytes) -> None:
        rest, end = memoryview(content), self._end + len(content)
        while rest:
            rest = rest[os.pwrite(self._file.fileno(), rest, end - len(rest)) :]

    def _recover(self, size: int) -> None:
        """Index the existing entries and cut off what a crash has left half-written."""
        torn = False
        for found in _scan(self._file, size):
            if found.key is not None:
                if found.kind == RECORD:
                    length = found.end - found.start
                    place = self._place(found.key, RECORD, found.start, length)
                    self.first = self.first or place
            elif found.end == size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
                torn = True
                break
            else:
                self.num_damaged += 1
                _log.warning(
                    "%s: bytes %d to %d are damaged and skipped; the lost units are done again",
                    self._path,
                    found.start,
                    found.end,
                )
            self._end = found.end
        if torn:
            _log.warning(
                "%s: the last line is incomplete (%d bytes) and is removed",
                self._path,
                size - self._end,
            )
        if self._end == size:
            return
        if self._end < size:
            self._file.truncate(self._end)
        else:  # only the last newline is missing
            os.pwrite(self._file.fileno(), b"\n", size)
        os.fsync(self._file.fileno())


@asynccontextmanager
async def open_journal(path: Path) -> AsyncIterator[Journal]:
    """Open the journal at `path`, created if needed, with its writer running.

    The caller holds the lock. Raises `OutputError` if the journal cannot be opened; when the writer
    fails, so does the body.
    """
    journal = await asyncio.to_thread(Journal, path)
    try:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(journal.write())
            yield journal
            writer.cancel()
    except BaseExceptionGroup as failures:
        raise first_of(failures) from failures
    finally:
        journal.close()


def _opened(path: Path) -> FileIO:
    is_new = not path.exists()
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    if is_new:
        sync(path.parent)
    return file


def _scan(file: FileIO, size: int) -> Iterator[_Found]:
    """Yield every entry and every damaged stretch, in order and without gaps."""
    start = 0
    file.seek(0)
    with os.fdopen(os.dup(file.fileno()), "rb", buffering=2**20) as reader:
        while start < size:
            reader.seek(start)
            for line in iter(reader.readline, b""):
                found = _parse(line, start)
                yield found
                start = found.end
                if found.end != found.start + len(line):
                    break  # an entry ended inside the line


def _parse(line: bytes, start: int) -> _Found:
    """Parse the beginning of a line. The entry's newline may be missing or another byte."""
    head = _HEAD.match(line)
    if head is None:
        return _damaged(line, start)
    length = int(head[1], 16)
    body = line[_HEAD_BYTES : _HEAD_BYTES + length]
    parts = _BODY.match(body)
    if parts is None or len(body) != length or _checksum(body) != head[2]:
        return _damaged(line, start)
    kind: Kind = RECORD if parts[2] == b"R" else FAILURE
    key = bytes.fromhex(parts[1].decode())
    return _Found(start, start + _HEAD_BYTES + length + 1, key, kind)


def _damaged(line: bytes, start: int) -> _Found:
    # If both the length and the newline are damaged, the start of the next entry is searched for.
    following = _ANY_HEAD.search(line, 1)
    return _Found(start, start + (following.start() if following else len(line)))


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=8).hexdigest().encode()


async def _uncancelled(work: Coroutine[None, None, None]) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        await task
        raise
