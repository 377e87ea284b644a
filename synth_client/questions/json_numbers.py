"""Reads JSON without losing digits: a number that a float cannot hold stays a Decimal."""

import json
import re
from decimal import Decimal
from typing import Any, Final

import orjson

# The digits of a number that a float, or an integer of eight bytes, may not hold.
_LONG_NUMBER: Final = re.compile(rb"[\d.]{17}|[\d.]{1,16}[eE][-+]?\d{3}")
_NOT_IN_JSON: Final = re.compile(rb"\bNaN\b|\bInfinity\b")


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
