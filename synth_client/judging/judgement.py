"""Defines the judgement of an answer, and the references that name several right answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

_THOUGHT_END: Final = "</think>"
# A rule reads no more than this of a text, because outputs are hostile texts of any length.
_LONGEST: Final = 100_000


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer that was found, and whether it is right.

    `correct` is None if there is nothing to compare, if judging failed, or if the answer is in
    doubt; `fault` then says why. An output without an answer is wrong, without a fault. `scores`
    are further values.
    """

    predicted: str | None
    correct: bool | None
    fault: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


Rule = Callable[[str, str | None], Judgement]


def final_part(output: str) -> str:
    """Return the text after the thoughts, all of it if no thoughts are marked; of a long text its
    end.
    """
    return output.rpartition(_THOUGHT_END)[2][-_LONGEST:]


def answers_of(reference: str) -> list[str]:
    """Return the answers of a reference: a JSON array of texts names several, any of them right."""
    text = reference.strip()
    if not (text.startswith("[") and text.endswith("]") and '"' in text):
        return [reference]
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return [reference]
    are_texts = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return found if are_texts and found else [reference]


def any_of(judge: Rule) -> Rule:
    """Return the rule for references that may name several right answers."""

    def judged(output: str, reference: str | None) -> Judgement:
        if reference is None:
            return judge(output, None)
        found = [judge(output, answer[-_LONGEST:]) for answer in answers_of(reference)]
        best = next((one for one in found if one.correct), None)
        doubtful = next((one for one in found if one.correct is None), None)
        return best or doubtful or found[0]

    return judged
