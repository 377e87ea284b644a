"""Makes records of `stitch: clean` from records that kept the flawed attempt."""

from typing import Final

from proxy.core.stitch import cover
from synth_client.errors import InputError
from trajectory_records.record import Record
from trajectory_records.steps import Span, StepRecord

DECIDED_BY_THE_TEXT: Final = ("rounds", "corrections")
"""Parameters with which the stitched text may decide what comes next, if they are not 1."""


def clean(record: Record) -> Record:
    """Return the record as the proxy makes it under `stitch: clean` (Eq. 9 without its middle).

    The correction is the same: the teacher wrote it after the safe prefix, whatever the text is
    joined with. The answer must be judged again. Raises `InputError` where that does not hold.
    """
    record = record.model_copy(update={"params": {**record.params, "stitch": "clean"}})
    if record.breach is None or record.bifurcation is None:
        return record
    pieces = record.pieces()
    decided = [name for name in DECIDED_BY_THE_TEXT if record.params.get(name, 1) != 1]
    if decided or len([piece for piece in pieces if piece.role == "flawed"]) > 1:
        why = " and ".join(decided) or "several breaches"
        raise InputError(
            f"{record.id}: a trajectory with {why} cannot be stitched again; give the arm's params"
            f" {' or '.join(DECIDED_BY_THE_TEXT)}, and it has records of its own"
        )
    kept = [(piece.role, piece.text) for piece in pieces if piece.role not in {"flawed", "revise"}]
    joined = cover(*kept)
    flawed = range(record.bifurcation, record.breach + 1)
    steps = tuple(
        _left_out(step, record.step_text(index)) if index in flawed else step
        for index, step in enumerate(record.steps)
    )
    return record.model_copy(
        update={
            "output": joined.text,
            "spans": tuple(Span(role=s.role, start=s.start, end=s.end) for s in joined.spans),
            "steps": steps,
            "usage": record.usage.model_copy(update=_counts(record)),
            # Its flags were the flawed text's; without them, they are read from the new text.
            "quality": None,
            "token_logprobs": None,
        }
    )


def _left_out(step: StepRecord, text: str | None) -> StepRecord:
    return step.model_copy(update={"start": None, "end": None, "text": text})


def _counts(record: Record) -> dict[str, object]:
    """Return the counts of the shorter text; as before where a server does not count."""
    usage = record.usage
    prefix = sum(step.student_tokens for step in record.steps[: record.bifurcation])
    if usage.completion_tokens is None or usage.motab.teacher_tokens is None:
        return {}
    teacher = usage.motab.teacher_tokens - usage.motab.teacher_tokens_discarded
    total = None if usage.prompt_tokens is None else usage.prompt_tokens + prefix + teacher
    discarded = usage.motab.student_tokens - prefix
    return {
        "completion_tokens": prefix + teacher,
        "total_tokens": total,
        "motab": usage.motab.model_copy(update={"student_tokens_discarded": discarded}),
    }
