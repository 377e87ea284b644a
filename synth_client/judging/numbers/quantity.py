"""Defines a number as it is written in an answer, and compares two of them.

The comparison is exact. A decimal of at least six digits may stand for what it is rounded or cut
from, and nothing else is near enough: 0.0000001 is not 0.0000002. Where one text has several
meanings, or one side lacks what the other says (a unit, a percent sign, a number base), the two may
be equal in one sense and not in another. Such a comparison gives None.
"""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from synth_client.judging.numbers.units import BASIC, Measure, sizes_of

_MIN_DECIMALS: Final = 6
# The least numbers of six digits and of the fifteen that a float has at least.
_LEAST_LONG: Final = 10**5
_LEAST_OF_A_FLOAT: Final = 10**14
_FLOAT_NOISE: Final = Fraction(1, 10**12)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written.

    `text` is what was written, in plain signs. `values` are what it may mean (none: it is no single
    number), and it is `doubtful` if its form leaves that open. It is `bounded` if the words around
    it bound or deny it ("at least", "not"), and an expression if it is not one number. `rivals` are
    values that it has under another convention, such as 35 for 35%. `num_decimals` is None if the
    number is no decimal. `word` is what is counted where that is no unit of measurement, and a unit
    of one letter at the number's side is `maybe_variable`.
    """

    text: str
    values: tuple[Fraction, ...]
    rivals: tuple[Fraction, ...] = ()
    doubtful: bool = False
    bounded: bool = False
    is_expression: bool = False
    num_decimals: int | None = None
    percent: bool = False
    base: int | None = None
    unit: Measure | None = None
    maybe_variable: bool = False
    word: str = ""

    @property
    def is_certain(self) -> bool:
        return len(self.values) == 1 and not (self.doubtful or self.bounded)


def equal(answer: Quantity, known: Quantity) -> bool | None:
    """Return whether the answer is the known number, None if it is in one sense only."""
    if answer.text == known.text and answer.unit == known.unit and _same_word(answer, known):
        return None if answer.bounded else True
    if not answer.values or not known.values:
        return False
    here, there = answer, known
    units = _units_agree(answer, known)
    if answer.unit is not None and known.unit is not None and units:
        here, there = _in_base_units(answer), _in_base_units(known)
    if any(near(one, two, here, there) for one in here.values for two in there.values):
        if units is False:
            return False
        is_sure = answer.is_certain and known.is_certain and _same_base(answer, known)
        return True if is_sure and units else None
    if (answer.unit is None) is not (known.unit is None) and _in_another_unit(answer, known):
        return None
    return _by_rivals(here, there)


def _in_another_unit(answer: Quantity, known: Quantity) -> bool:
    """Return whether a bare number is the other one in another unit: 100 cm and 1, if in metres."""
    measured, bare = (answer, known) if answer.unit is not None else (known, answer)
    if measured.unit is None or bare.word or bare.percent:
        return False
    return any(
        value * measured.unit.size == number * size
        for size in sizes_of(measured.unit)
        for value in measured.values
        for number in bare.values
    )


def _by_rivals(answer: Quantity, known: Quantity) -> bool | None:
    """Compare the values under other conventions."""
    if answer.base is not None and known.base is not None:
        return False
    mine, theirs = (*answer.values, *answer.rivals), (*known.values, *known.rivals)
    if not any(near(one, two, answer, known) for one in mine for two in theirs):
        return False
    if answer.percent == known.percent or not (answer.is_certain and known.is_certain):
        return None
    # 35% and 35 are the same answer to "what percentage?", but 0.5 may be a half.
    percentage = answer.rivals if answer.percent else known.rivals
    plain = known if answer.percent else answer
    is_percentage = not plain.rivals and plain.values == percentage
    return True if is_percentage and abs(plain.values[0]) > 1 else None


def near(one: Fraction, two: Fraction, first: Quantity, second: Quantity) -> bool:
    """Return whether the values are equal, or one is a long decimal for the other."""
    if one == two:
        return True
    return is_rounding(one, two, first.num_decimals, second.num_decimals) or is_rounding(
        two, one, second.num_decimals, first.num_decimals
    )


def is_rounding(
    short: Fraction, exact: Fraction, num_decimals: int | None, exact_decimals: int | None
) -> bool:
    """Return whether a decimal is the exact value, rounded or cut after its last digit."""
    if num_decimals is None or short * exact <= 0:
        return False
    unit = Fraction(1, 10**num_decimals) if num_decimals >= 0 else Fraction(10**-num_decimals)
    in_units = abs(short / unit)
    gap = abs(short - exact)
    if in_units >= _LEAST_OF_A_FLOAT and gap <= abs(exact) * _FLOAT_NOISE:
        return True
    if num_decimals < _MIN_DECIMALS or in_units < _LEAST_LONG:
        return False
    if exact_decimals is not None and exact_decimals <= num_decimals:
        return False
    is_cut = gap < unit and abs(short) < abs(exact)
    return is_cut or gap <= unit / 2


def _units_agree(answer: Quantity, known: Quantity) -> bool | None:
    """Return None if the units leave it open whether equal numbers mean the same."""
    if answer.unit is not None and known.unit is not None:
        if answer.unit.dimension == known.unit.dimension:
            return True
        are_basic = answer.unit.dimension in BASIC and known.unit.dimension in BASIC
        return False if are_basic else None
    if answer.unit is not None or known.unit is not None:
        is_open = answer.word or known.word or answer.maybe_variable or known.maybe_variable
        return None if is_open else True
    return True if not (answer.word and known.word) or _same_word(answer, known) else None


def _same_word(answer: Quantity, known: Quantity) -> bool:
    return _stem(answer.word) == _stem(known.word)


def _stem(word: str) -> str:
    return word.lower().removesuffix("s").removesuffix("e")


def _same_base(answer: Quantity, known: Quantity) -> bool:
    """Return False if the reference is written in a base that the answer does not name."""
    return known.base is None or answer.base is not None


def _in_base_units(quantity: Quantity) -> Quantity:
    size = quantity.unit.size if quantity.unit is not None else Fraction(1)
    decimals = quantity.num_decimals if size == 1 else None
    return Quantity(
        quantity.text,
        tuple(value * size for value in quantity.values),
        doubtful=quantity.doubtful,
        num_decimals=decimals,
    )


def fraction_of(digits: str, exponent: int = 0) -> Fraction:
    """Return the value of a decimal. Python's limit on the digits of integers does not apply."""
    return Fraction(Decimal(digits)) * Fraction(10) ** exponent
