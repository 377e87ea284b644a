"""Judges records by one rule: `python -m synth_client.judging.worker RULE SECONDS`.

Reads records and writes judgements, one JSON object per line; the first line says whether the rule
could be loaded. `verifier.py` starts the process, and kills it when it takes too long.
"""

import math
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import orjson

from synth_client.judging.judgement import Judgement
from synth_client.judging.rules import MATH, PLAIN_RULES

Judge = Callable[[Mapping[str, Any]], Judgement]


def main() -> None:
    """Serve until the input ends."""
    rule, seconds = sys.argv[1], float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a rule's own prints must not mix with the judgements
    try:
        judge = load(rule)
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        answers.write(_line({"fault": _words(error)}))
        return
    answers.write(_line({"fault": None}))
    for line in sys.stdin.buffer:
        _bound(seconds)
        try:
            judgement = judge(orjson.loads(line))
        except Exception as error:  # noqa: BLE001 - so may its function
            judgement = Judgement(None, None, _words(error))
        answers.write(_line(asdict(judgement)))


def load(rule: str) -> Judge:
    """Load the rule's judge. Raises ImportError, AttributeError or what the module raises."""
    if rule == MATH:
        try:
            from synth_client.judging.math_rule import judge_math  # noqa: PLC0415 - takes a second
        except ModuleNotFoundError as error:
            message = (
                f"{error.name} is missing: pip install motab has it, the proxy's image has not"
            )
            raise ImportError(message) from error

        return lambda record: judge_math(record["output"], record["answer"])
    if rule in PLAIN_RULES:
        plain = PLAIN_RULES[rule]
        return lambda record: plain(record["output"], record["answer"])
    module, _, name = rule.partition(":")
    function = getattr(import_module(module), name)
    if not callable(function):
        raise TypeError(f"{rule} is not callable")
    return lambda record: _checked(function(record))


def _checked(result: object) -> Judgement:
    match result:
        case (str() | None as predicted, bool() | None as correct):
            return Judgement(predicted, correct)
        case (str() | None as predicted, bool() | None as correct, dict() as scores):
            if not all(isinstance(name, str) and _is_number(scores[name]) for name in scores):
                raise TypeError(f"the scores must be finite numbers by name, not {scores!r:.80}")
            return Judgement(predicted, correct, scores=scores)
        case _:
            raise TypeError(f"the rule must return (predicted, correct), got {result!r:.80}")


def _is_number(score: object) -> bool:
    return isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)


def _bound(seconds: float) -> None:
    """Let the kernel end this process if it outlives the process that would kill it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(spent + seconds) + 1, hard))


def _line(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    main()
