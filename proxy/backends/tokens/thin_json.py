"""Rows of log-probabilities in a scoring answer, of which only those that count are read.

An answer has a row for every position: 20 candidates each, where the entropy needs those of a
step's first token only, or the whole context, where only the new steps count, or all candidates,
where only the token itself counts. As Python objects they would cost more than all else that the
proxy does for a step, and their number would set off the garbage collector. So what does not count
is taken out of the answer's bytes before they are parsed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson

_NONE: Mapping[int, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a server writes an array of rows whose first is null, without blanks.

    `opening` and `closing` begin and end every row, so deep that what they make with a comma
    between them stands nowhere else in the array but in a string.
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
        """The answer's JSON; of an array of `num_rows` rows all that are not `wanted` may be null.

        Of a row in `cut` one number may be all that is left: the one that follows these bytes,
        where they are what comes first behind `opening` (its braces are closed by `closing`).

        An answer written in another way is read whole, and so is one with another number of rows:
        a row is missing, or a token's string looks like the end of one. Raises as orjson does.
        """
        thinned = self._thinned(answer, num_rows, wanted, cut)
        if thinned is not None:
            try:
                return orjson.loads(thinned)
            except orjson.JSONDecodeError:
                # A string looked like the array's end, or the answer is none: the whole tells.
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
        # The rows before `low`, which may be thousands, are counted and not cut apart.
        before, *rows = answer[first:end].rsplit(between, num_rows - low)
        if low == 1:
            rows.insert(0, before)
        elif before.count(between) != low - 2:
            return None
        if len(rows) != num_rows - low:
            return None
        kept = [
            self.opening + _cut(row, cut.get(index)) + self.closing if index in wanted else b"null"
            for index, row in enumerate(rows, low)
        ]
        array = b",".join([b"null"] * low + kept)
        rest = answer[end + len(self.closing) :]
        return b'%s"%s":[%s%s' % (answer[:start], self.name, array, rest)


def _cut(row: bytes, begin: bytes | None) -> bytes:
    """The row up to the end of the number that follows `begin`; all of one that is another."""
    if begin is None or not row.startswith(begin):
        return row
    end = row.find(b",", len(begin))
    return row if end < 0 else row[:end]
