"""Reads the numbers of a text: each one whole, with its sign, and with what makes it doubtful.

Tokens that operators join are one number too: `7 - 5` holds no 5. Numbers that stand next to each
other with nothing but "and" or a comma between them are one answer together.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, NamedTuple

from synth_client.judging.numbers.arithmetic import value_of
from synth_client.judging.numbers.quantity import Quantity
from synth_client.judging.numbers.tokens import Token, tokens_of
from synth_client.judging.numbers.units import CURRENCIES

NUMBER_WORD: Final = (
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven"
    r"|eigh|nine)teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|half|zero"
    r"|quarter|third)s?\b"
)
"""The pattern of a number that is written out, or of a part of one."""

_LIST: Final = re.compile(r"[,;&]|[,;]?\s*(?:and|or)", re.IGNORECASE)
_COMPOUND: Final = re.compile(r"[:\u2013\u2014]|to|through|by|out of|in|of", re.IGNORECASE)
_NEGATIVE: Final = frozenset({"minus", "negative"})
# Words right before a number that bound it, deny it, or make another number of it.
_BOUNDS: Final = re.compile(
    r"(?:\b(?:not|except(?: for)?|least|most|(?:more|less|greater|fewer|larger|smaller) than"
    r"|between|over|under|below|above|exceeds?|neither|nor|never|or|almost|nearly|close to|up to"
    r"|(?:\w+n't|cannot|not|never)(?: (?:be|equal|have|get))?|(?:any|every)thing but|all but"
    r"|(?:other|rather) than|different from|unlike|instead of"
    r"|(?:square |cube |\w+th )?roots?(?: of)?|(?:half|third|quarter|fourth|fifth|square|cube"
    r"|double|triple|negative|opposite|inverse|reciprocal|factorial|log(?:arithm)?|percent"
    r"|percentage) of|half|twice|thrice|double|triple|times|divided by)"
    r"\s*(?:equal to\s*)?|[A-Za-z]-|[\u221b\u221c])$",
    re.IGNORECASE,
)
_BELOW_ZERO: Final = re.compile(
    r"\s*(?:degrees?\s|°\s?[CF]?\s?)?(?:\w+\s)?below\s(?:zero|freezing|sea level|ground)",
    re.IGNORECASE,
)
_JOINS: Final = (
    r"(?:[-+*/^x\u00d7\u00f7\u2212]|plus|minus|times|over|to|through|by|out of|in|of"
    r"|(?:divided|multiplied) by|(?:to|raised to) the(?: power(?: of)?)?)"
)
# "1/five", "2 plus three", "five + 2": another number than the one in digits.
_WORDS_AFTER: Final = re.compile(rf"\s*{_JOINS}\s*{NUMBER_WORD}", re.IGNORECASE)
_WORDS_BEFORE: Final = re.compile(rf"{NUMBER_WORD}\s*{_JOINS}\s*$", re.IGNORECASE)
# Whoever says so does not give the number as the answer: "unknown (5?)", "maybe 5".
_NOT_KNOWN: Final = (
    r"\b(?:unknown|unclear|undetermined|indeterminate|undefined|unsure|N/A|no idea"
    r"|not (?:sure|certain|known|clear)|(?:do not|don't|cannot|can't) (?:know|say|tell)"
    r"|(?:(?:cannot|can't|could not) be|not) (?:determined|known|found|computed|solved))"
)
_GUESSED_BEFORE: Final = re.compile(
    rf"(?:{_NOT_KNOWN}(?:\s*[(,;:\u2013\u2014-]|\s(?:or|but)\b)?"
    r"|\b(?:maybe|perhaps|possibly|probably|presumably|(?:might|may|could) (?:well )?be))"
    r"(?:\s(?:it is|it's|about))?\s*$",
    re.IGNORECASE,
)
_GUESSED_AFTER: Final = re.compile(
    r"(?:\s[A-Za-z]+)?[)\]}$]*\s?"
    rf"(?:\(?\?\)|[,;(\u2013\u2014-]?\s?(?:or |but )?(?:I am |I'm )?{_NOT_KNOWN})",
    re.IGNORECASE,
)
_MOST_TOKENS: Final = 100
_MAX_FACTORIAL: Final = 20


class NumberRun(NamedTuple):
    """A number or an expression, and where it is in the text."""

    quantity: Quantity
    """The value, once the expression is computed."""
    start: int
    end: int
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class Group:
    """Numbers that stand next to each other. `joint` is what is between them, "" for one number."""

    runs: tuple[NumberRun, ...]
    joint: str = ""

    @property
    def start(self) -> int:
        return self.runs[0].start

    @property
    def end(self) -> int:
        return self.runs[-1].end


def numbers_of(text: str) -> list[Group]:
    """Return the numbers and expressions of plain text, in order."""
    groups: list[Group] = []
    for run in _runs_of(text):
        if groups:
            between = text[groups[-1].end : run.start].strip(" $")
            joined = _joined(groups[-1], run, between)
            if joined is not None:
                groups[-1] = joined
                continue
        groups.append(Group((run,)))
    return groups


def _runs_of(text: str) -> list[NumberRun]:
    tokens = list(tokens_of(text))
    runs: list[NumberRun] = []
    current: list[Token] = []
    for index, token in enumerate(tokens):
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        if _continues(text, current, token, after):
            current.append(token)
            continue
        _close(text, current, runs)
        current = [token] if _begins(text, token, after) else []
    _close(text, current, runs)
    return runs


def _begins(text: str, token: Token, after: Token | None) -> bool:
    if token.kind == "letter":
        return _is_variable(text, token, after)
    return token.kind in {"number", "function", "left", "operator"}


def _is_variable(text: str, token: Token, after: Token | None) -> bool:
    """Return whether a single letter belongs to an expression: an operator follows it."""
    if after is None or "\n" in text[token.end : after.start]:
        return False
    is_near = after.start == token.end
    return (after.kind == "operator" and (is_near or after.text in {"+", "^", "*", "/"})) or (
        after.kind in {"left", "number"} and is_near
    )


def _continues(text: str, current: list[Token], token: Token, after: Token | None) -> bool:
    if not current:
        return False
    last = current[-1]
    between = text[last.end : token.start]
    if between.strip(f" {CURRENCIES}") or "\n" in between:
        return False
    is_near = not between
    opens = last.kind in {"operator", "left"}
    match token.kind:
        case "operator" | "right":
            return True
        case "number" | "left" | "function":
            is_joined = last.kind == "function" or (token.kind, last.kind) == ("function", "number")
            return opens or is_near or is_joined or last.text in {"x", "X"}
        case "letter":
            is_sign = token.text in {"x", "X"} and last.kind == "number" and _is_number(after)
            return opens or is_near or is_sign or _is_variable(text, token, after)
        case _:
            return token.kind == "word" and is_near and last.kind in {"number", "right"}


def _is_number(token: Token | None) -> bool:
    return token is not None and token.kind == "number"


def _close(text: str, tokens: list[Token], runs: list[NumberRun]) -> None:
    """Add the run of these tokens, without the operators and brackets that lead nowhere."""
    if len(tokens) > _MOST_TOKENS:
        start, end = tokens[0].start, tokens[-1].end
        number = Quantity(_compact(text[start:end]), (), is_expression=True)
        runs.append(NumberRun(number, start, end))
        return
    tokens = _trimmed(text, list(tokens))
    if not any(token.kind in {"number", "function"} for token in tokens):
        return
    start, end = tokens[0].start, tokens[-1].end
    written = text[start:end]
    bare = _bare(tokens)
    single = _single(bare)
    if single is None:
        value = value_of([(token.kind, token.text, token.quantity) for token in tokens])
        values = () if value is None else (value,)
        quantity = Quantity(_compact(written), values, doubtful=True, is_expression=True)
        runs.append(NumberRun(quantity, start, end))
        return
    runs.append(NumberRun(_in_context(text, _signed(text, bare, single), start, end), start, end))


def _trimmed(text: str, tokens: list[Token]) -> list[Token]:
    while tokens:
        if tokens[0].kind == "right" or (
            tokens[0].kind == "operator" and not _is_sign(text, tokens)
        ):
            tokens = tokens[1:]
        elif tokens[-1].kind in {"left", "operator"}:
            tokens = tokens[:-1]
        elif (depth := _depth(tokens)) > 0 and tokens[0].kind == "left":
            tokens = tokens[1:]
        elif depth < 0 and tokens[-1].kind == "right":
            tokens = tokens[:-1]
        else:
            break
    return tokens


def _depth(tokens: Sequence[Token]) -> int:
    return sum((token.kind == "left") - (token.kind == "right") for token in tokens)


def _is_sign(text: str, tokens: Sequence[Token]) -> bool:
    sign = tokens[0]
    if sign.text not in {"-", "+", "±", "\u2013"} or len(tokens) < 2:
        return False
    before = text[max(sign.start - 1, 0) : sign.start]
    is_near = tokens[1].start - sign.end <= 1
    if sign.text == "\u2013" and (not is_near or text[sign.end : sign.end + 1] == " "):
        return False
    return is_near and not (before.isalnum() or before in {")", "]", "'", "-"})


def _bare(tokens: list[Token]) -> list[Token]:
    while len(tokens) > 2 and tokens[0].kind == "left" and tokens[-1].kind == "right":
        inner = tokens[1:-1]
        if any(_depth(inner[: i + 1]) < 0 for i in range(len(inner))):
            break
        tokens = inner
    return tokens


def _single(tokens: Sequence[Token]) -> Quantity | None:
    if len(tokens) == 1:
        return tokens[0].quantity
    is_signed = len(tokens) > 1 and tokens[0].kind == "operator" and tokens[0].text != "*"
    if not is_signed or tokens[0].text == "/":
        return None
    rest = _bare(list(tokens[1:]))
    return rest[0].quantity if len(rest) == 1 else None


def _signed(text: str, tokens: Sequence[Token], number: Quantity) -> Quantity:
    sign = tokens[0].text if tokens[0].kind == "operator" else ""
    start = tokens[0].start
    if sign == "±":
        both = (*number.values, *(-value for value in number.values))
        return replace(number, text=f"±{number.text}", values=both, doubtful=True)
    words = text[max(start - 12, 0) : start].lower().split()
    is_negative = sign in {"-", "\u2013"} or bool(words and words[-1] in _NEGATIVE)
    if not is_negative:
        return number
    negative = replace(
        number,
        text=f"-{number.text}",
        values=tuple(-value for value in number.values),
        rivals=tuple(-value for value in number.rivals),
    )
    is_loose = sign in {"-", "\u2013"} and text[tokens[0].end : tokens[0].end + 1] == " "
    before = text[:start].rstrip(" ")[-1:]
    if is_loose and before in {"", "\n", ":"}:  # it may be the point of a list
        return replace(negative, values=(*negative.values, *number.values), doubtful=True)
    return negative


def _in_context(text: str, number: Quantity, start: int, end: int) -> Quantity:
    """Mark a number doubtful where the words and signs around it bound it or deny it."""
    before, after = text[max(start - 40, 0) : start], text[end : end + 4]
    relation = before.rstrip(f" {CURRENCIES}([{{")[-1:]
    if number.text.endswith("!") and len(number.values) == 1:
        value = number.values[0]
        if value.denominator == 1 and 0 <= value <= _MAX_FACTORIAL:
            factorial = Fraction(math.factorial(int(value)))
            number = replace(number, values=(value, factorial), doubtful=True)
    is_bounded = relation in {"<", ">", "≤", "≥", "≠"} or after.lstrip()[:1] in {"<", ">", "≤", "≥"}
    led_up = before.rstrip(f" {CURRENCIES}([{{")
    signed = text[max(start - 40, 0) : start + (text[start] in "+-")]
    if (
        is_bounded
        or _WORDS_BEFORE.search(signed)
        or _BELOW_ZERO.match(text, end)
        or _BOUNDS.search(before.rstrip(f" {CURRENCIES}"))
        or _GUESSED_BEFORE.search(led_up)
        or any(one.match(text, end) for one in (_WORDS_AFTER, _GUESSED_AFTER))
    ):
        return replace(number, bounded=True)
    return number


def _joined(group: Group, run: NumberRun, between: str) -> Group | None:
    last = group.runs[-1]
    if between in {"", ",", "and"} and not group.joint and (sum_ := _sum(last, run)) is not None:
        return Group((NumberRun(sum_, last.start, run.end),))
    if between.lower() == "and" and not group.joint and _is_mixed(last, run):
        value = last.quantity.values[0] + run.quantity.values[0]
        text = f"{last.quantity.text} and {run.quantity.text}"
        mixed = replace(run.quantity, text=text, values=(value,), doubtful=True)
        return Group((NumberRun(mixed, last.start, run.end),))
    if _LIST.fullmatch(between):
        return Group((*group.runs, run), between.lower())
    if _COMPOUND.fullmatch(between):
        return Group((*group.runs, run), between.lower())
    return None


def _sum(first: NumberRun, second: NumberRun) -> Quantity | None:
    """Return `2 hours 30 minutes` as one quantity, which may be meant in either unit."""
    one, two = first.quantity, second.quantity
    if one.unit is None or two.unit is None or not (one.is_certain and two.is_certain):
        return None
    if one.unit.dimension != two.unit.dimension or one.unit.size <= two.unit.size:
        return None
    total = one.values[0] * one.unit.size + two.values[0] * two.unit.size
    return Quantity(
        f"{one.text} {two.text}",
        (total / one.unit.size,),
        rivals=(total / two.unit.size,),
        unit=one.unit,
        maybe_variable=True,
    )


def _is_mixed(first: NumberRun, second: NumberRun) -> bool:
    one, two = first.quantity, second.quantity
    are_certain = one.is_certain and two.is_certain
    return are_certain and "/" in two.text and one.values[0].denominator == 1 and two.values[0] < 1


def _compact(text: str) -> str:
    return re.sub(r"\s+", "", text)
