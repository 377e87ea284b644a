"""Reads rows that hold a question with its right and wrong answers in columns, like GPQA's."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

_QUESTION: Final = "Question"
_RIGHT: Final = "Correct Answer"
_WRONG: Final = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
_LETTERS: Final = "ABCD"
_OTHER_NAMES: Final = {"id": "Record ID", "subject": "High-level domain"}


@dataclass(frozen=True, slots=True)
class _Choice:
    text: str
    is_right: bool


def has_choices(columns: Mapping[str, Any]) -> bool:
    """Return whether the row has these columns."""
    return _QUESTION in columns and _RIGHT in columns


def laid_out(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row as a question with lettered choices, whose answer is a letter.

    The order is by a hash over the question and each choice, so it gives nothing away and is the
    same everywhere. Raises ValueError if a text is missing.
    """
    question = _text(columns, _QUESTION)
    choices = [_Choice(_text(columns, name), name == _RIGHT) for name in (_RIGHT, *_WRONG)]
    choices.sort(key=lambda choice: blake2b(f"{question}\n{choice.text}".encode()).digest())
    lines = [f"{letter}) {choice.text}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    right = next(index for index, choice in enumerate(choices) if choice.is_right)
    taken = {name: columns.get(there) for name, there in _OTHER_NAMES.items()}
    problem = "\n".join([question, "", *lines])
    return {**taken, "problem": problem, "answer": _LETTERS[right]}


def _text(columns: Mapping[str, Any], name: str) -> str:
    value = columns.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # readers of CSV turn a column of numbers into numbers
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is neither a number nor a text, or is empty")
    return value.strip()
