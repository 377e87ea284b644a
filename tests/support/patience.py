"""Says how long tests wait for what must come, on the slowest of machines too."""

from collections.abc import Iterator
from typing import Final

PATIENCE_S: Final = 240.0
"""Only a test that would wait for ever meets this limit."""


def longer_and_longer(first_s: float) -> Iterator[float]:
    """Limits to try in turn: the first is enough on a fast machine, the last on any.

    For tests of time limits that something else has to keep: they pass as soon as it does.
    """
    limit_s = first_s
    while limit_s < PATIENCE_S / 2:
        yield limit_s
        limit_s *= 6
