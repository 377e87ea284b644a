"""Defines a record: one trajectory with its question, trace and outcome, as one line of JSON.

Records are the interchange between the server, synthesis, report, rescoring, export and training,
so a line that breaks one of the format's promises is refused, never repaired.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import orjson
from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from proxy.core.params import Delimiters, Params
from proxy.core.stitch import quality
from proxy.core.types import FinishReason, Quality, Role, Scoring
from trajectory_records.complaints import complaints_of
from trajectory_records.parts import Chosen, Count, LimitedBy, Part, TokenLogprobs
from trajectory_records.steps import (
    Breach,
    Span,
    StepRecord,
    check_breaches,
    check_listed,
    check_spans,
    check_steps,
    corrections_of,
)

Verdict = Literal["safe", "unsafe", "breach", "unscored"]

ROLE_LABELS: Final[Mapping[Role, str]] = {
    "student": "student, safe",
    "flawed": "student, flawed",
    "revise": "revise token",
    "teacher": "teacher",
}


class RecordError(Exception):
    """A line is not a record. `path` and `line` (counted from 1) are None outside a file."""

    def __init__(self, fault: str, *, path: Path | None = None, line: int | None = None) -> None:
        super().__init__(fault if path is None else f"{path}, line {line}: {fault}")
        self.fault = fault
        self.path = path
        self.line = line


class Message(Part):
    """One message of the conversation the trajectory answers."""

    role: str
    content: str


class Models(Part):
    """The names of the two models; a plain upstream has only one, and the other is None."""

    student: str | None
    teacher: str | None


class MotabUsage(Part):
    """The cost of the trajectory, in tokens of either model and in calls.

    `teacher_cached_tokens` is None if the teacher's server does not report its cache, and
    `teacher_tokens` if a plain server reports no usage.
    `teacher_tokens_discarded` is part of `teacher_tokens`.
    """

    student_tokens: Count
    student_tokens_discarded: Count
    teacher_scored_tokens: Count
    teacher_cached_tokens: Count | None
    teacher_tokens: Count | None
    student_calls: Count
    score_calls: Count
    correction_calls: Count
    teacher_tokens_discarded: Count = 0

    def __add__(self, other: "MotabUsage") -> "MotabUsage":
        return MotabUsage(**_sums(self, other))


class Usage(Part):
    """The tokens that the client sees and, under `motab`, the tokens behind them.

    None if a plain server does not report them.
    """

    prompt_tokens: Count | None
    completion_tokens: Count | None
    total_tokens: Count | None
    motab: MotabUsage

    def __add__(self, other: "Usage") -> "Usage":
        sums = _sums(self, other)
        return Usage(**{**sums, "motab": self.motab + other.motab})


def _sums(one: Part, other: Part) -> dict[str, Any]:
    """Return the sum of each count; None where one of the two is not known."""
    counts = {name: (getattr(one, name), getattr(other, name)) for name in type(one).model_fields}
    return {
        name: None if left is None or right is None else left + right
        for name, (left, right) in counts.items()
    }


class Verification(Part):
    """The judgement of the answer. `fault` says why it could not be judged, if so.

    `scores` are the values, by name, of a rule that gives more than a verdict.
    """

    rule: str
    fault: str | None
    scores: Mapping[str, float] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty_scores(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if not self.scores:
            del fields["scores"]
        return fields


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the output in one role."""

    role: Role
    text: str


class Record(Part):
    """One trajectory. `spans` are contiguous and cover `output`; indices count from 0.

    `sample` numbers the trajectories of one question. `breach` (t) and `bifurcation` (t*) are
    indices into `steps`, None without a breach. If there are several, `breaches` has all, in order,
    and these two are the first; otherwise it is None. Readers use `all_breaches`. `scoring` is how
    the teacher obtained the values of the steps, None if its method scores nothing. `predicted` is
    the answer read from the output and `correct` whether it equals the reference `answer`, None if
    there is nothing to compare or judging failed; `verification` names the rule, None if no rule
    was applied. `quality` are the proxy's flags of a text that would teach something wrong, None if
    it gave none.
    `scoring_fallbacks` are the steps, by index, that another way than `scoring` had to judge.
    `token_logprobs` are present once `motab score` has added them.
    `sampling` are the student's values that the request gave, `chat_template_kwargs` and
    `reasoning_effort` its variables of the chat templates; None for what it did not give.
    `limited_by` is the model's limit that ended the text, None if none did. `chosen` says which of
    several corrections was kept, None unless there were several.
    `seconds` is the wall-clock time of the attempt that succeeded, and `usage` is its cost;
    `wasted` is the cost of the attempts that failed, None if no answer named any.

    A server's record has the ids of the request and of the answer, `sample` is the index of the
    choice, and `raw_prompt` says that the one message was no message but a prompt, which the models
    read as it is.
    """

    id: str
    sample: Count
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    output: str
    spans: tuple[Span, ...]
    method: str
    params: dict[str, JsonValue]
    models: Models
    scoring: Scoring | None
    breach: Count | None
    bifurcation: Count | None
    breaches: tuple[Breach, ...] | None = None
    steps: tuple[StepRecord, ...]
    finish_reason: FinishReason
    usage: Usage
    answer: str | None
    predicted: str | None
    correct: bool | None
    attempts: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0.0)]
    motab_version: str
    verification: Verification | None = None
    quality: tuple[str, ...] | None = None
    scoring_fallbacks: Mapping[Scoring, tuple[Count, ...]] | None = None
    limited_by: LimitedBy | None = None
    chosen: Chosen | None = None
    sampling: dict[str, JsonValue] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    reasoning_effort: str | None = None
    wasted: Usage | None = None
    request_id: str | None = None
    response_id: str | None = None
    raw_prompt: bool = False
    token_logprobs: TokenLogprobs | None = None

    @model_validator(mode="after")
    def _keeps_its_promises(self) -> "Record":
        check_spans(self.spans, self.output)
        check_steps(self.steps, self.output, scoring=self.scoring)
        self._check_fallbacks()
        self._check_breach()
        self._check_logprobs()
        if self.raw_prompt and len(self.messages) != 1:
            raise ValueError(f"a raw prompt is one message, not {len(self.messages)}")
        return self

    def _check_fallbacks(self) -> None:
        for way, indices in (self.scoring_fallbacks or {}).items():
            if beyond := [index for index in indices if index >= len(self.steps)]:
                raise ValueError(f"{way} judged step {beyond[0]} of {len(self.steps)} steps")

    def _check_breach(self) -> None:
        if self.chosen is not None and self.breach is None:
            raise ValueError("a correction was chosen, but there is no breach")
        if (self.breach is None) != (self.bifurcation is None):
            raise ValueError("only one of breach and bifurcation is given")
        if self.breaches is not None:
            check_listed(self.breaches, self.breach, self.bifurcation)
        check_breaches(self.all_breaches, self.steps, self.spans)

    def _check_logprobs(self) -> None:
        if self.token_logprobs is None:
            return
        by_model = {"student": self.token_logprobs.student, "teacher": self.token_logprobs.teacher}
        for name, logprobs in by_model.items():
            end = logprobs.ends[-1] if logprobs.ends else 0
            if end != len(self.output):
                raise ValueError(
                    f"the {name}'s tokens end at {end}, the output at {len(self.output)}"
                )

    @property
    def question(self) -> str:
        """The last user message; the last message of all if there is no user message."""
        asked = [message.content for message in self.messages if message.role == "user"]
        return asked[-1] if asked else self.messages[-1].content

    @property
    def delimiter(self) -> str | Delimiters:
        """The delimiter that the record was made with; the default if it names none that is one."""
        match self.params.get("delimiter"):
            case str(text) if text:
                return text
            case {"any": [*values], **rest}:
                texts = tuple(value for value in values if isinstance(value, str) and value)
                return Delimiters(any=texts, keep_code=rest.get("keep_code") is True)
            case _:
                return Params().delimiter

    @property
    def all_breaches(self) -> tuple[Breach, ...]:
        """All breaches in order, however many there are."""
        if self.breaches is not None:
            return self.breaches
        if self.breach is None or self.bifurcation is None:
            return ()
        return (Breach(breach=self.breach, bifurcation=self.bifurcation),)

    @property
    def went_back(self) -> bool:
        """Return whether the teacher went back before a breach, to correct from an earlier step."""
        return any(one.depth for one in self.all_breaches)

    def pieces(self, start: int = 0, end: int | None = None) -> tuple[Piece, ...]:
        """Return the output, or its characters `start` to `end` (exclusive), cut at the spans:
        joined, their texts are the output.
        """
        end = len(self.output) if end is None else end
        first = bisect_right(self.spans, start, key=lambda span: span.end)
        spans = takewhile(lambda span: span.start < end, self.spans[first:])
        cut = ((span.role, max(span.start, start), min(span.end, end)) for span in spans)
        return tuple(Piece(role, self.output[one:two]) for role, one, two in cut if one < two)

    def corrections(self) -> tuple[tuple[Piece, ...], ...]:
        """Return what was written after each breach: the revise token and the teacher's text."""
        found = corrections_of(self.all_breaches, self.steps, self.spans)
        return tuple(self.pieces(start, end) for start, end in found)

    def flags(self) -> tuple[str, ...]:
        """Return `quality`; for a record without it, what its text and steps show."""
        if self.quality is not None:
            return self.quality
        # Whether the prompt had opened the thought is not in the record.
        opened, closed = self.output.find("<think>"), self.output.find("</think>")
        in_thought = closed >= 0 and not 0 <= opened < closed
        # A correction that repeats a step repeats one of its own round.
        rounds: list[tuple[list[str], str | None]] = [([], None)]
        for one, pieces in zip(self.all_breaches, self.corrections(), strict=True):
            steps = map(self.step_text, range(one.bifurcation, one.breach + 1))
            own = "".join(piece.text for piece in pieces if piece.role == "teacher")
            rounds.append(([text for text in steps if text is not None], own))
        found = {
            flag
            for flawed, correction in rounds
            for flag in quality(
                self.output, flawed, correction, self.delimiter, in_thought=in_thought
            )
        }
        return tuple(flag for flag in get_args(Quality) if flag in found)

    def step_text(self, index: int) -> str | None:
        """Return the text of a step, None if it was left out of the output and not kept."""
        step = self.steps[index]
        if step.start is None or step.end is None:
            return step.text
        return self.output[step.start : step.end]

    def step_role(self, index: int) -> Role:
        """Return the role of a step; a step left out of the output is also flawed."""
        if self.steps[index].author == "teacher":
            return "teacher"
        its = self.breach_from(index)
        is_flawed = its is not None and its.bifurcation <= index
        return "flawed" if is_flawed or self.steps[index].start is None else "student"

    def step_scoring(self, index: int) -> Scoring | None:
        """Return the way in which the value of a step was obtained, None if it has none."""
        ways = (self.scoring_fallbacks or {}).items()
        other = next((way for way, indices in ways if index in indices), None)
        return None if self.steps[index].value is None else other or self.scoring

    def step_verdict(self, index: int) -> Verdict:
        """Return the decision on a step, in one word."""
        safe = self.steps[index].safe
        if safe is None:
            return "unscored"
        if safe:
            return "safe"
        its = self.breach_from(index)
        return "breach" if its is not None and its.breach == index else "unsafe"

    def breach_from(self, index: int) -> Breach | None:
        """Return the breach of a step's round, None if the round ends without one."""
        breaches = self.all_breaches
        at = bisect_left(breaches, index, key=lambda one: one.breach)
        return breaches[at] if at < len(breaches) else None

    def to_json_line(self) -> bytes:
        """Return one line of JSON in UTF-8, newline included; without the optional fields that are
        not given.
        """
        left_out = {name for name in _OPTIONAL if getattr(self, name) in (None, False)}
        fields = self.model_dump(exclude=left_out)
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_json_line(cls, line: bytes) -> "Record":
        """Read a line that `to_json_line` wrote; raises `RecordError` for anything else."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise RecordError(complaints_of(error)) from error


_OPTIONAL: Final = (
    "breaches",
    "quality",
    "scoring_fallbacks",
    "limited_by",
    "chosen",
    "sampling",
    "chat_template_kwargs",
    "reasoning_effort",
    "wasted",
    "request_id",
    "response_id",
    "raw_prompt",
    "token_logprobs",
)
