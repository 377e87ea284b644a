"""Names the rules that judge answers, and defines the simplest, `exact`.

Each rule takes the output and the reference answer, which may be None, and gives a `Judgement`. The
rules here read bounded pieces of the output by regular expressions without nested repeats, so they
end soon on any text; rules without such a bound (`math`, and a user's callable) run in separate
processes, see `verifier.py`.
"""

import re
from collections.abc import Mapping
from typing import Final

from proxy.near_names import did_you_mean
from synth_client.errors import InputError
from synth_client.judging.choice_rule import judge_choice
from synth_client.judging.judgement import Judgement, Rule, any_of, final_part
from synth_client.judging.number_rule import judge_number
from synth_client.judging.place import boxes

MATH: Final = "math"
CHOICE: Final = "choice"
_CALLABLE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_LABEL: Final = re.compile(r"\banswer\b(?:[ ]is\b)?[*_ ]*[:=]?", re.IGNORECASE)


def final_answer(text: str) -> str | None:
    """Return the last box's content, else the text after the last "answer" on its line.

    Without either, return the last line, or None if the text is blank.
    """
    boxed = [box for box in boxes(text) if box.is_closed]
    if boxed:
        return boxed[-1].content.strip()
    labels = list(_LABEL.finditer(text))
    if labels:
        said = text[labels[-1].end() :].partition("\n")[0].strip(" *_`\r\t").removesuffix(".")
        if said:
            return said.strip(" *_`")
    return _last_line(text).strip(" *_`") or None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _judge_exact(output: str, answer: str | None) -> Judgement:
    predicted = final_answer(final_part(output))
    if answer is None:
        return Judgement(predicted, None)
    return Judgement(predicted, predicted == answer.strip())


PLAIN_RULES: Final[Mapping[str, Rule]] = {
    "exact": any_of(_judge_exact),
    CHOICE: any_of(judge_choice),
    "number": any_of(judge_number),
}


def check_rule(name: str) -> str:
    """Return `name` if a rule has it. Raises `InputError` with the known rules otherwise."""
    if name == MATH or name in PLAIN_RULES or _CALLABLE.fullmatch(name):
        return name
    known = ", ".join([MATH, *PLAIN_RULES])
    meant = did_you_mean(name, [MATH, *PLAIN_RULES])
    raise InputError(f"no such rule: {name!r}; known rules are {known} and MODULE:FUNCTION{meant}")
