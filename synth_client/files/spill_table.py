"""Keeps rows under unique keys in a temporary SQLite file, because they may outgrow the memory."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

from synth_client.errors import OutputError

_CACHE_KIB: Final = 65536


class SpillTable:
    """A table with a `BLOB` key and the given columns; it vanishes with the process.

    Threads may share it: the journal's writer puts while the reader of the input gets. Raises
    `OutputError` if the temporary folder has no room.
    """

    def __init__(self, *columns: str) -> None:
        self._places = ", ".join("?" * (1 + len(columns)))
        self._lock = threading.Lock()
        with _temporary_folder_errors():
            # An empty name is a file that nobody else can see, on disk only once it grows.
            self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            wanted = ", ".join(("key BLOB PRIMARY KEY", *columns))
            self._database.execute(f"CREATE TABLE spilled ({wanted}) WITHOUT ROWID")
            self._database.execute("BEGIN")  # never committed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, key: bytes, *values: object) -> None:
        """Insert a row, or replace the row with that key."""
        statement = f"INSERT OR REPLACE INTO spilled VALUES ({self._places})"  # noqa: S608
        with self._lock, _temporary_folder_errors():
            self._database.execute(statement, (key, *values))

    def get(self, key: bytes) -> tuple[Any, ...] | None:
        """Return the values under a key, None if there are none."""
        with self._lock, _temporary_folder_errors():
            found = self._database.execute("SELECT * FROM spilled WHERE key = ?", (key,)).fetchone()
        return None if found is None else tuple(found[1:])

    def close(self) -> None:
        self._database.close()


@contextmanager
def _temporary_folder_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(f"a table in the temporary folder: {error}") from error
