"""Appends records to a file that several processes may share, and starts the next file in time.

A line counts once `append` has returned: then it has been written and fsynced, and no crash loses
it. A crash, or a disk that is full, may leave a last line that has no end; whoever appends next
cuts it off. Processes take turns by a lock that the kernel frees when its holder is killed.
"""

import logging
import os
import re
from collections import deque
from pathlib import Path
from typing import Final

from filelock import FileLock

from trajectory_records.disk import sync
from trajectory_records.record import Record, RecordError

_log = logging.getLogger(__name__)

_LOCK_POLL_S: Final = 0.002
_BLOCK_BYTES: Final = 64 * 1024
_OPENING: Final = b'{"id":'
"""The first bytes of every line that `Record.to_json_line` makes."""


class RecordWriter:
    """Appends lines to the file at `path`.

    A line that would make the file larger than `max_bytes` goes to the next file: the file that is
    there is renamed to `NAME.000001.jsonl`, with the next free number. Every method raises OSError
    if the disk refuses.
    """

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))

    def prepare(self) -> None:
        """Make the file, and check that it can be written and holds records.

        Raises `RecordError` if it holds something else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.acquire(poll_interval=_LOCK_POLL_S):
            descriptor = self._opened()
            try:
                self._check_first_line()
                self._mend(descriptor)
            finally:
                os.close(descriptor)

    def append(self, lines: deque[bytes]) -> None:
        """Append the lines, and remove each of them from `lines` once it is on disk."""
        with self._lock.acquire(poll_interval=_LOCK_POLL_S):
            while lines:
                # Opened each time, because another process may have renamed the file.
                descriptor = self._opened()
                try:
                    size = self._mend(descriptor)
                    part = self._fitting(lines, size)
                    if part:
                        _write_at_end(descriptor, b"".join(part), size)
                finally:
                    os.close(descriptor)
                for _ in part:
                    lines.popleft()
                if not part:
                    self._start_next_file()

    def _opened(self) -> int:
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if is_new:
            sync(self.path.parent)
        return descriptor

    def _fitting(self, lines: deque[bytes], size: int) -> list[bytes]:
        """Return the first lines that fit into a file of this size; an empty file takes any."""
        part: list[bytes] = []
        for line in lines:
            if self._max_bytes is not None and 0 < size > self._max_bytes - len(line):
                break
            part.append(line)
            size += len(line)
        return part

    def _start_next_file(self) -> None:
        name = re.compile(rf"{re.escape(self.path.stem)}\.(\d+){re.escape(self.path.suffix)}")
        found = (name.fullmatch(path.name) for path in self.path.parent.iterdir())
        last = max((int(match[1]) for match in found if match), default=0)
        part = self.path.with_name(f"{self.path.stem}.{last + 1:06}{self.path.suffix}")
        self.path.rename(part)
        sync(self.path.parent)
        _log.info("%s is full; its records are in %s", self.path, part)

    def _check_first_line(self) -> None:
        with self.path.open("rb") as file:
            line = file.readline()
        if not line or (not line.endswith(b"\n") and line.startswith(_OPENING)):
            return
        try:
            Record.from_json_line(line)
        except RecordError as error:
            fault = f"the file holds something else than records: {error.fault}"
            raise RecordError(fault, path=self.path, line=1) from error

    def _mend(self, descriptor: int) -> int:
        """Cut off a last line that has no end. Returns the size of the file."""
        size = os.fstat(descriptor).st_size
        start = _start_of_last_line(descriptor, size)
        if start == size:
            return size
        tail = os.pread(descriptor, size - start, start)
        try:
            Record.from_json_line(tail)
        except RecordError:
            _log.warning(
                "%s: the last line is incomplete (%d bytes) and is removed", self.path, size - start
            )
            os.ftruncate(descriptor, start)
            return start
        # Only the newline is missing.
        return size + os.write(descriptor, b"\n")


def _start_of_last_line(descriptor: int, size: int) -> int:
    """Return the offset after the last newline."""
    end = size
    while end:
        start = max(0, end - _BLOCK_BYTES)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write_at_end(descriptor: int, content: bytes, size: int) -> None:
    """Append to a file of that size and fsync; a failure leaves the file as it was."""
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
