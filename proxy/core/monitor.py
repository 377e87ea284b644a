"""Decides the course of a trajectory as a state machine: events in, commands out, no I/O.

The engine obeys each command and reports what happened as events. However the student's text is
chunked, however late a score arrives and however many steps one scoring call covers, the trajectory
is the same: decisions depend only on the step texts and their scores, in step order.
"""

import math
from collections.abc import Callable

from proxy.core.corrections.monitor import CorrectionsMonitor
from proxy.core.drawn import ImitKdMonitor, PrefixMonitor
from proxy.core.lookahead import AT_ONCE, Schedule, ScoringQueue
from proxy.core.params import Params
from proxy.core.rounds import RoundsMonitor
from proxy.core.segmenter import FencedCode, Segmenter, text_after
from proxy.core.skd import SkdMonitor
from proxy.core.solo import SoloMonitor
from proxy.core.stitch import blank_line_after, blank_line_before, cover, stitch
from proxy.core.types import (
    Breached,
    Command,
    Emit,
    Event,
    Finish,
    FinishReason,
    Following,
    Halt,
    Judged,
    Monitor,
    Score,
    Scored,
    ScoringMonitor,
    Step,
    StepScore,
    StepTrace,
    Trajectory,
    Write,
    WriteEnded,
    Wrote,
)
from proxy.core.verdict import bifurcation_of, judge, placed, unscored


def monitor_for(
    params: Params,
    seed: int = 0,
    schedule: Schedule = AT_ONCE,
    has_room: Callable[[], bool] = lambda: True,
) -> Monitor:
    """The state machine of `params.method`; `seed` decides what `imitkd` and `prefix` draw, and
    `schedule` decides when `motab` and `skd` score. `motab` emits a step before its verdict only
    while `has_room` says that the teacher's window will hold that step.
    """
    match params.method:
        case "motab":

            def begin(own: Params, code: FencedCode | None = None) -> ScoringMonitor:
                monitor = MotabMonitor(own, schedule, has_room, code)
                return monitor if own.corrections == 1 else CorrectionsMonitor(monitor, own)

            return begin(params) if params.rounds == 1 else RoundsMonitor(params, begin)
        case "imitkd":
            return ImitKdMonitor(params, seed)
        case "skd":
            return SkdMonitor(params, schedule)
        case "prefix":
            return PrefixMonitor(params, seed)
        case author:
            return SoloMonitor(params, author)


class MotabMonitor:
    """The student writes while the teacher scores; at the breach the teacher corrects."""

    _DRAFT = 0
    _CORRECTION = 1

    def __init__(
        self,
        params: Params,
        schedule: Schedule = AT_ONCE,
        has_room: Callable[[], bool] = lambda: True,
        code: FencedCode | None = None,
    ) -> None:
        """`code` is where the text before stands, None at the start of a text."""
        self._params = params
        self._has_room = has_room
        self._segmenter = Segmenter(
            params.delimiter, params.max_step_tokens, params.max_total_tokens, code
        )
        self._queue = ScoringQueue(params.max_lookahead_tokens, schedule)
        self._steps: list[Step] = []
        self._texts: list[str] = []
        """The steps' texts, which every scoring call names."""
        self._judged: list[StepTrace] = []
        self._steepest, self._steepest_fall = 0, math.inf
        """The step at which the value fell most steeply so far, and delta_k (Eq. 7) there. A search
        at every piece of text would make a long text quadratic."""
        self._next_entropy: float | None = None
        self._draft_end: FinishReason | None = None
        """The reason that the student's text is over; any text that still comes is ignored."""
        self._draft_is_open = True
        """Whether its server has neither sent the end nor been stopped."""
        self._bifurcation: int | None = None
        self._correction: list[str] = []
        self._correction_tokens = 0
        self._emitted_tokens = 0
        """Tokens of the text that was emitted, of both authors."""
        self._final_tokens = 0
        """Tokens of the steps that were emitted whole."""
        self._correction_started = False
        # All steps before this index were emitted, and this many characters of the step there.
        self._emitted_steps = 0
        self._emitted_chars = 0

    def start(self) -> list[Command]:
        return [Write(self._DRAFT, "student", (), self._params.max_total_tokens)]

    def handle(self, event: Event) -> list[Command]:  # noqa: PLR0911 - one for each event
        match event:
            case Wrote(self._DRAFT, pieces) if self._draft_end is None:
                return self._drafted(pieces)
            case WriteEnded(self._DRAFT, reason) if self._draft_end is None:
                self._draft_is_open = False
                self._add(self._segmenter.close())
                self._draft_end = reason
                return self._advance()
            case Scored():
                return self._scored(event)
            case Wrote(self._CORRECTION, pieces):
                self._correction_tokens += len(pieces)
                return self._corrected("".join(pieces))
            case WriteEnded(self._CORRECTION, reason):
                return self._finish(reason)
            case WriteEnded():
                self._draft_is_open = False
                return []
            case Wrote():  # more than was requested, or the rest of a halted draft
                return self._halt_draft()

    def following(self, num_steps: int, num_chars: int) -> Following:
        text = text_after(self._texts, num_steps, self._segmenter, num_chars)
        return Following(text, is_all=self._draft_end is not None)

    def _drafted(self, pieces: tuple[str, ...]) -> list[Command]:
        self._add(self._segmenter.feed_all(pieces))
        halt: list[Command] = []
        if self._segmenter.exhausted:
            self._draft_end = "length"
            # At the total cap the server stops by itself, because no more was requested.
            if self._segmenter.step_was_cut:
                halt = self._halt_draft()
        return halt + self._advance()

    def _add(self, steps: list[Step]) -> None:
        for step in steps:
            self._steps.append(step)
            self._texts.append(step.text)
            self._queue.add(step.num_tokens)

    def _halt_draft(self) -> list[Command]:
        if not self._draft_is_open:
            return []
        self._draft_is_open = False
        return [Halt(self._DRAFT)]

    def _advance(self) -> list[Command]:
        """The commands that the student's text and the verdicts so far allow."""
        commands = self._emit_draft()
        if self._draft_end is None:
            commands += self._queue.gate(self._DRAFT, self._segmenter.open_tokens)
        elif not self._queue.num_steps:
            return commands + self._finish(self._draft_end)
        if num_new := self._queue.send_due(draft_is_over=self._draft_end is not None):
            commands.append(Score(tuple(self._texts), num_new, self._next_entropy is not None))
        return commands

    def _scored(self, event: Scored) -> list[Command]:
        self._queue.answered(len(event.scores), is_full=event.is_full)
        commands: list[Command] = []
        for score in event.scores:
            entropy = score.entropy if score.entropy is not None else self._next_entropy
            self._next_entropy = None
            index = len(self._judged)
            step = judge(
                self._steps[index],
                StepScore(score.value, entropy, score.num_tokens),
                self._judged[-1] if self._judged else None,
                self._params,
                index,
            )
            self._judged.append(step)
            # All steps before a breach are safe, so each step may follow a bifurcation.
            if step.td_error is not None and step.td_error < self._steepest_fall:
                self._steepest, self._steepest_fall = index, step.td_error
            self._queue.judged(step.student_tokens)
            commands.append(Judged(index, step))
            if not step.safe:
                return commands + self._breach()
        if event.is_full:
            return commands + self._end_unjudged()
        self._next_entropy = event.next_entropy
        return commands + self._advance()

    def _end_unjudged(self) -> list[Command]:
        """End with what was judged, because the teacher's window is full. A step stays without a
        verdict if some of it may have been emitted.
        """
        commands = self._halt_draft()
        self._draft_end = "length"
        self._segmenter.close()
        num_kept = len(self._judged)
        has_begun = self._emitted_steps > num_kept or (
            self._emitted_steps == num_kept and self._emitted_chars > 0
        )
        if has_begun or (self._params.stitch == "flawed" and self._has_room()):
            self._judged.append(unscored(self._steps[num_kept], "student"))
            num_kept += 1
        del self._steps[num_kept:]
        del self._texts[num_kept:]
        return [*commands, *self._emit_draft(), *self._finish("length")]

    def _breach(self) -> list[Command]:
        """The last judged step is unsafe: stop the student, go back to t*, ask the teacher."""
        commands = self._halt_draft()
        self._draft_end = self._draft_end or "stop"
        breach = len(self._judged) - 1
        self._bifurcation = bifurcation_of(self._judged, self._params)
        safe = self._steps[: self._bifurcation]
        budget = self._params.max_total_tokens - sum(step.num_tokens for step in safe)
        texts = tuple(self._texts[: self._bifurcation])
        commands += [
            Breached(breach, self._bifurcation),
            Write(self._CORRECTION, "teacher", texts, budget),
        ]
        del self._steps[breach + 1 :]
        del self._texts[breach + 1 :]
        return commands + self._emit_draft()

    def _corrected(self, text: str) -> list[Command]:
        self._correction.append(text)
        if self._params.stitch == "clean":
            return [self._emit(text)] if text else []
        return self._emit_correction()

    def _emit_correction(self, *, ended: bool = False) -> list[Command]:
        """Release correction text; its leading newlines wait, because they are part of the blank
        line between it and the revise token.
        """
        if self._correction_started:
            return [self._emit(self._correction[-1])] if self._correction[-1] and not ended else []
        if not ended and not self._correction[-1].strip("\n"):
            return []
        so_far = "".join(self._correction)
        self._correction_started = True
        return [self._emit(blank_line_before(so_far) + so_far)]

    def _emit(self, text: str, num_open: int = 0) -> Emit:
        """Emit the text of all final steps, of `num_open` tokens after them, and of the
        correction.
        """
        num_so_far = self._final_tokens + num_open + self._correction_tokens
        num_tokens, self._emitted_tokens = num_so_far - self._emitted_tokens, num_so_far
        return Emit(text, num_tokens)

    def _emit_draft(self) -> list[Command]:
        """Release the student's text as far as no later verdict can take it back."""
        num_final, open_is_final = self._final_steps()
        text = ""
        if num_final > self._emitted_steps:
            final = self._texts[self._emitted_steps : num_final]
            text = "".join(final)[self._emitted_chars :]
            self._final_tokens += sum(
                step.num_tokens for step in self._steps[self._emitted_steps : num_final]
            )
            self._emitted_steps = num_final
            self._emitted_chars = 0
        if open_is_final:
            text += self._segmenter.open_text(self._emitted_chars)
            self._emitted_chars = self._segmenter.open_length
        if self._bifurcation is not None and self._params.stitch == "flawed":
            text += blank_line_after("".join(self._texts)) + self._params.revise
        num_open = self._segmenter.open_tokens if open_is_final else 0
        return [self._emit(text, num_open)] if text else []

    def _final_steps(self) -> tuple[int, bool]:
        """The number of steps sure to be in the output, and whether the open text is sure, too."""
        num_judged = len(self._judged)
        if self._params.stitch == "flawed":
            # A step is in the output if all steps before it are safe, even if it is the breach.
            if self._bifurcation is not None or not self._has_room():
                return num_judged, False
            return min(num_judged + 1, len(self._steps)), num_judged == len(self._steps)
        if self._bifurcation is not None:
            return self._bifurcation, False
        if self._draft_end is not None and num_judged == len(self._steps):
            return num_judged, False
        if self._params.backtrack == "none" or num_judged < 2:
            return num_judged, False
        # t* can only be the steepest fall so far or a step still to come.
        return self._steepest, False

    def _finish(self, reason: FinishReason) -> list[Command]:
        params, cut = self._params, self._bifurcation
        texts = self._texts
        if cut is None:
            output = cover(("student", "".join(texts)))
        else:
            correction = "".join(self._correction)
            output = stitch("".join(texts[:cut]), "".join(texts[cut:]), correction, params)
        num_kept = len(texts) if cut is None or params.stitch == "flawed" else cut
        trajectory = Trajectory(
            text=output.text,
            spans=output.spans,
            steps=placed(self._judged, range(num_kept, len(self._judged))),
            breach=None if cut is None else len(self._judged) - 1,
            bifurcation=cut,
            finish_reason=reason,
            student_tokens=sum(step.num_tokens for step in self._steps[:num_kept]),
            teacher_tokens=self._correction_tokens,
        )
        commands: list[Command] = []
        if cut is not None and params.stitch == "flawed":
            commands += self._emit_correction(ended=True)
        return [*commands, Finish(trajectory)]
