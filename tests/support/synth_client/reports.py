"""Makes records for reports: with log-probabilities, and with hostile texts."""

from typing import Any

from synth_client.report.statistics import (
    Statistics,
)
from tests.support.records import (
    breached,
    record_of,
    spans_of,
)


def evenly(output: str, num_chars: int, logprob: float) -> dict[str, Any]:
    """Tokens of `num_chars` characters, the last maybe shorter, all of one log-probability."""
    ends = [*range(num_chars, len(output), num_chars), len(output)] if output else []
    return {"ends": ends, "logprobs": [logprob] * len(ends)}


def statistics_of(*records: dict[str, Any]) -> Statistics:
    run = Statistics()
    for fields in records:
        run.add(record_of(fields))
    return run


EVIL = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>\" ' & {{ 7 * 7 }}"


def hostile() -> dict[str, Any]:
    fields = breached()
    fields |= {
        "id": EVIL,
        "method": EVIL,
        "messages": [{"role": "user", "content": EVIL}],
        "models": {"student": EVIL, "teacher": EVIL},
        "params": {"base_threshold": EVIL},
        "output": EVIL,
        "spans": spans_of([("teacher", EVIL)]),
        "answer": EVIL,
        "predicted": EVIL,
        "motab_version": EVIL,
    }
    for step in fields["steps"]:
        step |= {"start": None, "end": None, "text": EVIL}
    return fields


def with_tokens(fields: dict[str, Any]) -> dict[str, Any]:
    """The student's tokens are of 3 characters and -0.6, the teacher's of 4 and -0.4."""
    output = fields["output"]
    both = {"student": evenly(output, 3, -0.6), "teacher": evenly(output, 4, -0.4)}
    return fields | {"token_logprobs": both}
