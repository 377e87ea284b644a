"""Where the entry of each key is in the journal. Made anew each time the journal is opened."""

import sqlite3
import threading
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["R", "F"]
RECORD: Final = "R"
FAILURE: Final = "F"

_CACHE_KIB: Final = 65536


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry's content is."""

    kind: Kind
    start: int
    length: int


class Index:
    """Where the entry of each key is. On disk when it grows, in a file that nobody else sees."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute(
            "CREATE TABLE places (key BLOB PRIMARY KEY, kind TEXT, start INTEGER, length INTEGER)"
            " WITHOUT ROWID"
        )
        self._database.execute("BEGIN")  # never ended: the file dies with the process
        # The writer puts, the thread that reads the input gets.
        self._lock = threading.Lock()

    def put(self, key: bytes, place: Place) -> None:
        """A later entry takes the place of an earlier one."""
        row = (key, place.kind, place.start, place.length)
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)", row)

    def get(self, key: bytes) -> Place | None:
        """None where there is no entry."""
        wanted = "SELECT kind, start, length FROM places WHERE key = ?"
        with self._lock:
            found = self._database.execute(wanted, (key,)).fetchone()
        return None if found is None else Place(*found)

    def close(self) -> None:
        self._database.close()
