"""Rows that share an id, for then id and sample do not tell their records apart."""

import logging
from hashlib import blake2b
from typing import Final, Self

from synth_client.index import RECORD, Index, Place

_log = logging.getLogger(__name__)

_KEY_BYTES: Final = 16
_SEEN: Final = Place(RECORD, 0, 0)


class RepeatedIds:
    """Notices them however many rows there are; a context manager that owns its memory."""

    def __init__(self) -> None:
        self._seen = Index()
        self._num_again = 0
        self._first = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._seen.close()

    def add(self, name: str, sample: int) -> None:
        """One more sample of the row with that id."""
        if sample:
            return
        key = blake2b(name.encode(), digest_size=_KEY_BYTES).digest()
        if self._seen.get(key) is None:
            self._seen.put(key, _SEEN)
            return
        self._first = self._first or name
        self._num_again += 1

    def tell(self) -> None:
        """Warn where there were any."""
        if self._num_again:
            _log.warning(
                "rows with the id of a row before them: %d, first '%s'; id and sample do not tell"
                " their records apart, so give them other ids and run the same command again,"
                " which asks nothing twice",
                self._num_again,
                self._first,
            )
