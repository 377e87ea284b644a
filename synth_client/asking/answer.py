"""Turns the answers of servers into records that are not verified yet."""

from importlib.metadata import version
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from proxy.core.types import FinishReason, Scoring, finish_reason_of
from proxy.secrets import masked
from synth_client.asking.errors import REASONING_APART, SynthesisError
from synth_client.questions.question import Question, Synthesis
from trajectory_records.complaints import complaints_of
from trajectory_records.parts import Chosen, Count, LimitedBy, TokenLogprobs
from trajectory_records.record import (
    Models,
    MotabUsage,
    Record,
    Usage,
)
from trajectory_records.steps import Breach, Span, StepRecord

PLAIN_METHOD: Final = "plain"
EMPTY_OUTPUT: Final = "empty_output"
_EXCERPT_CHARS: Final = 200
_MOTAB_VERSION: Final = version("motab")


def traced_record(
    content: bytes, question: Question, *, sample: int, attempts: int, seconds: float
) -> Record:
    """Build the record of an answer by the proxy, with its trace.

    Raises `SynthesisError` if the answer lacks something or contradicts itself.
    """
    try:
        completion = _Completion.model_validate_json(content)
        (choice,) = completion.choices
        trace = choice.motab
        return _record(
            question,
            output=choice.message.content,
            spans=trace.spans,
            method=trace.method,
            params=trace.params,
            models=trace.models,
            scoring=trace.scoring,
            quality=trace.quality,
            scoring_fallbacks=trace.scoring_fallbacks,
            limited_by=trace.limited_by,
            chosen=trace.chosen,
            breach=trace.breach,
            bifurcation=trace.bifurcation,
            breaches=trace.breaches,
            steps=trace.steps,
            finish_reason=choice.finish_reason,
            usage=_usage_of(completion.usage),
            sample=sample,
            attempts=attempts,
            seconds=seconds,
        )
    except ValidationError as error:
        raise _malformed_as(error, content) from error


def plain_record(
    content: bytes, question: Question, *, model: str, sample: int, attempts: int, seconds: float
) -> Record:
    """Build the record of any OpenAI-compatible answer; its one model counts as the teacher.

    What servers leave out (the usage, the model's name, for which the asked `model` stands, the
    role) keeps no record from being made. Raises `SynthesisError` if the answer has no text.
    """
    try:
        completion = _PlainCompletion.model_validate_json(content)
        (choice,) = completion.choices
        if choice.message.reasoning_content or choice.message.reasoning:
            raise SynthesisError(
                "the server separates the reasoning from the content, so the record would lose it;"
                " start the server without its reasoning parser",
                status=200,
                error_type=REASONING_APART,
            )
        output, usage = choice.message.content or "", completion.usage or _PlainUsage()
        spans = (Span(role="teacher", start=0, end=len(output)),) if output else ()
        return _record(
            question,
            output=output,
            spans=spans,
            method=PLAIN_METHOD,
            params={},
            models=Models(student=None, teacher=completion.model or model),
            scoring=None,
            breach=None,
            bifurcation=None,
            steps=(),
            finish_reason=_finish_of(choice.finish_reason),
            usage=_usage_of(usage),
            sample=sample,
            attempts=attempts,
            seconds=seconds,
        )
    except ValidationError as error:
        raise _malformed_as(error, content) from error


def asked_record(record: Record, synthesis: Synthesis) -> Record:
    """Return `record` with the sampling and the templates' variables that it was asked with."""
    sampling = synthesis.sampling() or None
    return Record(**{**dict(record), "sampling": sampling, **synthesis.of_templates()})


def scored_record(content: bytes, record: Record) -> Record:
    """Return `record` with the `token_logprobs` of the answer.

    Raises `SynthesisError` if the answer lacks something or does not cover the output.
    """
    try:
        found = _TokenScores.model_validate_json(content).token_logprobs
        return Record(**{**dict(record), "token_logprobs": found})
    except ValidationError as error:
        raise _malformed_as(error, content) from error


def _finish_of(reason: str | None) -> FinishReason:
    """Return why a plain server's answer ended; a reason that nobody knows is an ordinary end."""
    return finish_reason_of(reason or "stop") or "stop"


def spent_in(content: bytes) -> Usage | None:
    """Return the cost that an answer states which became no record, None if it states none."""
    for kind in (_Spent, _PlainSpent):
        try:
            usage = kind.model_validate_json(content).usage
        except ValidationError:
            continue
        return _usage_of(usage)
    return None


def _usage_of(stated: "_Usage | _PlainUsage") -> Usage:
    if isinstance(stated, _PlainUsage):
        motab = _all_by_the_teacher(stated.completion_tokens)
        return Usage(**dict(stated), motab=motab)
    return Usage(**dict(stated))


def _all_by_the_teacher(completion_tokens: int | None) -> MotabUsage:
    return MotabUsage(
        student_tokens=0,
        student_tokens_discarded=0,
        teacher_scored_tokens=0,
        teacher_cached_tokens=None,
        teacher_tokens=completion_tokens,
        student_calls=0,
        score_calls=0,
        correction_calls=1,
    )


def _record(question: Question, *, output: str, **fields: Any) -> Record:  # noqa: ANN401
    if not output.strip():
        raise _malformed("the output is empty", code=EMPTY_OUTPUT)
    return Record(
        id=question.id,
        messages=question.messages,
        output=output,
        answer=question.answer,
        predicted=None,
        correct=None,
        motab_version=_MOTAB_VERSION,
        **fields,
    )


def excerpt_of(content: bytes) -> str:
    """Return the beginning of an answer, in one line."""
    text = content[: 4 * _EXCERPT_CHARS].decode(errors="replace")
    return masked(" ".join(text.split()))[:_EXCERPT_CHARS]


def is_json(content: bytes) -> bool:
    """Return whether an answer is JSON at all."""
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return True


def _malformed_as(error: ValidationError, content: bytes) -> SynthesisError:
    fault = complaints_of(error)
    return _malformed(fault if is_json(content) else f"{fault}: '{excerpt_of(content)}'")


def _malformed(fault: str, code: str | None = None) -> SynthesisError:
    return SynthesisError(
        f"malformed answer: {fault}", status=200, error_type="malformed_answer", code=code
    )


class _Wire(BaseModel):
    """Part of an OpenAI answer; fields that a server adds of its own are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _ChatMessage(_Wire):
    role: Literal["assistant"]
    content: str


class _Trace(_Wire):
    method: str
    breach: int | None
    bifurcation: int | None
    breaches: tuple[Breach, ...] | None = None
    scoring: Scoring | None
    spans: tuple[Span, ...]
    steps: tuple[StepRecord, ...]
    params: dict[str, JsonValue]
    models: Models
    quality: tuple[str, ...] | None = None
    scoring_fallbacks: dict[Scoring, tuple[Count, ...]] | None = None
    limited_by: LimitedBy | None = None
    chosen: Chosen | None = None


class _Choice(_Wire):
    message: _ChatMessage
    finish_reason: FinishReason
    motab: _Trace


class _Usage(Usage):
    model_config = ConfigDict(extra="ignore")


class _Completion(_Wire):
    choices: Annotated[tuple[_Choice, ...], Field(min_length=1, max_length=1)]
    usage: _Usage


class _TokenScores(_Wire):
    token_logprobs: TokenLogprobs


class _PlainMessage(_Wire):
    """A refused or filtered answer has a content of null."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _PlainChoice(_Wire):
    message: _PlainMessage
    finish_reason: str | None = None


class _PlainUsage(_Wire):
    """None for what the server does not report."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None


class _Spent(_Wire):
    """Any answer of the proxy that states what it cost, errors among them."""

    usage: _Usage


class _PlainSpent(_Wire):
    usage: _PlainUsage


class _PlainCompletion(_Wire):
    model: str | None = None
    choices: Annotated[tuple[_PlainChoice, ...], Field(min_length=1, max_length=1)]
    usage: _PlainUsage | None = None


class _ErrorBody(_Wire):
    message: str
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _ErrorAnswer(_Wire):
    error: _ErrorBody


def refusal(status: int, content: bytes, otherwise: str) -> SynthesisError:
    """Return the server's own error object, or `otherwise` if the answer holds none."""
    try:
        error = _ErrorAnswer.model_validate_json(content).error
    except ValidationError:
        return SynthesisError(otherwise, status=status)
    return SynthesisError(
        error.message,
        status=status,
        error_type=error.type,
        param=error.param,
        code=None if error.code is None else str(error.code),
    )
