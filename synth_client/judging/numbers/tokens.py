"""Cuts plain text into numbers, operators and words, each number as long as it reaches.

`2 2/3`, `1,250.50`, `1.5 * 10^-3`, `101_2` and `35%` are one token each, so nobody can take a part
of such a number for the number.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Final, Literal, NamedTuple

from synth_client.judging.numbers.quantity import Quantity, fraction_of
from synth_client.judging.numbers.units import CURRENCIES, unit_at

Kind = Literal["number", "function", "letter", "operator", "left", "right", "relation", "word"]

_DECIMAL: Final = (
    r"(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?"
    r"|\d{1,3}(?: \d{3})+(?:\.\d+)?|\d{1,3}(?:'\d{3})+(?:\.\d+)?|\d{1,3}(?:_\d{3})+"
    r"|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d*\.\d*\(\d+\)|\d+\.\d+|\.\d+|\d+)"
)
_ENDS: Final = r"(?!\d|[.,:]\d|_\d)"
_SLASH: Final = r"\s?/\s?"
_POWER: Final = r"\s?(?:\^|\*\*)\s?"
_NUMBER: Final = re.compile(
    rf"(?P<prefixed>0[xX][\dA-Fa-f]+|0[bB][01]+|0[oO][0-7]+)(?!\w)"
    rf"|(?P<based>\d[\dA-Za-z]*|[A-F\d]{{2,}})_\(?(?P<base>\d{{1,2}})\)?(?!\w)"
    rf"|(?P<whole>\d{{1,3}}(?:,\d{{3}})+|\d+)[ ]+(?P<over>\d+){_SLASH}(?P<under>\d+){_ENDS}"
    rf"(?!{_SLASH}\d)"
    rf"|(?P<top>{_DECIMAL}){_SLASH}(?P<bottom>{_DECIMAL}){_ENDS}(?!{_SLASH}[\d(]|{_POWER})"
    rf"|(?P<mantissa>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d{{1,9}})(?!\w)"
    rf"|\s?[*xX]\s?10{_POWER}\(?(?P<ten>[-+]?\d{{1,9}})\)?{_ENDS}(?!{_POWER}))"
    rf"|(?P<root>\d+(?:\.\d+)?){_POWER}\(?(?P<power>[-+]?\d{{1,3}})\)?{_ENDS}(?!{_POWER})"
    rf"|(?P<decimal>{_DECIMAL}){_ENDS}"
    r"|(?P<other>\.?\d[\d.,:_]*\d|\d)"
)
_PERCENT: Final = re.compile(r"\s?(?:%|(?:percent|per cent|pct|percentage)\b(?:\spoints?\b)?)")
_PER_MILLE: Final = re.compile(r"\s?(?:\u2030|per mil(?:le)?\b)")
_PARTS: Final[Mapping[str, Fraction]] = {
    "half": Fraction(1, 2),
    "halve": Fraction(1, 2),
    "third": Fraction(1, 3),
    "quarter": Fraction(1, 4),
    "fourth": Fraction(1, 4),
    "fifth": Fraction(1, 5),
    "sixth": Fraction(1, 6),
    "seventh": Fraction(1, 7),
    "eighth": Fraction(1, 8),
    "ninth": Fraction(1, 9),
}
# "2 thirds" and "1 third", but the 5 in "5 fifth graders" is 5.
_PART: Final = rf"(?:{'|'.join(_PARTS)})"
_SCALE: Final = re.compile(
    r"\s?(ten(?=s)|(?:ten|hundred|thousand)th|hundred|thousand|million|billion|trillion|dozen|lakh"
    r"|crore)s?\b|([kKMB]|bn|mn)(?![A-Za-z])"
    rf"|[\s-](?:({_PART})s|(?<=\b1[\s-])({_PART}))\b"
)
_SCALES: Final[Mapping[str, int | Fraction]] = {
    **_PARTS,
    "ten": 10,
    "tenth": Fraction(1, 10),
    "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
    "k": 1000,
    "K": 1000,
    "M": 10**6,
    "B": 10**9,
    "bn": 10**9,
    "mn": 10**6,
}
_BASE: Final = re.compile(r"\s?\(?\s?(?:in\s)?\bbase[\s-](\d{1,2}|two|eight|ten|sixteen)\b\)?")
_BASES: Final = {"two": 2, "eight": 8, "ten": 10, "sixteen": 16, "x": 16, "b": 2, "o": 8}
_OPEN_END: Final = re.compile(
    r"!|\.{2,}|…|\s?\+(?!\s?(?:[\w($]|\.\d))|\sor\s(?:more|less|fewer|so)\b|-ish\b"
    r"|\s(?:squared|cubed|factorial|score|gross|grand|[kK]|bn|mn)\b"
)
_ORDINAL: Final = re.compile(r"(?:st|nd|rd|th)\b")
_COUNTED: Final = re.compile(r"\s?-?([A-Za-z]{2,})(?![(\w])")
# A letter after a space may be a variable, but "a" and "I" are words.
_VARIABLE: Final = re.compile(r" [B-HJ-WYZb-wyz](?![\w'.)])")
_NOT_COUNTED: Final = re.compile(
    r"(?:and|or|in|is|are|was|were|because|since|so|of|to|for|with|by|at|on|from|per|after|before|as"
    r"|if|then|than|when|where|which|that|this|the|an|each|every|total|altogether|mod|choose|left"
    r"|into|wait|but|not|more|less)",
    re.IGNORECASE,
)
# A function has an argument: "a log of wood" and "root beer" are none.
_FUNCTION: Final = re.compile(
    r"(?:pi|infty)(?![A-Za-z])|root(?=\()|\\[A-Za-z]+"
    r"|(?:sqrt|cbrt|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan)"
    r"(?=\s?[\d(_^]|\s?(?:pi|[a-z])(?![A-Za-z]))"
)
_WORD: Final = re.compile(r"[A-Za-z][\w']*")
_CURRENCY_CODE: Final = re.compile(r"(?:US\$|USD|EUR|GBP|INR|Rs\.?|HK\$|CHF)(?=\s?[-\d.])")
_GROUPS: Final = re.compile(r"[ ,'_](?=\d)")
_MAX_EXPONENT: Final = 1000


class Token(NamedTuple):
    """A piece of the text."""

    kind: Kind
    text: str
    start: int
    end: int
    """Exclusive."""
    quantity: Quantity | None = None
    """The number without its sign; None for a token that is no number."""


def tokens_of(text: str) -> Iterator[Token]:
    """Yield the tokens of plain text in order; spaces and other signs lie between them."""
    at = 0
    while at < len(text):
        token = _token_at(text, at)
        if token is None:
            at += 1
            continue
        yield token
        at = token.end


def _token_at(text: str, at: int) -> Token | None:
    sign = text[at]
    if sign.isdigit() or sign == "." or "A" <= sign <= "F":
        number = _NUMBER.match(text, at)
        if number is not None:
            return _number(text, number)
    if sign.isalpha() or sign == "\\":
        return _word(text, at)
    kinds: dict[str, Kind] = {
        **dict.fromkeys("+-*/^±\u2013", "operator"),
        **dict.fromkeys("([{", "left"),
        **dict.fromkeys(")]}", "right"),
        **dict.fromkeys("=<>≤≥≠≈", "relation"),
    }
    return Token(kinds[sign], sign, at, at + 1) if sign in kinds else None


def _word(text: str, at: int) -> Token | None:
    code = _CURRENCY_CODE.match(text, at)
    if code is not None:
        return Token("word", code[0], at, code.end())
    function = _FUNCTION.match(text, at)
    if function is not None:
        return Token("function", function[0], at, function.end())
    word = _WORD.match(text, at)
    if word is None:
        return None
    kind: Kind = "letter" if len(word[0]) == 1 else "word"
    return Token(kind, word[0], at, word.end())


def _number(text: str, found: re.Match[str]) -> Token:
    core = _core(found)
    end = found.end()
    values, rivals, doubtful = core.values, core.rivals, core.doubtful
    if (base := _BASE.match(text, end)) is not None and core.base is None:
        core = _in_base(found[0], _BASES.get(base[1]) or int(base[1]))
        values, rivals, doubtful, end = core.values, core.rivals, core.doubtful, base.end()
    if (scale := _SCALE.match(text, end)) is not None:
        rivals, end = (*rivals, *values), scale.end()
        size = scale[1] or scale[2] or scale[3] or scale[4]
        values = tuple(value * _SCALES[size] for value in values)
        # 3 quarters are coins, too, and 2 halves are parts of a game.
        doubtful = doubtful or size != scale[1]
    percent = _PERCENT.match(text, end)
    if percent is not None:
        rivals, end = values, percent.end()
        values = tuple(value / 100 for value in values)
    elif (per_mille := _PER_MILLE.match(text, end)) is not None:
        rivals, end = values, per_mille.end()
        values = tuple(value / 1000 for value in values)
    if (open_end := _OPEN_END.match(text, end)) is not None:
        doubtful, end = True, open_end.end()
    elif (ordinal := _ORDINAL.match(text, end)) is not None:
        end = ordinal.end()
    num_decimals = core.num_decimals if scale is None else None
    if percent is not None and num_decimals is not None:
        num_decimals += 2
    quantity = Quantity(
        text=_canonical(found) + _tail(text[found.end() : end]),
        values=values,
        rivals=rivals,
        doubtful=doubtful,
        num_decimals=num_decimals,
        percent=percent is not None,
        base=core.base,
    )
    return _with_unit(text, found.start(), end, quantity)


def _tail(text: str) -> str:
    return f" {text.strip()}" if text[:1].isspace() else text


def _with_unit(text: str, start: int, end: int, quantity: Quantity) -> Token:
    """Add the unit, the counted thing, or the variable that follows the number."""
    before = text[max(start - 2, 0) : start].rstrip()[-1:]
    at = end + (text[end : end + 1] in {" ", "-"})
    unit, word, is_variable = None, "", False
    if before and before in CURRENCIES and (money := unit_at(before, 0)) is not None:
        unit = money.unit
    elif (found := unit_at(text, at)) is not None:
        unit, is_variable = found.unit, found.is_letter and at == end
        end = found.end
    doubtful = quantity.doubtful or (unit is None and _VARIABLE.match(text, end) is not None)
    counted = _COUNTED.match(text, end)
    if unit is None and counted is not None and not _NOT_COUNTED.fullmatch(counted[1]):
        is_function = _FUNCTION.match(text, counted.start(1)) is not None
        is_attached = counted.start(1) == end and len(counted[1]) < 4
        if not is_function and not is_attached:
            word = counted[1]
    changed = replace(quantity, doubtful=doubtful, unit=unit, maybe_variable=is_variable, word=word)
    return Token("number", text[start:end], start, end, changed)


def _core(found: re.Match[str]) -> Quantity:
    if found["prefixed"]:
        return _in_base(found["prefixed"][2:], _BASES[found["prefixed"][1].lower()])
    if found["based"]:
        return _in_base(found["based"], int(found["base"]))
    if found["mantissa"]:
        return _scientific(found["mantissa"], int(found["exponent"] or found["ten"]))
    if found["decimal"]:
        return _decimal(found["decimal"])
    return _divided(found) or _unclear(found)


def _divided(found: re.Match[str]) -> Quantity | None:
    """Read a mixed number, a fraction or a power."""
    if found["whole"]:
        return _mixed(found)
    if found["top"]:
        top, bottom = _decimal(found["top"]), _decimal(found["bottom"])
        return Quantity(found[0], (top.values[0] / bottom.values[0],) if bottom.values[0] else ())
    if found["root"]:
        root, power = fraction_of(found["root"]), int(found["power"])
        is_small = len(found["root"]) * abs(power) <= _MAX_EXPONENT and (root or power > 0)
        return Quantity(found[0], (root**power,) if is_small else ())
    return None


def _canonical(found: re.Match[str]) -> str:
    """Return the number without what groups its digits, so that equal numbers look equal."""
    written = found[0]
    if found["decimal"] or found["top"] or found["mantissa"]:
        written = re.sub(_DECIMAL, lambda one: _digits(one[0]), written)
    return " ".join(written.split()) if found["whole"] else "".join(written.split())


def _unclear(found: re.Match[str]) -> Quantity:
    """Read the decimal `1,5`, and `3:4`, a ratio or a time; `1.2.3` is no number."""
    written = found[0]
    parts = re.fullmatch(r"(\d+)([,:])(\d+)", written)
    if parts is None:
        return Quantity(written, (), doubtful=True)
    if parts[2] == ",":
        decimals = len(parts[3])
        return Quantity(written, (fraction_of(f"{parts[1]}.{parts[3]}"),), num_decimals=decimals)
    under = fraction_of(parts[3])
    return Quantity(written, (fraction_of(parts[1]) / under,) if under else (), doubtful=True)


def _digits(written: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", written):
        return written.replace(".", "").replace(",", ".")
    if re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", written):
        return written.replace(".", "")
    return _GROUPS.sub("", written)


def _mixed(found: re.Match[str]) -> Quantity:
    whole, over, under = (
        fraction_of(_GROUPS.sub("", found[name])) for name in ("whole", "over", "under")
    )
    if not under:
        return Quantity(found[0], ())
    if over < under:
        return Quantity(found[0], (whole + over / under,))
    return Quantity(found[0], (whole + over / under, whole * over / under), doubtful=True)


def _scientific(mantissa: str, exponent: int) -> Quantity:
    core = _decimal(mantissa)
    if abs(exponent) > _MAX_EXPONENT:
        return Quantity(mantissa, ())
    decimals = None if core.num_decimals is None else core.num_decimals - exponent
    values = tuple(value * Fraction(10) ** exponent for value in core.values)
    return Quantity(mantissa, values, num_decimals=decimals)


def _decimal(written: str) -> Quantity:
    repeated = re.fullmatch(r"(\d*)\.(\d*)\((\d+)\)", written)
    if repeated is not None:
        whole, first, again = repeated.groups()
        tail = fraction_of(again) / (Fraction(10) ** len(again) - 1) / Fraction(10) ** len(first)
        return Quantity(written, (fraction_of(f"{whole or 0}.{first or 0}") + tail,))
    digits = _digits(written)
    decimals = len(digits.partition(".")[2])
    return Quantity(written, (fraction_of(digits),), num_decimals=decimals or None)


def _in_base(written: str, base: int) -> Quantity:
    """Read digits in a base; taken as decimal digits they are a rival."""
    rivals = (fraction_of(written),) if written.isdecimal() else ()
    try:
        value = int(written, base) if 2 <= base <= 36 else None
    except ValueError:
        value = None
    if base == 10:
        rivals = ()
    values = () if value is None else (Fraction(value),)
    return Quantity(written, values, rivals, base=base)
