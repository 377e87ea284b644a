"""Reads reference answers of every type for what they say: 0.00002 is not "2e-05"."""

import struct
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Final

import orjson

_MAX_EXPONENT: Final = 1000
# A float of fewer digits is not taken for one that was stored in four bytes.
_MIN_DIGITS_OF_NOISE: Final = 12
_MOST_IN_FOUR_BYTES: Final = 3e38


def reference_of(value: object, column: str) -> str | None:
    """Return the reference as a text, None if there is none (null, NaN, an empty text or list).

    A list names several right answers, as a JSON array of texts. Raises ValueError for what is no
    answer.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return _text_of(value, column)
    found = [text for one in value if (text := _text_of(one, column)) is not None]
    texts = list(dict.fromkeys(found))
    if len(texts) < 2:
        return texts[0] if texts else None
    return orjson.dumps(texts).decode()


def _text_of(value: object, column: str) -> str | None:
    match value:
        case None:
            return None
        case str():
            return checked_text(value, column) if value.strip() else None
        case bool():
            return "true" if value else "false"
        case int() | float() | Decimal():
            return number_text(value, column)
        case date() | time():
            return value.isoformat()
        case bytes():
            return _decoded(value, column)
        case Mapping():
            fields = ", ".join(map(str, value)) or "none"
            raise ValueError(f"{column} is an object, not an answer; its fields: {fields}")
        case _:
            raise ValueError(f"{column} is no answer, but a {type(value).__name__}")


def checked_text(text: str, column: str) -> str:
    """Return the text. Raises ValueError if it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{column} is not valid UTF-8") from error
    return text


def _decoded(content: bytes, column: str) -> str | None:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{column} is not valid UTF-8") from error
    return text if text.strip() else None


def number_text(number: float | Decimal, column: str) -> str | None:
    """Return the number in digits, without an exponent if it can be read so; None for NaN."""
    if isinstance(number, int):
        try:
            return str(number)
        except ValueError as error:
            raise ValueError(f"{column} has too many digits") from error
    written = number if isinstance(number, Decimal) else Decimal(_shortest(number))
    if written.is_nan():
        return None
    if written.is_infinite():
        return "inf" if written > 0 else "-inf"
    if written and abs(written.adjusted()) > _MAX_EXPONENT:
        return str(written)
    is_whole = isinstance(number, float) and number.is_integer()
    return f"{written:.0f}" if is_whole else f"{written:f}"


def _shortest(number: float) -> str:
    """Return the fewest digits that give the number back.

    0.10000000149011612 is what four bytes make of 0.1, and no other number of that many digits
    happens to fit in four bytes.
    """
    written = repr(number)
    if len(written.partition("e")[0]) < _MIN_DIGITS_OF_NOISE or not _fits_four_bytes(number):
        return written
    digits = (f"{number:.{count}g}" for count in range(6, 10))
    return next((one for one in digits if _in_four_bytes(float(one)) == number), written)


def _fits_four_bytes(number: float) -> bool:
    return abs(number) < _MOST_IN_FOUR_BYTES and _in_four_bytes(number) == number


def _in_four_bytes(number: float) -> float:
    (stored,) = struct.unpack("f", struct.pack("f", number))
    return float(stored)
