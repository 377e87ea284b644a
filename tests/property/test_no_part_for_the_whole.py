"""A number in any notation, in any place, is right as itself and never as one of its parts."""

import re
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from synth_client.judging.math_rule import judge_math
from synth_client.judging.rules import PLAIN_RULES

PLACES = [
    "The answer is {}.",
    "The answer is **{}**.",
    "The answer is `{}`.",
    "The answer is ${}$.",
    "The answer is {}, because 3 + 4 = 7.",
    "**Final Answer:** {}",
    "Answer: {}",
    "#### {}",
    "**{}**",
    "So she has {}.",
    "So x = {}.",
    "It is {} apples.",
    "\\boxed{{{}}}",
    "$\\boxed{{{}}}$, in 3 steps",
    "\\fbox{{{}}}",
    "\\boxed{{{} \\text{{ cm}}}}",
    "$$x = {}$$",
    "<answer>{}</answer>",
]
JUDGES = {"number": PLAIN_RULES["number"], "math": judge_math}


@dataclass(frozen=True)
class Written:
    """A number, and how it was written."""

    text: str
    value: Fraction


def formatted(kind: str, numbers: tuple[int, int, int], way: int) -> Written:
    large, small, smaller = numbers
    match kind:
        case "whole":
            texts, value = [str(large)], Fraction(large)
        case "grouped":
            separators = [",", "{,}", "\\,", " ", "\u202f", "\u00a0", "'", "_"]
            value = Fraction(large + 1000)
            texts = [f"{large + 1000:,}".replace(",", separator) for separator in separators]
        case "mixed":
            whole, over, under = large % 100, min(small, smaller), max(small, smaller) + 1
            texts = [f"{whole} {over}/{under}", f"{whole}\\frac{{{over}}}{{{under}}}"]
            value = whole + Fraction(over, under)
        case "fraction":
            texts = [
                f"{small}/{smaller}",
                f"\\frac{{{small}}}{{{smaller}}}",
                f"{small} / {smaller}",
            ]
            value = Fraction(small, smaller)
        case "decimal":
            texts = [f"{small}.{large:07d}"]
            value = Fraction(texts[0])
        case "scientific":
            exponent, digits = small - 50, f"{way + 1}.{smaller}"
            signs = [" \\times 10^{%d}", " \u00d7 10^%d", "*10^(%d)", "e%d"]
            texts = [digits + sign % exponent for sign in signs]
            value = Fraction(digits) * Fraction(10) ** exponent
        case _:
            power = way + 2
            texts = [f"{small}^{power}", f"{small}^{{{power}}}", f"{small}**{power}"]
            value = Fraction(small) ** power
    return Written(texts[way % len(texts)], value)


KINDS = ["whole", "grouped", "mixed", "fraction", "decimal", "scientific", "power"]
written = st.builds(
    formatted,
    st.sampled_from(KINDS),
    st.tuples(st.integers(0, 9_999_999), st.integers(1, 99), st.integers(2, 99)),
    st.integers(0, 7),
)


@given(number=written, sign=st.sampled_from(["", "-", "\u2212"]), place=st.sampled_from(PLACES))
def test_a_number_is_right_as_itself_and_never_as_a_part_of_itself(
    number: Written, sign: str, place: str
) -> None:
    value = -number.value if sign else number.value
    output = place.format(sign + number.text)
    for rule, judge in JUDGES.items():
        assert judge(output, str(value)).correct is True, rule
        if value:
            assert judge(output, str(-value)).correct is False, rule
        for part in re.findall(r"\d+(?:\.\d+)?", number.text):
            if Fraction(part) != value:
                assert judge(output, part).correct is not True, (rule, part)
