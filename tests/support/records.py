"""Makes records for tests: unbroken, breached, scored."""

import math
from collections.abc import Iterable
from typing import Any

import orjson

from proxy.core.types import Role
from trajectory_records.record import Record

SAFE = ("Tom has 12 bags [of apples].\n\n", "Each bag holds 3 apples.\n\n")


FLAWED = ("So he has 12 + 3 apples.\n\n", "That makes 15.\n\n")


REVISE = "However,\n\n"


CORRECTION = "the bags multiply: 12 * 3 = 36.\n\nThe answer is 36"


VALUES = (0.81, 0.74, 0.31, 0.05)


FIELDS = [
    "id",
    "sample",
    "messages",
    "output",
    "spans",
    "method",
    "params",
    "models",
    "scoring",
    "breach",
    "bifurcation",
    "steps",
    "finish_reason",
    "usage",
    "answer",
    "predicted",
    "correct",
    "attempts",
    "seconds",
    "motab_version",
    "verification",
    "quality",
]


def spans_of(parts: Iterable[tuple[Role, str]]) -> list[dict[str, Any]]:
    spans: list[dict[str, Any]] = []
    end = 0
    for role, text in parts:
        spans.append({"role": role, "start": end, "end": end + len(text)})
        end += len(text)
    return spans


def steps_of(texts: Iterable[str], values: Iterable[float | None]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    end, before = 0, None
    for text, value in zip(texts, values, strict=True):
        steps.append(
            {
                "start": end,
                "end": end + len(text),
                "value": value,
                "entropy": None if value is None else 0.5,
                "boundary": None if value is None else 0.2 * math.exp(-0.5),
                "td_error": None if value is None or before is None else value - before,
                "safe": None if value is None else value >= 0.2 * math.exp(-0.5),
                "student_tokens": 9,
                "teacher_tokens": 8,
                "author": "student",
            }
        )
        end, before = end + len(text), value
    return steps


def breached() -> dict[str, Any]:
    """A record, as JSON, of which step 3 is the breach and step 2 the bifurcation."""
    student = SAFE + FLAWED
    parts: list[tuple[Role, str]] = [
        ("student", "".join(SAFE)),
        ("flawed", "".join(FLAWED)),
        ("revise", REVISE),
        ("teacher", CORRECTION),
    ]
    return {
        "id": "apples",
        "sample": 0,
        "messages": [
            {"role": "system", "content": "Think in steps."},
            {"role": "user", "content": "How many apples are in 12 bags [of 3]?"},
        ],
        "output": "".join(text for _, text in parts),
        "spans": spans_of(parts),
        "method": "motab",
        "params": {"base_threshold": 0.2, "entropy_scale": 1.0, "boundary": "adaptive"},
        "models": {"student": "smol", "teacher": "big"},
        "scoring": "prompt_logprobs",
        "breach": 3,
        "bifurcation": 2,
        "steps": steps_of(student, VALUES),
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 60,
            "total_tokens": 80,
            "motab": {
                "student_tokens": 40,
                "student_tokens_discarded": 4,
                "teacher_scored_tokens": 32,
                "teacher_cached_tokens": 16,
                "teacher_tokens": 20,
                "student_calls": 1,
                "score_calls": 4,
                "correction_calls": 1,
                "teacher_tokens_discarded": 0,
            },
        },
        "answer": "36",
        "predicted": "36",
        "correct": True,
        "attempts": 1,
        "seconds": 1.25,
        "motab_version": "0.1.0",
        "verification": {"rule": "number", "fault": None},
        "quality": [],
    }


def unbroken(**changes: Any) -> dict[str, Any]:
    """A record, as JSON, in which the student wrote everything and nothing went wrong."""
    fields = breached()
    text = "".join(SAFE)
    fields |= {
        "id": "bags",
        "output": text,
        "spans": spans_of([("student", text)]),
        "breach": None,
        "bifurcation": None,
        "steps": steps_of(SAFE, VALUES[:2]),
        "predicted": "3",
        "correct": False,
    }
    return fields | changes


def record_of(fields: dict[str, Any]) -> Record:
    return Record.from_json_line(orjson.dumps(fields))


def left_out() -> dict[str, Any]:
    """The breached record as `stitch: clean` makes it: its flawed steps are not in the output."""
    fields = breached()
    parts: list[tuple[Role, str]] = [("student", "".join(SAFE)), ("teacher", CORRECTION)]
    fields["output"] = "".join(text for _, text in parts)
    fields["spans"] = spans_of(parts)
    for step, text in zip(fields["steps"][2:], FLAWED, strict=True):
        step |= {"start": None, "end": None, "text": text}
    return fields


def several(
    *rounds: tuple[int, int], tail: int = 0, clean: bool = False, **changes: Any
) -> dict[str, Any]:
    """A record, as JSON, with a breach in every round, which is a number of safe and of flawed
    steps. `tail` steps follow the last correction; `clean` leaves out the flawed steps.
    """
    fields = breached()
    parts: list[tuple[Role, str]] = []
    steps: list[dict[str, Any]] = []
    breaches: list[dict[str, int]] = []

    def write(role: Role, number: int, values: list[float]) -> None:
        texts = [f"{role} {number}.{index}\U0001f34e.\n\n" for index in range(len(values))]
        start = sum(len(text) for _, text in parts)
        made = steps_of(texts, values)
        if role == "flawed" and clean:
            for step, text in zip(made, texts, strict=True):
                step |= {"start": None, "end": None, "text": text}
        elif texts:
            parts.append((role, "".join(texts)))
            for step in made:
                step |= {"start": start + step["start"], "end": start + step["end"]}
        is_first = not steps or (bool(breaches) and breaches[-1]["breach"] == len(steps) - 1)
        if made and not is_first:
            made[0]["td_error"] = made[0]["value"] - steps[-1]["value"]
        steps.extend(made)

    for number, (num_safe, num_flawed) in enumerate(rounds):
        write("student", number, [0.8] * num_safe)
        cut = len(steps)
        write("flawed", number, [0.3] * (num_flawed - 1) + [0.05])
        breaches.append({"breach": len(steps) - 1, "bifurcation": cut})
        correction = f"teacher {number}.\n\n"
        parts.extend(
            [("teacher", correction)] if clean else [("revise", REVISE), ("teacher", correction)]
        )
    write("student", len(rounds), [0.7] * tail)
    first = breaches[0] if breaches else {"breach": None, "bifurcation": None}
    several = {"breaches": breaches} if len(breaches) > 1 else {}
    output = "".join(text for _, text in parts)
    fields |= {
        "id": f"{len(rounds)} rounds",
        "output": output,
        "spans": spans_of(parts),
        "steps": steps,
    }
    fields["params"] = {**fields["params"], "stitch": "clean" if clean else "flawed"}
    return fields | first | several | changes


def scored(**changes: Any) -> dict[str, Any]:
    """An unbroken record's fields with the log-probabilities of a few tokens."""
    fields = unbroken()
    end = len(fields["output"])
    told = {"ends": [3, 3, end], "logprobs": [-0.5, -0.25, -1.0]}
    fields["token_logprobs"] = {"student": told, "teacher": {**told, **changes}}
    return fields
