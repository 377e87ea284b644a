"""Keeps a prefix cache over token ids, exact to the token; nothing is ever evicted."""

from array import array
from bisect import bisect_left
from collections.abc import Sequence

_BYTES = array("I").itemsize


class PrefixCache:
    """The contexts that a server has computed.

    They are sorted as bytes, so the context that shares the longest prefix with a new context is
    one of its two neighbours.
    """

    def __init__(self) -> None:
        self._contexts: list[bytes] = []

    def longest_prefix(self, ids: Sequence[int]) -> int:
        """Return how many of the first `ids` are known."""
        key = array("I", ids).tobytes()
        at = bisect_left(self._contexts, key)
        neighbours = self._contexts[max(0, at - 1) : at + 1]
        return max((_common(key, known) // _BYTES for known in neighbours), default=0)

    def add(self, ids: Sequence[int]) -> None:
        """Remember a context, in place of its own prefixes."""
        key = array("I", ids).tobytes()
        at = bisect_left(self._contexts, key)
        if at < len(self._contexts) and self._contexts[at].startswith(key):
            return
        # Prefixes of this context come right before it, at most one.
        if at and key.startswith(self._contexts[at - 1]):
            self._contexts[at - 1] = key
        else:
            self._contexts.insert(at, key)


def _common(one: bytes, other: bytes) -> int:
    """Return the length of the common prefix."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
