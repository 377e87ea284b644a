"""Warns when input rows share an id: their records could not be distinguished."""

import logging
from hashlib import blake2b
from typing import Final, Self

from synth_client.files.spill_table import SpillTable

_log = logging.getLogger(__name__)

_KEY_BYTES: Final = 16


class RepeatedIds:
    """Counts repeated ids among any number of rows."""

    def __init__(self) -> None:
        self._seen = SpillTable()
        self._num_repeats = 0
        self._first = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._seen.close()

    def add(self, name: str, sample: int) -> None:
        """Count one unit; only the first sample of a row counts its id."""
        if sample:
            return
        key = blake2b(name.encode(), digest_size=_KEY_BYTES).digest()
        if self._seen.get(key) is None:
            self._seen.put(key)
            return
        self._first = self._first or name
        self._num_repeats += 1

    def warn(self) -> None:
        """Log a warning if any id was repeated."""
        if self._num_repeats:
            _log.warning(
                "%d rows repeat an earlier id (first: '%s'); give every row its own id and run"
                " again: nothing is asked twice",
                self._num_repeats,
                self._first,
            )
