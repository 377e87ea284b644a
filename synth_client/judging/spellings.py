"""Compares answers that say the same in another spelling: times, intervals, spaces."""

import re
from dataclasses import dataclass, replace
from typing import Final

from synth_client.judging.candidates import Candidate
from synth_client.judging.latex import latex_of

_SPACES: Final = re.compile(r"(?<=\W)\s+|\s+(?=\W)")
_TIME: Final = re.compile(
    r"(?:at )?(\d{1,2}):(\d\d)((?::\d\d)*)(?:\s*([ap])\.?m\b\.?)?", re.IGNORECASE
)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}([/.])\d{1,2}\1\d{4}")
_YEAR: Final = re.compile(r"\d{4}")
_HALF_DAY: Final = 12
_INEQUALITY: Final = re.compile(
    r"(?:(?P<low>[^<>≤≥=,]+)(?P<above>[<≤]))?\s*[A-Za-z]\s*(?P<sign>[<>≤≥])(?P<end>[^<>≤≥=,]+)"
)
_INTERVAL: Final = re.compile(r"[\[(][^\[\]()]*(?:\([^()]*\)[^\[\]()]*)*,.*[\])]")


def same_text(one: str, two: str) -> bool:
    """Return whether plain texts are equal, except for spaces that part nothing and for the case
    of words.
    """
    if one.isalpha() and two.isalpha() and min(len(one), len(two)) > 1:
        return one.casefold() == two.casefold()
    return _SPACES.sub("", one) == _SPACES.sub("", two)


@dataclass(frozen=True, slots=True)
class SameTime:
    """The comparison of two times or dates; the verdict is None if it is open: 3:30 and 3:30 PM, or
    dates of different spelling.
    """

    verdict: bool | None


def same_time(one: str, two: str) -> SameTime | None:
    """Compare two times of day or dates of different spelling; None if one is something else."""
    for date, other in ((one, two), (two, one)):
        if _DATE.fullmatch(date):
            return SameTime(None if set(_YEAR.findall(date)) & set(_YEAR.findall(other)) else False)
    first, second = _TIME.fullmatch(one), _TIME.fullmatch(two)
    if first is None or second is None:
        return None
    if first.group(2, 3) != second.group(2, 3):
        return SameTime(verdict=False)
    hours = _hours(first), _hours(second)
    if None not in hours and (hours[0] == hours[1] or not (first[4] and second[4])):
        return SameTime(hours[0] == hours[1])
    are_near = int(first[1]) % _HALF_DAY == int(second[1]) % _HALF_DAY
    return SameTime(None if are_near and (first[4] or second[4]) else False)


def _hours(time: re.Match[str]) -> int | None:
    """Return the hour from 0 to 23, None if it may be before or after noon."""
    if time[4] is None:
        return int(time[1]) if int(time[1]) > _HALF_DAY else None
    return int(time[1]) % _HALF_DAY + (_HALF_DAY if time[4].lower() == "p" else 0)


def as_interval(candidate: Candidate, other: Candidate) -> Candidate:
    """Return an inequality as an interval if the other answer is one: `2 < x` is (2, infty)."""
    found = _INEQUALITY.fullmatch(candidate.plain)
    if found is None or _INTERVAL.fullmatch(other.plain) is None:
        return candidate
    low, sign, end = found["low"], found["sign"], found["end"]
    is_closed = sign in {"≤", "≥"}
    if low is None and sign in {"<", "≤"}:
        written = f"(-infty,{end}{']' if is_closed else ')'}"
    elif low is None:
        written = f"{'[' if is_closed else '('}{end},infty)"
    elif sign in {"<", "≤"}:
        left = "[" if found["above"] == "≤" else "("
        written = f"{left}{low},{end}{']' if is_closed else ')'}"
    else:
        return candidate
    return replace(candidate, plain=written, latex=latex_of(written), quantity=None)
