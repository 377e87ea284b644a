"""Tells the answer that a sentence states from the numbers of a clause or phrase behind it.

"The remainder is 4 when 25 is divided by 7" states 4, and "the maximum is 10 at x = 2" states 10.
In "she has 42 apples in 3 boxes" it is open which number was asked for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_STATES: Final = re.compile(
    r"\b(?:is|are|was|were|be|equals?|gives?|has|have|had|makes?|needs?|costs?|earns?|pays?|takes?"
    r"|gets?|spends?|becomes?)\s+"
    r"(?:(?:only|exactly|just|then|thus|now|about|equal to|a total of)\s+)*[$(\\]*$"
)
_IS_SUBJECT: Final = re.compile(
    r"[$)\\\s]*(?:is|are|was|were)\s+(?:the|a|an|our|his|her|its|their)\b"
)
_CLAUSE: Final = re.compile(
    r"\b(?:when(?:ever)?|if|upon|provided|assuming|unless|out of|reached|attained|achieved)\b"
    r"|\b(?:for|at|with)\s+[$(\\]*[A-Za-z]\w?\s*="
)
_CASE: Final = re.compile(r"\b(?:when(?:ever)?|if|unless)\b")
_PHRASE: Final = re.compile(
    r"\b(?:in|per|for|with|than|after|before|from|within|during|among|between|out of|each|every"
    r"|to (?:get|make|reach|have|fill))\s+"
    r"(?!an? (?:total|sum|average|profit)\b)(?:[A-Za-z]+\s+){0,3}[$(\\]*$"
)
# What may give the answer after all: another main clause, or another case.
_GOES_ON: Final = re.compile(
    r"[,;](?!\s*(?:reached|attained|achieved)\b)"
    r"|\b(?:so|then|thus|therefore|hence|otherwise|total|which|but)\b"
    r"|\b(?:and|or)\s+[$(\\]*[-\u2212]?[\d.]"
)


@dataclass(frozen=True, slots=True)
class Stated:
    """The index of the number or formula that is stated, and whether it is surely the answer."""

    index: int
    is_sure: bool


def stated_before(text: str, places: Sequence[tuple[int, int]]) -> Stated | None:
    """Return which of the places in a sentence is stated before a clause or phrase with the last.

    None if the last one is an answer like any other.
    """
    open_one = None
    for index, (start, end) in enumerate(places[:-1]):
        if not (_STATES.search(text[:start]) or _IS_SUBJECT.match(text, end)):
            continue
        clause = _CLAUSE.search(text, end, places[index + 1][1])
        rest = "" if clause is None else text[clause.end() :]
        if clause is not None and not (
            _GOES_ON.search(text[end : clause.end()]) or _GOES_ON.search(rest) or _CASE.search(rest)
        ):
            return Stated(index, is_sure=True)
        open_one = index if open_one is None else open_one
    if open_one is None or not places:
        return None
    last, before = places[-1][0], places[-2][1]
    is_open = _CLAUSE.search(text, places[open_one][1]) or _PHRASE.search(text[before:last])
    is_said = _STATES.search(text[:last]) is not None
    return Stated(open_one, is_sure=False) if is_open and not is_said else None
