"""Holds the tokens of a long text in little memory, because a trajectory has tens of thousands.

A list that grows is moved again and again, and leaves holes in the heap, for each of hundreds of
trajectories. So tokens are held in blocks of one size, which are made once.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Generic, NamedTuple, TypeVar, overload

import orjson

from proxy.errors import TokenizerFailed

_BLOCK = 512
_Item = TypeVar("_Item")
_Block = TypeVar("_Block")


class _Blocks(Sequence[_Item], Generic[_Item, _Block]):
    """Items in order; more can be added at the end, and the last ones dropped."""

    __hash__ = None  # type: ignore[assignment]  # because it changes
    __slots__ = ("_full", "_open")

    def __init__(self, items: Iterable[_Item] = ()) -> None:
        self._full: list[_Block] = []
        """`_BLOCK` items each."""
        self._open: list[_Item] = []
        """The items after them, fewer than `_BLOCK`."""
        self.extend(items)

    def _made(self, items: list[_Item]) -> _Block:
        raise NotImplementedError

    def _items(self, block: _Block) -> Sequence[_Item]:
        raise NotImplementedError

    def extend(self, items: Iterable[_Item]) -> None:
        """Add items at the end."""
        self._open += items
        while len(self._open) >= _BLOCK:
            self._full.append(self._made(self._open[:_BLOCK]))
            del self._open[:_BLOCK]

    def truncate(self, num: int) -> None:
        """Drop all items after the first `num`."""
        index = num // _BLOCK
        if index < len(self._full):
            self._open = list(self._items(self._full[index]))
            del self._full[index:]
        del self._open[num - len(self._full) * _BLOCK :]

    def __len__(self) -> int:
        return len(self._full) * _BLOCK + len(self._open)

    def __iter__(self) -> Iterator[_Item]:
        return chain(chain.from_iterable(map(self._items, self._full)), self._open)

    @overload
    def __getitem__(self, place: int) -> _Item: ...

    @overload
    def __getitem__(self, place: slice) -> list[_Item]: ...

    def __getitem__(self, place: int | slice) -> _Item | list[_Item]:
        if isinstance(place, int):
            index, within = divmod(range(len(self))[place], _BLOCK)
            return self._block(index)[within]
        start, end, step = place.indices(len(self))
        if step != 1:
            return list(self)[place]
        # Nearly always the last items are wanted, which are in one block.
        first, last = start // _BLOCK, max(start, end - 1) // _BLOCK
        items = self._block(first)
        if first < last:
            items = list(chain.from_iterable(map(self._block, range(first, last + 1))))
        return list(items[start - first * _BLOCK : max(start, end) - first * _BLOCK])

    def _block(self, index: int) -> Sequence[_Item]:
        return self._items(self._full[index]) if index < len(self._full) else self._open

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, type(self)) else other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"


class Pieces(_Blocks[str, tuple[str, ...]]):
    """The pieces of a text, one per token."""

    __slots__ = ()

    def _made(self, items: list[str]) -> tuple[str, ...]:
        return tuple(items)

    def _items(self, block: tuple[str, ...]) -> Sequence[str]:
        return block


class _Listed(NamedTuple):
    """A block of ids in JSON, with commas between them, and its lowest and highest id."""

    ids: bytes
    lowest: int
    highest: int


class TokenIds(_Blocks[int, _Listed]):
    """The ids of a text's tokens. They are held as JSON, because every scoring call sends all of
    them and reads few.
    """

    __slots__ = ()

    def _made(self, items: list[int]) -> _Listed:
        return _Listed(_listed(items), min(items), max(items))

    def _items(self, block: _Listed) -> Sequence[int]:
        found: list[int] = orjson.loads(b"[%b]" % block.ids)
        return found

    @property
    def extremes(self) -> tuple[int, int]:
        """The lowest and the highest id. Raises ValueError if there is none."""
        lowest = min(chain((block.lowest for block in self._full), self._open))
        return lowest, max(chain((block.highest for block in self._full), self._open))

    def fragment(self) -> orjson.Fragment:
        """Return the ids as a JSON array for `orjson.dumps`."""
        blocks = [block.ids for block in self._full]
        if self._open or not blocks:
            blocks.append(_listed(self._open))
        # Not around the joined blocks, because that would copy all of them once more.
        blocks[0] = b"[" + blocks[0]
        blocks[-1] += b"]"
        return orjson.Fragment(b",".join(blocks))

    def first(self, num: int) -> "TokenIds":
        """Return the first `num` ids, in the same blocks, for a text that continues otherwise."""
        found = TokenIds()
        found._full, found._open = self._full[:], self._open[:]
        found.truncate(num)
        return found


def _listed(ids: list[int]) -> bytes:
    try:
        return orjson.dumps(ids)[1:-1]
    except orjson.JSONEncodeError as error:
        message = f"{max(ids, key=abs)} is no token's id: it has more than 64 bits"
        raise TokenizerFailed(message) from error
