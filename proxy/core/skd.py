"""Runs method `skd` as a state machine: the teacher keeps the student's steps or rewrites them."""

from dataclasses import dataclass

from proxy.core.lookahead import AT_ONCE, Schedule, ScoringQueue
from proxy.core.params import Params
from proxy.core.relay import Relay
from proxy.core.scoring import oracle_value
from proxy.core.types import (
    Command,
    Event,
    FinishReason,
    Following,
    Judged,
    Score,
    Scored,
    Step,
    StepScore,
    StepTrace,
    WriteEnded,
    Wrote,
)
from proxy.core.verdict import check_value


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A step of the student that is not judged yet, and U_t."""

    step: Step
    own_value: float


class SkdMonitor(Relay):
    """A step of the student is kept if V_t > gamma U_t; otherwise the teacher rewrites that step
    from s_{t-1}, and the student continues after it.

    U_t is the geometric mean of the probabilities that the student gave to its own tokens: the
    tokens that end in the step or, if there are none, the one token that contains the step. The
    student does not wait for verdicts: its stream continues during the scoring. When a step is
    rejected, the stream is halted, and the text after that step is discarded.
    """

    def __init__(self, params: Params, schedule: Schedule = AT_ONCE) -> None:
        super().__init__(params)
        self._schedule = schedule
        self._queue: ScoringQueue
        self._drafted: list[_Drafted] = []
        self._open_logprobs: list[tuple[float, ...]] = []
        """The log-probabilities of the student's tokens after its last whole step."""
        self._draft_end: FinishReason | None = None

    def start(self) -> list[Command]:
        return self._pass_on()

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Wrote(write_id) if self._is_current(write_id):
                by_student = self._stretch.author == "student"
                return self._draft(event) if by_student else self._wrote(event)
            case WriteEnded(write_id, reason):
                self._open.discard(write_id)
                if not self._is_current(write_id):
                    return []
                if self._stretch.author == "teacher":
                    return self._ended(reason)
                self._add(self._stretch.close())
                self._draft_end = reason
                return self._advance()
            case Scored():
                return self._scored(event)
            case Wrote(write_id):  # more than was requested, or the rest of a halted write
                return self._halt(write_id)

    def following(self, num_steps: int, num_chars: int) -> Following:
        """See `ScoringMonitor`. The text is that of the student's present stretch."""
        drafted = [drafted.step.text for drafted in self._drafted]
        text = self._stretch.after(drafted, num_steps - len(self._kept), num_chars)
        return Following(text, is_all=self._draft_end is not None)

    def _pass_on(self) -> list[Command]:
        self._drafted.clear()
        self._open_logprobs.clear()
        self._draft_end = None
        self._queue = ScoringQueue(self._params.max_lookahead_tokens, self._schedule)
        return [self._begin("student", lambda _num: False, logprobs=True)]

    def _draft(self, event: Wrote) -> list[Command]:
        if event.logprobs is None:
            raise ValueError("the log-probabilities of its tokens are missing")
        stretch = self._stretch
        commands: list[Command] = []
        for piece, logprobs in zip(event.pieces, event.logprobs, strict=True):
            self._open_logprobs.append(logprobs)
            self._add(stretch.take((piece,)).steps)
            if stretch.is_exhausted:
                self._draft_end = "length"
                if not stretch.stops_by_itself:
                    commands += self._halt(stretch.write_id)
                break
        return commands + self._advance()

    def _add(self, steps: tuple[Step, ...] | list[Step]) -> None:
        for step in steps:
            covering = self._open_logprobs[: step.num_tokens] or self._open_logprobs[-1:]
            own_value = oracle_value([x for logprobs in covering for x in logprobs])
            del self._open_logprobs[: step.num_tokens]
            self._drafted.append(_Drafted(step, own_value))
            self._queue.add(step.num_tokens)

    def _advance(self) -> list[Command]:
        commands: list[Command] = []
        if self._draft_end is None:
            commands += self._queue.gate(self._stretch.write_id, self._stretch.open_tokens)
        elif not self._drafted:
            return [self._finish(self._draft_end)]
        if num_new := self._queue.send_due(draft_is_over=self._draft_end is not None):
            texts = (*self._kept, *(drafted.step.text for drafted in self._drafted))
            # No entropy is needed, so none is requested.
            commands.append(Score(texts, num_new, entropy_known=True))
        return commands

    def _scored(self, event: Scored) -> list[Command]:
        self._queue.answered(len(event.scores), is_full=event.is_full)
        commands: list[Command] = []
        for score in event.scores:
            step = self._judged(self._drafted.pop(0), score)
            self._queue.judged(step.student_tokens)
            commands.append(Judged(len(self._steps), step))
            if not step.safe:
                self._steps.append(step)
                rewrite = self._begin("teacher", lambda _num: True)
                return [*commands, *self._halt(rewrite.write_id - 1), rewrite]
            self._keep(step)
            commands.append(self._emit(step.text))
        if event.is_full:
            return [*commands, *self._halt(self._stretch.write_id), self._finish("length")]
        return commands + self._advance()

    def _judged(self, drafted: _Drafted, score: StepScore) -> StepTrace:
        """Judge a step. Raises ValueError if the score is impossible."""
        check_value(score.value)
        limit = self._params.gamma * drafted.own_value
        return StepTrace(
            text=drafted.step.text,
            author="student",
            student_tokens=drafted.step.num_tokens,
            teacher_tokens=score.num_tokens,
            value=score.value,
            boundary=limit,
            safe=score.value > limit,
        )
