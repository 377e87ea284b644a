"""Reads JSON without losing digits: a number that a float cannot hold stays a Decimal.

Python writes `NaN` and `Infinity`, which no JSON has; they are read for what they say.
"""

import json
import re
from decimal import Decimal
from typing import Any, BinaryIO, Final

import orjson

# The digits of a number that a float, or an integer of eight bytes, may not hold.
_LONG_NUMBER: Final = re.compile(rb"[\d.]{17}|[\d.]{1,16}[eE][-+]?\d{3}")
_NOT_IN_JSON: Final = re.compile(rb"\bNaN\b|\bInfinity\b")
_OUTSIDE: Final = re.compile(rb'"|NaN|-?Infinity')
_INSIDE: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# No JSON number is infinite; this is the text that a reference says for one.
_WRITTEN: Final = {b"NaN": b"null", b"Infinity": b'"inf"', b"-Infinity": b'"-inf"'}
_LONGEST_WORD: Final = len(b"-Infinity")


def loads_exactly(text: bytes) -> Any:  # noqa: ANN401
    """Read one JSON value; Python's `NaN` and `Infinity` are numbers here, too.

    Raises `orjson.JSONDecodeError`, or another ValueError where the text is too deep or a number
    too long.
    """
    if _LONG_NUMBER.search(text) is None:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            if _NOT_IN_JSON.search(text) is None:
                raise
    try:
        return exact(json.loads(text, parse_float=Decimal))
    except json.JSONDecodeError:
        return orjson.loads(text)  # whose words are the same for every line
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def exact(value: Any) -> Any:  # noqa: ANN401
    """Return the value with floats for the Decimals that floats hold exactly as written."""
    match value:
        case Decimal():
            number = float(value)
            return number if Decimal(repr(number)) == value else value
        case list():
            return [exact(one) for one in value]
        case dict():
            return {key: exact(one) for key, one in value.items()}
    return value


class StrictJson:
    """A file of JSON without Python's `NaN` (null here) and `Infinity`, read piece by piece."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""
        self._is_inside = False
        """Whether `_rest` begins inside of a text."""

    def read(self, size: int) -> bytes:
        """Return the next bytes, empty only at the end of the file."""
        if not size:
            return b""
        written = b""
        while not written:
            chunk = self._file.read(size)
            written = self._rewritten(self._rest + chunk, is_last=not chunk)
            if not chunk:
                break
        return written

    def _rewritten(self, data: bytes, *, is_last: bool) -> bytes:
        """Return `data` rewritten, up to what may be cut off at its end, which is kept back."""
        parts: list[bytes] = []
        at = 0
        while True:
            if self._is_inside:
                inside = _INSIDE.match(data, at)
                stop = at if inside is None else inside.end()
                parts.append(data[at:stop])
                at = stop
                if data[at : at + 1] != b'"':
                    break
                self._is_inside = False
                parts.append(b'"')
                at += 1
            found = _OUTSIDE.search(data, at)
            if found is None:
                stop = max(at, len(data) - _LONGEST_WORD)
                parts.append(data[at:stop])
                at = stop
                break
            parts += (data[at : found.start()], _WRITTEN.get(found[0], found[0]))
            self._is_inside = found[0] == b'"'
            at = found.end()
        self._rest = b"" if is_last else data[at:]
        if is_last:
            parts.append(data[at:])
        return b"".join(parts)
