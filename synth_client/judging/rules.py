"""Finds and compares the answer in an output, by the rules that need no library.

Each rule takes the output and the reference answer, which may be None, and gives a `Judgement`. The
rules are regular expressions without nested repeats, so they end soon on any text; rules without
such a bound (`math`, and a user's callable) run in separate processes, see `verifier.py`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from synth_client.errors import InputError

MATH: Final = "math"
CHOICE: Final = "choice"
_CALLABLE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_THOUGHT_END: Final = "</think>"
# A comma belongs to a number only if it groups thousands; a minus right after a word or a closing
# bracket is a hyphen or a subtraction.
_NUMBER: Final = re.compile(
    r"(?:(?<![\w)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?![0-9])(?:\.[0-9]+)?"
)
_BOXED: Final = "\\boxed{"
_LABEL: Final = re.compile(r"\banswer\b(?:[ ]is\b)?[*_ ]*[:=]?", re.IGNORECASE)
_LETTER: Final = re.compile(r"(?<![A-Za-z\\])[A-E](?![A-Za-z'])")
_COMMAND: Final = re.compile(r"\\[a-z]+")


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer that was found, and whether it is right.

    `correct` is None if there is nothing to compare, or if judging failed; `fault` then says why.
    An output without an answer is wrong, without a fault. `scores` are further values.
    """

    predicted: str | None
    correct: bool | None
    fault: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


Rule = Callable[[str, str | None], Judgement]


def final_part(output: str) -> str:
    """Return the text after the thoughts; all of it if no thoughts are marked."""
    return output.rpartition(_THOUGHT_END)[2]


def last_number(text: str) -> str | None:
    """Return the last number as written, without the commas that group thousands."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def last_choice(text: str) -> str | None:
    """Return a letter A to E: from the last box, else after the last "answer", else a lone letter.

    After "answer" the first letter counts; a lone letter is the whole content of the last line.
    """
    if (boxed := last_boxed(text)) is not None:
        return _only_letter(_COMMAND.sub(" ", boxed))
    labels = list(_LABEL.finditer(text))
    if labels:
        rest = text[labels[-1].end() :].strip()
        line = rest.splitlines()[0] if rest else ""
        found = _LETTER.search(_COMMAND.sub(" ", line))
        return found[0] if found else None
    return _only_letter(_last_line(text))


def final_answer(text: str) -> str | None:
    """Return the last box's content, else the text after the last "answer" on its line.

    Without either, return the last line, or None if the text is blank.
    """
    if (boxed := last_boxed(text)) is not None:
        return boxed.strip()
    labels = list(_LABEL.finditer(text))
    if labels:
        said = text[labels[-1].end() :].partition("\n")[0].strip(" *_\r\t").removesuffix(".")
        if said:
            return said
    return _last_line(text) or None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}` whose braces match."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    start += len(_BOXED)
    depth = 1
    for brace in re.finditer(r"(?<!\\)[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _only_letter(text: str) -> str | None:
    letters = re.findall(r"[A-Za-z]+", text)
    return letters[0] if len(letters) == 1 and letters[0] in "ABCDE" else None


def _judge_number(output: str, answer: str | None) -> Judgement:
    predicted = last_number(final_part(output))
    if answer is None:
        return Judgement(predicted, None)
    known = last_number(answer)
    if known is None:
        return Judgement(predicted, None, f"no number in the reference answer {answer[:80]!r}")
    return Judgement(predicted, predicted is not None and Decimal(predicted) == Decimal(known))


def _judge_choice(output: str, answer: str | None) -> Judgement:
    predicted = last_choice(final_part(output))
    if answer is None:
        return Judgement(predicted, None)
    known = _only_letter(answer) or last_choice(answer)
    if known is None:
        return Judgement(predicted, None, f"the reference answer {answer[:80]!r} is not A to E")
    return Judgement(predicted, predicted == known)


def _judge_exact(output: str, answer: str | None) -> Judgement:
    predicted = final_answer(final_part(output))
    if answer is None:
        return Judgement(predicted, None)
    return Judgement(predicted, predicted == answer.strip())


PLAIN_RULES: Final[Mapping[str, Rule]] = {
    "exact": _judge_exact,
    CHOICE: _judge_choice,
    "number": _judge_number,
}


def check_rule(name: str) -> str:
    """Return `name` if a rule has it. Raises `InputError` with the known rules otherwise."""
    if name == MATH or name in PLAIN_RULES or _CALLABLE.fullmatch(name):
        return name
    known = ", ".join([MATH, *PLAIN_RULES])
    raise InputError(f"no such rule: {name!r}; known rules are {known} and MODULE:FUNCTION")
