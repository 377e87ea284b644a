"""Judges answers by the rule `math`: numbers by their own value, the rest by math-verify.

Use it only in a separate process: neither parsing nor comparing is bounded in time or memory here.
"""

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from synth_client.judging.candidates import Candidate, answer_candidates, reference_candidate
from synth_client.judging.judgement import Judgement, any_of, final_part
from synth_client.judging.notations import as_chain, in_radians, with_natural_logarithms
from synth_client.judging.number_rule import (
    DOUBT,
    IN_WORDS,
    is_in_words,
    with_doubtful_dashes,
)
from synth_client.judging.numbers.quantity import Quantity, equal, is_rounding
from synth_client.judging.spellings import as_interval, same_text, same_time

# It warns that its own time limits, which need signals, are off: the process is bounded instead.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_LATEX: Final = [LatexExtractionConfig()]
# math-verify compares floats to six decimals, so what it calls equal may be two tiny numbers.
_MAX_RELATIVE_GAP: Final = 2e-6
_NUM_DIGITS: Final = 30
_UNKNOWN: Final = re.compile(r"([A-Za-z]\w*(?:\(\w\))?)\s*=")


def _judge(output: str, answer: str | None) -> Judgement:
    found = answer_candidates(final_part(output))
    predicted = found[0].text if found else None
    if answer is None:
        return Judgement(predicted, None)
    known = reference_candidate(answer)
    if known is None:
        return Judgement(predicted, None, f"no answer in the reference {answer[:80]!r}")
    if not found:
        return Judgement(None, correct=False)
    verdicts = [_compared(candidate, known) for candidate in found]
    first = verdicts[0]
    if any(one.correct is not first.correct for one in verdicts):
        return Judgement(predicted, None, "the output gives two different answers")
    return Judgement(predicted, first.correct, first.fault)


judge_math = any_of(with_doubtful_dashes(_judge))


def _compared(candidate: Candidate, known: Candidate) -> Judgement:
    if candidate.announced and same_text(candidate.announced, known.plain):
        return Judgement(candidate.text, correct=True)
    correct, fault = _verdict(candidate, known)
    if correct is False and candidate.last is not None:
        may_be = _verdict(candidate.last, known)[0] is not False
        correct, fault = (None, DOUBT) if may_be else (False, fault)
    if candidate.in_doubt and (correct or _may_be(candidate, known)):
        correct, fault = None, DOUBT
    return Judgement(candidate.text, correct, fault)


def _may_be(candidate: Candidate, known: Candidate) -> bool:
    """Return whether one of the numbers, if it is the answer, might be right."""
    number = known.quantity
    return number is not None and any(equal(one, number) is not False for one in candidate.numbers)


def _verdict(candidate: Candidate, known: Candidate) -> tuple[bool | None, str | None]:
    candidate, known = as_chain(candidate), as_chain(known)
    times = same_time(candidate.announced or candidate.plain, known.plain)
    if times is not None and not same_text(candidate.plain, known.plain):
        return times.verdict, DOUBT if times.verdict is None else None
    candidate, known = in_radians(candidate, known), in_radians(known, candidate)
    here, there = _UNKNOWN.match(candidate.plain), _UNKNOWN.match(known.plain)
    are_others = here is not None and there is not None and here[1] != there[1]
    if candidate.quantity is not None and known.quantity is not None and not are_others:
        correct = equal(candidate.quantity, known.quantity)
        return correct, DOUBT if correct is None else None
    if same_text(candidate.plain, known.plain):
        return True, None
    candidate, known = as_interval(candidate, known), as_interval(known, candidate)
    if not candidate.latex and known.quantity is not None and is_in_words(candidate.plain):
        return None, IN_WORDS
    correct, fault = _by_algebra(candidate, known)
    natural = None if correct else with_natural_logarithms(candidate, known)
    if natural is not None and _by_algebra(*natural)[0]:
        return None, DOUBT
    return (None, DOUBT) if correct and are_others and known.quantity else (correct, fault)


def _by_algebra(candidate: Candidate, known: Candidate) -> tuple[bool | None, str | None]:
    """Compare every form of the two. A comparison that fails with an error decides nothing."""
    fault = None
    golds, answers = _forms(known), _forms(candidate)
    if not golds:
        return None, f"no answer in the reference {known.text[:80]!r}"
    for gold in golds:
        for answer in answers:
            try:
                if _are_equal(gold.form, answer.form, candidate, known):
                    is_open = _is_open_equation(answer.form, gold.form)
                    is_certain = gold.is_certain and answer.is_certain and not is_open
                    return (True, None) if is_certain else (None, DOUBT)
            except Exception as error:  # noqa: BLE001 - sympy raises whatever it likes
                fault = f"not comparable: {type(error).__name__}"
    return None if fault else False, fault


def _are_equal(gold: Any, answer: Any, candidate: Candidate, known: Candidate) -> bool:  # noqa: ANN401
    if _is_long_decimal(candidate.quantity, gold) or _is_long_decimal(known.quantity, answer):
        return True
    is_equal = verify(gold, answer, timeout_seconds=None, raise_on_error=True)
    return is_equal and _is_confirmed(gold, answer)


def _is_open_equation(answer: Any, gold: Any) -> bool:  # noqa: ANN401
    """Return whether an equation in unknowns was taken for its right side: `2x + y = 0` is no 0."""
    if not isinstance(answer, sympy.Eq) or isinstance(gold, Relational):
        return False
    named = (sympy.Symbol, AppliedUndef)
    left = answer.lhs
    is_name = isinstance(left, named) or (
        isinstance(left, sympy.Mul) and all(isinstance(one, named) for one in left.args)
    )
    return isinstance(left, sympy.Expr) and bool(left.free_symbols) and not is_name


@dataclass(frozen=True, slots=True)
class _Form:
    form: Any
    is_certain: bool


def _forms(candidate: Candidate) -> list[_Form]:
    """Return the answer as expressions and as text, or only the forms that exist.

    A number that may be something else, such as the list `1,5`, is a formula, too.
    """
    number = candidate.quantity
    forms: list[_Form] = []
    if number is not None:
        is_certain = number.is_certain and number.base is None
        values = [sympy.Rational(one.numerator, one.denominator) for one in number.values]
        forms = [_Form(value, is_certain) for value in values]
    is_list = number is not None and "," in number.text
    if candidate.latex and (number is None or is_list or not number.is_certain):
        parsed: list[Any] = parse(
            f"${candidate.latex}$", _LATEX, parsing_timeout=None, raise_on_error=True
        )
        is_certain = number is None or not number.bounded
        forms = [*(_Form(form, is_certain) for form in parsed), *forms]
    return forms


def _is_long_decimal(number: Quantity | None, form: Any) -> bool:  # noqa: ANN401
    """Return whether a decimal of many digits is the value of an expression, rounded."""
    if number is None or number.num_decimals is None or not isinstance(form, sympy.Expr):
        return False
    if not form.is_number or not number.is_certain or form.is_real is not True:
        return False
    exact = Fraction(str(sympy.N(form, number.num_decimals + _NUM_DIGITS)))
    return is_rounding(number.values[0], exact, number.num_decimals, None)


def _is_confirmed(gold: Any, answer: Any) -> bool:  # noqa: ANN401
    """Return False where numbers that were called equal differ by too large a part of them."""
    match gold, answer:
        case sympy.Expr(), sympy.Expr() if gold.is_number and answer.is_number:
            if gold == answer:  # infinities have no difference
                return True
            one, two = sympy.N(gold, _NUM_DIGITS), sympy.N(answer, _NUM_DIGITS)
            return bool(abs(one - two) <= _MAX_RELATIVE_GAP * max(abs(one), abs(two)))
        case (sympy.FiniteSet() | sympy.Tuple(), sympy.FiniteSet() | sympy.Tuple()):
            return all(any(_is_confirmed(one, two) for two in answer.args) for one in gold.args)
        case sympy.Interval(), sympy.Interval():
            return all(map(_is_confirmed, gold.args[:2], answer.args[:2]))
        case sympy.MatrixBase(), sympy.MatrixBase():
            return all(map(_is_confirmed, gold.flat(), answer.flat()))
    return True
