"""Shares the objects of token ids, because a held trajectory has tens of thousands of them.

A parser makes a new object of 32 bytes for every id that it reads; a reference to one takes 8.
"""

from collections.abc import Iterable

# More than any vocabulary has; beyond it, a server invents ids.
_MOST = 2**20
_SHARED: dict[int, int] = {}


def shared_ids(ids: Iterable[int]) -> Iterable[int]:
    """Return equal ids, of which each is the same object wherever it occurs."""
    if len(_SHARED) >= _MOST:
        return (_SHARED.get(one, one) for one in ids)
    ids = tuple(ids)
    return map(_SHARED.setdefault, ids, ids)
