"""Computes sums and products that an answer leaves to the reader, such as `7 - 5`."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from synth_client.judging.numbers.quantity import Quantity

_MAX_TOKENS: Final = 60
_MAX_BITS: Final = 4000
Piece = tuple[str, str, Quantity | None]


def value_of(pieces: Sequence[Piece]) -> Fraction | None:
    """Return the value of numbers, `+ - * /` and brackets, None for anything else.

    A piece is a token's kind, text and number.
    """
    if len(pieces) > _MAX_TOKENS:
        return None
    try:
        return _SumReader(pieces).whole()
    except (_NoSum, ZeroDivisionError):
        return None


class _NoSum(Exception):
    """There is something else than a sum of known numbers."""


class _SumReader:
    """Reads the pieces from left to right, products before sums."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._at = 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self._at < len(self._pieces):
            raise _NoSum
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while (sign := self._operator("+-")) is not None:
            other = self._product()
            value = value + other if sign == "+" else value - other
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while (sign := self._operator("*/xX")) is not None:
            other = self._factor()
            value = value * other if sign != "/" else value / other
            if value.numerator.bit_length() + value.denominator.bit_length() > _MAX_BITS:
                raise _NoSum
        return value

    def _factor(self) -> Fraction:
        sign = self._operator("+-")
        if sign is not None:
            return self._factor() if sign == "+" else -self._factor()
        if self._at >= len(self._pieces):
            raise _NoSum
        kind, _, number = self._pieces[self._at]
        self._at += 1
        if kind == "left":
            value = self._sum()
            if self._at >= len(self._pieces) or self._pieces[self._at][0] != "right":
                raise _NoSum
            self._at += 1
            return value
        if number is None or not number.is_certain or number.unit is not None:
            raise _NoSum
        return number.values[0]

    def _operator(self, signs: str) -> str | None:
        if self._at >= len(self._pieces):
            return None
        kind, text, _ = self._pieces[self._at]
        if kind not in {"operator", "letter"} or text not in signs:
            return None
        self._at += 1
        return text
