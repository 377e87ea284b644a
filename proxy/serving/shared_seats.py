"""Shares seats among processes: one number per process, in a file that all of them map.

The kernel spreads connections unevenly, so with equal shares of the limit some processes would turn
requests away while others have room. A shared count is exact.
"""

import fcntl
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from proxy.backends.worker_slots import WorkerSlots

_NUMBER = struct.Struct("q")


class SharedSeats:
    """One process's view of the seats. Its own number is at its index in the file.

    The lock is the kernel's, so a process that is killed frees it; it is held for microseconds.
    """

    def __init__(self, path: Path, worker_slots: WorkerSlots) -> None:
        self._own = worker_slots.worker
        self._all = struct.Struct(f"{worker_slots.num_workers}q")
        self._file = path.open("a+b")
        self._file.truncate(self._all.size)
        self._numbers = mmap.mmap(self._file.fileno(), self._all.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._numbers.close()
        self._file.close()

    @property
    def num_taken(self) -> int:
        return sum(self._all.unpack_from(self._numbers))

    def take(self, num: int, most: int) -> bool:
        with self._locked():
            fits = self.num_taken + num <= most
            if fits:
                self._add(num)
        return fits

    def leave(self, num: int) -> None:
        with self._locked():
            self._add(-num)

    def clear(self, worker: int) -> None:
        """Free the seats of a process that is dead."""
        with self._locked():
            self._put(worker, 0)

    def _add(self, num: int) -> None:
        (taken,) = _NUMBER.unpack_from(self._numbers, self._own * _NUMBER.size)
        self._put(self._own, taken + num)

    def _put(self, worker: int, num: int) -> None:
        # By assignment: pack_into writes zeros first, which a reader without the lock would see.
        start = worker * _NUMBER.size
        self._numbers[start : start + _NUMBER.size] = _NUMBER.pack(num)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
