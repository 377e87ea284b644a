"""Holds the token ids of texts in little memory, because a trajectory has tens of thousands."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import orjson

from proxy.errors import TokenizerFailed


def id_array(ids: Iterable[int]) -> "array[int]":
    """Return the ids at four bytes each. Raises `TokenizerFailed` for one of more than 31 bits,
    which no vocabulary has.
    """
    ids = tuple(ids)
    try:
        return array("i", ids)
    except OverflowError as error:
        message = f"the id {max(ids, key=abs)} cannot be a token's: ids are below 2^31"
        raise TokenizerFailed(message) from error


class TokenIds(Sequence[int]):
    """Token ids in order, and their JSON, for which each id is converted once, when it is added:
    every scoring call sends all of them.
    """

    __slots__ = ("_extremes", "_ids", "_json")
    __hash__ = None  # type: ignore[assignment]  # because it grows

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids = array("i")
        self._json = bytearray()
        """Every id, and a comma after each."""
        self._extremes: tuple[int, int] | None = None
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Add ids at the end. Raises `TokenizerFailed`, and adds none, if one is impossible."""
        new = id_array(ids)
        if not new:
            return
        if self._ids:
            low, high = self.extremes
            self._extremes = min(low, *new), max(high, *new)
        self._ids.extend(new)
        self._json += _listed(new)

    def truncate(self, num: int) -> None:
        """Drop all ids after the first `num`."""
        if dropped := self._ids[num:]:
            del self._ids[num:]
            del self._json[len(self._json) - len(_listed(dropped)) :]
            self._extremes = None

    @property
    def extremes(self) -> tuple[int, int]:
        """The lowest and the highest id; there must be one."""
        if self._extremes is None:
            self._extremes = min(self._ids), max(self._ids)
        return self._extremes

    def fragment(self) -> orjson.Fragment:
        """Return the ids as a JSON array for `orjson.dumps`."""
        return orjson.Fragment(b"[%b]" % bytes(self._json[:-1]))

    def first(self, num: int) -> "TokenIds":
        """Return the first `num` ids apart, for a text that continues in another way."""
        copied = TokenIds()
        copied._ids, copied._json = self._ids[:], self._json[:]
        copied._extremes = self._extremes
        copied.truncate(num)
        return copied

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> list[int]: ...

    def __getitem__(self, place: int | slice) -> int | list[int]:
        return self._ids[place] if isinstance(place, int) else self._ids[place].tolist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return self._ids == other._ids
        return self._ids.tolist() == other

    def __repr__(self) -> str:
        return f"TokenIds({self._ids.tolist()})"


def _listed(ids: "array[int]") -> bytes:
    return orjson.dumps(ids.tolist())[1:-1] + b","
