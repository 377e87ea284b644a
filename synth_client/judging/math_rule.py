"""Judges answers by the rule `math`, as math-verify understands them.

Use it only in a separate process: neither parsing nor comparing is bounded in time or memory here.
"""

import logging
import re
from typing import Any, Final

from math_verify import parse, verify

from synth_client.judging.rules import Judgement, final_part

# It warns that its own time limits, which need signals, are off: the process is bounded instead.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_MARKED: Final = re.compile(r"\$|\\\(|\\\[|\\boxed")


def judge_math(output: str, answer: str | None) -> Judgement:
    """Judge whether the last answer in the output equals the reference.

    A comparison that fails with an error is undecided, unless another form of the same answer is
    equal.
    """
    found = _parsed(final_part(output))
    predicted = next((form for form in reversed(found) if isinstance(form, str)), None)
    if answer is None:
        return Judgement(predicted, None)
    # Text that is not marked as mathematics would only be searched for numbers.
    known = _parsed(answer if _MARKED.search(answer) else f"${answer}$")
    if not known:
        return Judgement(predicted, None, f"no answer in the reference {answer[:80]!r}")
    fault = None
    for one in known:
        for other in found:
            try:
                if verify(one, other, timeout_seconds=None, raise_on_error=True):
                    return Judgement(predicted, correct=True)
            except Exception as error:  # noqa: BLE001 - sympy raises whatever it likes
                fault = f"not comparable: {type(error).__name__}"
    return Judgement(predicted, None if fault else False, fault)


def _parsed(text: str) -> list[Any]:
    """Return the answer as an expression and as text, or only the forms that exist."""
    found: list[Any] = parse(text, parsing_timeout=None, raise_on_error=True)
    return found
