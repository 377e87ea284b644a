"""Makes a record into what the viewer's scripts draw.

Only this file and the scripts in `assets` know the format: an entry, which is a row of the list,
and a view, which is a whole trajectory.
"""

from collections.abc import Iterable
from typing import Any, Final

from trajectory_records.record import Piece, Record
from trajectory_records.text_logprobs import MODELS, BothModels

_PARAMS: Final = {
    "base_threshold",
    "entropy_scale",
    "boundary",
    "boundary_values",
    "backtrack",
    "stitch",
}
_INDEX_CHARS: Final = 200
_MAX_WINDOWS: Final = 120
_MIN_WINDOW: Final = 8


def entry_of(record: Record) -> tuple[Any, ...]:
    """A row of the list: id, sample, shortened question, answers, breach, bifurcation, outcome.

    Of several breaches, and their bifurcations, it has lists.
    """
    breaches = [one.breach for one in record.all_breaches]
    bifurcations = [one.bifurcation for one in record.all_breaches]
    return (
        record.id,
        record.sample,
        record.question[:_INDEX_CHARS],
        record.predicted,
        record.answer,
        breaches if len(breaches) > 1 else record.breach,
        bifurcations if len(breaches) > 1 else record.bifurcation,
        record.correct,
        len(record.steps),
    )


def view_of(record: Record) -> dict[str, Any]:
    """A trajectory as the viewer draws it.

    Texts are whole strings: a record's offsets count code points, JavaScript counts UTF-16 units.
    """
    usage = record.usage.motab
    return {
        "messages": [[message.role, message.content] for message in record.messages],
        "method": record.method,
        "scoring": record.scoring,
        "params": {name: value for name, value in record.params.items() if name in _PARAMS},
        "models": [record.models.student, record.models.teacher],
        "steps": [_step_of(record, index) for index in range(len(record.steps))],
        **_after_steps(record),
        "chosen": None if record.chosen is None else record.chosen.model_dump(),
        "logprobs": _windows_of(record),
        "finish": record.finish_reason,
        "tokens": [
            usage.student_tokens,
            usage.student_tokens_discarded,
            usage.teacher_scored_tokens,
            usage.teacher_tokens,
        ],
        "attempts": record.attempts,
        "seconds": record.seconds,
    }


def _step_of(record: Record, index: int) -> list[Any]:
    step = record.steps[index]
    return [
        record.step_text(index),
        record.step_role(index),
        record.step_verdict(index),
        step.value,
        step.boundary,
        step.entropy,
        step.td_error,
        step.start is None,
        None if (way := record.step_scoring(index)) == record.scoring else way,
    ]


def _windows_of(record: Record) -> dict[str, Any] | None:
    """Each model's mean log-probability per token, in windows of equally many characters."""
    if record.token_logprobs is None or not record.output:
        return None
    length = len(record.output)
    width = max(_MIN_WINDOW, -(-length // _MAX_WINDOWS))
    readings = BothModels.of(record.token_logprobs)
    means: dict[str, list[float | None]] = {model: [] for model in MODELS}
    for model in MODELS:
        for start in range(0, length, width):
            num, total = readings.by(model).tokens(start, min(start + width, length))
            means[model].append(round(total / num, 3) if num else None)
    parts = [(span.role, span.start, span.end) for span in record.spans]
    return {"width": width, "length": length, "parts": parts, **means}


def _after_steps(record: Record) -> dict[str, list[Any]]:
    """The output that is no step, by role: `rest` is what follows the last step, `corrections` are
    the corrections before it.
    """
    corrections = [_texts(pieces) for pieces in record.corrections()]
    breaches = record.all_breaches
    if breaches and breaches[-1].breach == len(record.steps) - 1:
        return {"rest": corrections.pop(), "corrections": corrections}
    end = max((step.end for step in record.steps if step.end is not None), default=0)
    return {"rest": _texts(record.pieces(end)), "corrections": corrections}


def _texts(pieces: Iterable[Piece]) -> list[tuple[str, str]]:
    return [(piece.role, piece.text) for piece in pieces]
