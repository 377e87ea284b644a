"""Knows the units of measurement that answers carry, and what one is in terms of another."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final


@dataclass(frozen=True, slots=True)
class Measure:
    """A unit: what it measures, and its size in that dimension's own unit."""

    dimension: str
    size: Fraction


_SIZES: Final[Mapping[str, Mapping[str, str]]] = {
    "length": {
        "1": "m meter meters metre metres",
        "1000": "km kms kilometer kilometers kilometre kilometres",
        "1/100": "cm cms centimeter centimeters centimetre centimetres",
        "1/1000": "mm millimeter millimeters millimetre millimetres",
        "1/1000000000": "nm nanometer nanometers",
        "3048/10000": "ft foot feet",
        "254/10000": "in inch inches",
        "9144/10000": "yd yds yard yards",
        "1609344/1000": "mi mile miles",
    },
    "mass": {
        "1": "g gram grams",
        "1000": "kg kgs kilogram kilograms kilo kilos",
        "1/1000": "mg milligram milligrams",
        "1000000": "tonne tonnes",
        "45359237/100000": "lb lbs pound pounds",
        "45359237/1600000": "oz ounce ounces",
    },
    "time": {
        "1": "s sec secs second seconds",
        "1/1000": "ms millisecond milliseconds",
        "60": "min mins minute minutes",
        "3600": "h hr hrs hour hours",
        "86400": "day days",
        "604800": "week weeks",
    },
    "years": {"1": "month months", "12": "yr yrs year years"},
    "length^3": {
        "1/1000": "l L liter liters litre litres",
        "1/1000000": "ml mL cc milliliter milliliters millilitre millilitres",
    },
    "dollars": {"1": "$ dollar dollars usd USD buck bucks", "1/100": "cent cents ¢"},
    "euros": {"1": "€ euro euros eur EUR"},
    "sterling": {"1": "£ gbp GBP", "1/100": "pence"},
    "rupees": {"1": "₹ rupee rupees Rs rs INR"},
    "yen": {"1": "¥ yen JPY"},
    "angle": {"1": "° deg degree degrees", "1/60": "arcmin", "1/3600": "arcsec"},
    "radians": {"1": "rad radian radians"},
    "speed": {"1609344/3600000": "mph", "1000/3600": "kph kmh"},
    "force": {"1": "N newton newtons", "1000": "kN"},
    "energy": {"1": "J joule joules", "1000": "kJ kilojoule kilojoules"},
    "power": {"1": "W watt watts", "1000": "kW kilowatt kilowatts"},
    "voltage": {"1": "V volt volts", "1000": "kV"},
    "current": {"1": "A amp amps ampere amperes", "1/1000": "mA"},
    "frequency": {"1": "Hz hertz", "1000": "kHz", "1000000": "MHz"},
    "pressure": {"1": "Pa pascal pascals", "1000": "kPa"},
    "resistance": {"1": "Ω ohm ohms"},
    "substance": {"1": "mol mole moles", "1/1000": "mmol"},
    "celsius": {"1": "°C"},
    "fahrenheit": {"1": "°F"},
    "kelvin": {"1": "K kelvin"},
    "bytes": {"1": "byte bytes B", "1000": "kB", "1000000": "MB", "1000000000": "GB"},
}
# What is measured in one of these cannot be measured in another.
BASIC: Final = frozenset(
    {"length", "mass", "time", "dollars", "euros", "sterling", "rupees", "yen", "celsius"}
    | {"fahrenheit", "kelvin", "length^2", "length^3"}
)
_UNITS: Final = {
    name: Measure(dimension, Fraction(size))
    for dimension, sizes in _SIZES.items()
    for size, names in sizes.items()
    for name in names.split()
}
CURRENCIES: Final = "$€£¥₹¢"
_POWERS: Final = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_NAMES: Final = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_FACTOR: Final = (
    rf"(?:(?P<{{0}}before>square|sq\.?|cubic|cu\.?)\s)?(?P<{{0}}name>{_NAMES})(?![A-Za-z])"
    r"(?:(?:\s?\^\s?\(?)?(?P<{0}power>-?[1-3])\)?(?![\d/]|[.,]\d)|\s(?P<{0}after>squared|cubed)\b)?"
)
_UNIT: Final = re.compile(
    _FACTOR.format("over_") + rf"(?:\s?(?:/|\bper\b)\s?{_FACTOR.format('under_')})?"
)
# What multiplies a unit: `kg*m`, `m s^-1`.
_TIMES: Final = re.compile(
    rf"\s?\*\s?(?P<product>{_NAMES})(?![A-Za-z*])|\s(?P<quotient>{_NAMES})\^\(?-(?P<power>[1-3])\)?"
)
# "in" is a word far more often than an inch.
_INCH_AT_THE_END: Final = re.compile(r"in\s*(?:[.,;)]|$)")


def sizes_of(unit: Measure) -> tuple[Fraction, ...]:
    """Return the sizes of all units of what a unit measures, of areas and volumes, too."""
    dimension, _, power = unit.dimension.partition("^")
    sizes = (Fraction(size) ** int(power or 1) for size in _SIZES.get(dimension, {}))
    return (*sizes, *map(Fraction, _SIZES.get(unit.dimension, {})))


@dataclass(frozen=True, slots=True)
class UnitInText:
    """A unit in a text: what it is, and where it ends."""

    unit: Measure
    end: int
    is_letter: bool


def unit_at(text: str, start: int) -> UnitInText | None:
    """Return the unit that starts there, None if the text has none there."""
    found = _UNIT.match(text, start)
    if found is None or (found[0] == "in" and not _INCH_AT_THE_END.match(text, start)):
        return None
    unit = _factor(found, "over_")
    if found["under_name"]:
        unit = _per(unit, _factor(found, "under_"))
    end = found.end()
    while (further := _TIMES.match(text, end)) is not None:
        unit, end = _multiplied(unit, further), further.end()
    return UnitInText(unit, end, end - start == 1 and found[0].isalpha())


def _multiplied(unit: Measure, by: re.Match[str]) -> Measure:
    if by["product"]:
        other = _UNITS[by["product"]]
        return Measure(f"{unit.dimension} * {other.dimension}", unit.size * other.size)
    under, power = _UNITS[by["quotient"]], int(by["power"])
    below = under.dimension if power == 1 else f"{under.dimension}^{power}"
    return _per(unit, Measure(below, under.size**power))


def _per(unit: Measure, under: Measure) -> Measure:
    is_speed = (unit.dimension, under.dimension) == ("length", "time")
    dimension = "speed" if is_speed else f"{unit.dimension} per {under.dimension}"
    return Measure(dimension, unit.size / under.size)


def _factor(found: re.Match[str], prefix: str) -> Measure:
    unit = _UNITS[found[f"{prefix}name"]]
    word = (found[f"{prefix}before"] or found[f"{prefix}after"] or "").rstrip(".")
    power = _POWERS.get(word, int(found[f"{prefix}power"] or 1))
    if power == 1:
        return unit
    return Measure(f"{unit.dimension}^{power}", unit.size**power)
