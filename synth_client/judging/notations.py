r"""Rewrites answers that are set in another notation: degrees in radians, `|x| < 3` as a chain,
logarithms without a base as natural logarithms.
"""

import re
from dataclasses import replace
from fractions import Fraction
from typing import Final

from synth_client.judging.candidates import Candidate
from synth_client.judging.latex import latex_of

_ANGLE: Final = "angle"
_PI: Final = re.compile(r"(?<![A-Za-z])pi(?![A-Za-z])")
_NUMBER: Final = r"\d+(?:\.\d+|/\d+)?"
_WITHIN: Final = re.compile(
    rf"\|\s*([A-Za-z])\s*(?:([+-])\s*({_NUMBER}))?\s*\|\s*([<≤])\s*({_NUMBER})"
)
_NATURAL: Final = re.compile(r"(?<![A-Za-z])ln(?![A-Za-z])")
_WITHOUT_BASE: Final = re.compile(r"\\?(?<![A-Za-z])log(?![A-Za-z]|\s*_)")


def in_radians(candidate: Candidate, other: Candidate) -> Candidate:
    """Return an angle in degrees in radians if the other answer has a pi."""
    number = candidate.quantity
    if number is None or number.unit is None or number.unit.dimension != _ANGLE:
        return candidate
    if not number.values or _PI.search(other.plain) is None:
        return candidate
    part = number.values[0] * number.unit.size / 180
    latex = rf"\frac{{{part.numerator}}}{{{part.denominator}}} \pi"
    return replace(candidate, quantity=None, latex=latex)


def as_chain(candidate: Candidate) -> Candidate:
    """Return the bounds of an absolute value as a chain: `|x - 1| < 2` is `-1<x<3`."""
    found = _WITHIN.fullmatch(candidate.plain)
    if found is None:
        return candidate
    middle = Fraction(found[3] or 0) * (1 if found[2] == "-" else -1)
    low, end = middle - Fraction(found[5]), middle + Fraction(found[5])
    written = f"{low}{found[4]}{found[1]}{found[4]}{end}"
    return replace(candidate, plain=written, latex=latex_of(written), quantity=None)


def with_natural_logarithms(one: Candidate, two: Candidate) -> tuple[Candidate, Candidate] | None:
    """Return both with `log` read as `ln` if one has the former and the other the latter."""
    naturals = [_NATURAL.search(part.plain) is not None for part in (one, two)]
    open_ones = [_WITHOUT_BASE.search(part.plain) is not None for part in (one, two)]
    if not any(naturals) or not any(open_ones):
        return None
    first, second = (
        replace(part, latex=_WITHOUT_BASE.sub(r"\\ln ", part.latex)) for part in (one, two)
    )
    return first, second
