"""Cuts unneeded rows of log-probabilities out of a scoring answer before it is parsed.

An answer has a row for every position of the whole context, with 20 candidates each. Only the rows
of new steps are needed: of a step's first token all candidates, for the entropy, and of its other
tokens only their own log-probability. As Python objects the rows would cost more than everything
else that the proxy does for a step, and their number would trigger the garbage collector.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson

_NONE: Mapping[int, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RowLayout:
    """A server's way to write an array of rows, the first of which is null, without blanks.

    `opening` and `closing` begin and end every row. They include enough brackets that `closing`, a
    comma and `opening` in a row occur nowhere else in the array but in a string.
    """

    name: bytes
    opening: bytes
    closing: bytes

    def loads(
        self,
        answer: bytes,
        num_rows: int,
        wanted: Collection[int],
        cut: Mapping[int, bytes] = _NONE,
    ) -> Any:  # noqa: ANN401
        """Parse the answer; in its array of `num_rows` rows, those not `wanted` may become null.

        A row in `cut` may keep only one number: the number after these bytes, if they come first
        after `opening` (`closing` closes the row's braces).

        An answer in another format is read whole, and so is an answer with another number of rows,
        because a row is missing or a token's string looks like a row's end. Raises as orjson does.
        """
        thinned = self._thinned(answer, num_rows, wanted, cut)
        if thinned is not None:
            try:
                return orjson.loads(thinned)
            except orjson.JSONDecodeError:
                # A string looked like the array's end, or the answer is not JSON: read all of it.
                return orjson.loads(answer)
        return orjson.loads(answer)

    def _thinned(
        self, answer: bytes, num_rows: int, wanted: Collection[int], cut: Mapping[int, bytes]
    ) -> bytes | None:
        begin = b'"%s":[null,%s' % (self.name, self.opening)
        between = b"%s,%s" % (self.closing, self.opening)
        start, low = answer.find(begin), min(wanted, default=0)
        if start < 0 or low < 1:
            return None
        first = start + len(begin)
        end = answer.find(self.closing + b"]", max(answer.rfind(between, first), first))
        if end < 0:
            return None
        # The rows before `low`, which may be thousands, are counted but not split.
        before, *rows = answer[first:end].rsplit(between, num_rows - low)
        if low == 1:
            rows.insert(0, before)
        elif before.count(between) != low - 2:
            return None
        if len(rows) != num_rows - low:
            return None
        kept = [b"null"] * num_rows
        for index in wanted:
            if index < num_rows:
                row = _cut(rows[index - low], cut.get(index))
                kept[index] = self.opening + row + self.closing
        array = b",".join(kept)
        rest = answer[end + len(self.closing) :]
        return b'%s"%s":[%s%s' % (answer[:start], self.name, array, rest)


def _cut(row: bytes, begin: bytes | None) -> bytes:
    """The row up to the end of the number after `begin`; all of a row that begins differently."""
    if begin is None or not row.startswith(begin):
        return row
    end = row.find(b",", len(begin))
    return row if end < 0 else row[:end]
