"""Prints what a tool got for each way of asking; it runs in the tool's own environment.

A script here is started as `python -m tests.clients.use_TOOL URL KEY` in an empty folder.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel

BASE_URL, API_KEY = sys.argv[1:3]
MODEL = "motab/demo"
STUDENT = "student/student"
QUESTIONS = ("What is 93 minus 61 minus 3?", "What is 5 - 2?", "What is 7 - 2 and 8 minus 5?")
MESSAGES = ({"role": "user", "content": QUESTIONS[0]},)
# Params that show in the text itself, because some tools drop the trace: every first step is wrong.
WAIT = {"base_threshold": 1, "boundary": "static", "revise": "Wait,"}
# Params for an answer that is sent back: after a whole answer the tiny student has no more to say.
SHORT = {"max_total_tokens": 4, "base_threshold": 0}


class Sum(BaseModel):
    """A shape of answers, for tools that ask for text of a schema."""

    is_positive: bool


@dataclass(frozen=True)
class Answer:
    """A text as the tool gave it, and the trace where the tool kept it."""

    text: str
    motab: object = None


def report(
    package: str, answers: Mapping[str, Answer], refusals: Mapping[str, str] | None = None
) -> None:
    """Print the installed version, the answers, and the field for which each way was refused."""
    found = {
        "version": version(package),
        "answers": {way: asdict(answer) for way, answer in answers.items()},
        "refusals": refusals or {},
    }
    Path("found.json").write_text(json.dumps(found), encoding="utf-8")


def refusal(field: str, error: type[Exception], ask: Callable[[], object]) -> str:
    """Return the field, after the proxy has refused the request by naming the field."""
    try:
        given = ask()
    except error as caught:
        if field not in str(caught):
            raise
        return field
    raise AssertionError(f"{field} was not refused: {given}")
