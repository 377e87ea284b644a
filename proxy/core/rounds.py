"""Runs method `motab` in several rounds: after a correction the student takes the pen back."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from proxy.core.params import Params
from proxy.core.relay import Stretch
from proxy.core.segmenter import FencedCode, code_before
from proxy.core.types import (
    Breached,
    ChoosingMonitor,
    Command,
    Event,
    Finish,
    Following,
    FoundAnswer,
    Halt,
    Judged,
    Keep,
    Pause,
    ReadAnswers,
    Resume,
    Score,
    ScoringMonitor,
    Span,
    StepTrace,
    Trajectory,
    Write,
    WriteEnded,
    Wrote,
)


class RoundsMonitor:
    """Joins rounds. Each is a trajectory of `motab` that continues the clean path: the question,
    and the safe steps and corrections of the rounds before.

    The correction of a round that is not the last is cut into steps as any other text, and the next
    round begins after `correction_steps` of them. Where the teacher ends before, the trajectory
    ends there. The rounds know nothing of each other: their writes and steps are counted from 0,
    and here they get the numbers that they have in the whole.
    """

    def __init__(
        self, params: Params, begin: Callable[[Params, FencedCode | None], ScoringMonitor]
    ) -> None:
        """`begin` makes a round's own monitor, for its budget, after a text that stands there."""
        self._params = params
        self._begin_round = begin
        self._round: ScoringMonitor
        self._ended: list[Trajectory] = []
        """The rounds before."""
        self._path: list[str] = []
        """The steps that the models read before the round's own."""
        self._code = code_before(params.delimiter)
        """Where the text of these steps stands, if no step may end within code."""
        self._budget = params.max_total_tokens
        """Tokens that are left after these steps."""
        self._num_steps = 0
        """The judged steps of the rounds before."""
        self._num_writes = self._first_write = 0
        self._correction: Stretch | None = None
        """The correction of the round, if it is to be cut."""
        self._correction_is_open = False

    def start(self) -> list[Command]:
        return self._begin()

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Wrote(write_id) | WriteEnded(write_id) if write_id < self._first_write:
                return []  # the rest of a write that was halted
            case Wrote(write_id, pieces, logprobs):
                if self._correction is not None and write_id == self._correction.write_id:
                    if self._correction.is_over:  # more than was requested
                        return self._halt_correction(self._correction)
                    return self._corrected(self._correction, pieces)
                event = Wrote(write_id - self._first_write, pieces, logprobs)
            case WriteEnded(write_id, reason):
                if self._correction is not None and write_id == self._correction.write_id:
                    self._correction_is_open = False
                    if self._correction.is_over:
                        return []
                event = WriteEnded(write_id - self._first_write, reason)
        return self._passed_on(self._round.handle(event))

    def following(self, num_steps: int, num_chars: int) -> Following:
        return self._round.following(num_steps - len(self._path), num_chars)

    def lost(self, write_id: int) -> list[Command]:
        """See `ChoosingMonitor`."""
        return self._passed_on(self._choosing.lost(write_id - self._first_write))

    def read(self, answers: tuple[FoundAnswer, ...]) -> list[Command]:
        """See `ChoosingMonitor`."""
        return self._passed_on(self._choosing.read(answers))

    @property
    def _choosing(self) -> ChoosingMonitor:
        if not isinstance(self._round, ChoosingMonitor):
            raise ValueError("this round has no corrections to choose from")  # noqa: TRY004
        return self._round

    @property
    def _is_last(self) -> bool:
        """Return whether this is the last round, in which the teacher writes to its end."""
        return len(self._ended) + 1 == self._params.rounds

    def _begin(self) -> list[Command]:
        self._first_write = self._num_writes
        self._correction = None
        num_corrections = self._params.corrections if self._is_last else 1
        own = replace(self._params, max_total_tokens=self._budget, corrections=num_corrections)
        self._round = self._begin_round(own, self._code)
        return self._passed_on(self._round.start())

    def _corrected(self, correction: Stretch, pieces: tuple[str, ...]) -> list[Command]:
        """Take more of the correction, up to its last step."""
        kept = self._kept(correction, pieces)
        self._budget -= len(kept)
        if self._code is not None:
            self._code.take("".join(kept))
        write_id = correction.write_id - self._first_write
        commands = self._passed_on(self._round.handle(Wrote(write_id, tuple(kept))))
        if not correction.is_over:
            return commands
        if correction.is_cut or not correction.stops_by_itself:
            commands += self._halt_correction(correction)
        has_more = correction.is_cut and self._budget > 0
        end = WriteEnded(write_id, "stop" if has_more else "length")
        return commands + self._passed_on(self._round.handle(end))

    def _kept(self, correction: Stretch, pieces: tuple[str, ...]) -> list[str]:
        """Return the pieces that are part of the correction, the last one up to its cut."""
        kept: list[str] = []
        for piece in pieces:
            if correction.is_over:
                break
            taken = correction.take((piece,))
            kept.append(taken.text)
            self._path += [step.text for step in taken.steps]
        return kept

    def _halt_correction(self, correction: Stretch) -> list[Command]:
        if not self._correction_is_open:
            return []
        self._correction_is_open = False
        return [Halt(correction.write_id)]

    def _passed_on(self, commands: Iterable[Command]) -> list[Command]:
        """Give the numbers of the whole to what a round commands, and begin the next at its end."""
        passed: list[Command] = []
        for command in commands:
            match command:
                case Write():
                    passed.append(self._written(command))
                case ReadAnswers(texts):
                    before = "".join(one.text for one in self._ended)
                    passed.append(ReadAnswers(tuple(before + text for text in texts)))
                case Halt(write_id) | Pause(write_id) | Resume(write_id) | Keep(write_id):
                    passed.append(replace(command, write_id=self._first_write + write_id))
                case Score(steps):
                    passed.append(replace(command, steps=(*self._path, *steps)))
                case Judged(index):
                    passed.append(replace(command, index=self._num_steps + index))
                case Breached():
                    passed.append(_later(command, self._num_steps))
                case Finish(trajectory):
                    passed += self._finished(trajectory)
                case _:
                    passed.append(command)
        return passed

    def _written(self, command: Write) -> Write:
        write_id = self._first_write + command.write_id
        self._num_writes = write_id + 1
        write = replace(command, write_id=write_id, steps=(*self._path, *command.steps))
        if command.author == "teacher" and not self._is_last:
            self._path += command.steps
            self._budget = command.max_tokens
            if self._code is not None:
                self._code.take("".join(command.steps))
            most = self._params.correction_steps
            self._correction = Stretch(write, self._params, lambda num: num == most, self._code)
            self._correction_is_open = True
        return write

    def _finished(self, trajectory: Trajectory) -> list[Command]:
        self._ended.append(trajectory)
        self._num_steps += len(trajectory.steps)
        if self._correction is not None and self._correction.is_cut and self._budget:
            return self._begin()
        return [Finish(_joined(self._ended))]


def _joined(rounds: Sequence[Trajectory]) -> Trajectory:
    """Join rounds that follow each other. Every round but the last has a breach."""
    if len(rounds) == 1:
        return rounds[0]
    spans: list[Span] = []
    steps: list[StepTrace] = []
    breaches: list[Breached] = []
    num_chars = 0
    for one in rounds:
        if one.breach is not None and one.bifurcation is not None:
            breaches.append(_later(Breached(one.breach, one.bifurcation), len(steps)))
        spans += [Span(s.role, s.start + num_chars, s.end + num_chars) for s in one.spans]
        steps += [_moved(step, num_chars) for step in one.steps]
        num_chars += len(one.text)
    return Trajectory(
        text="".join(one.text for one in rounds),
        spans=tuple(spans),
        steps=tuple(steps),
        breach=breaches[0].breach,
        bifurcation=breaches[0].bifurcation,
        finish_reason=rounds[-1].finish_reason,
        student_tokens=sum(one.student_tokens for one in rounds),
        teacher_tokens=sum(one.teacher_tokens for one in rounds),
        breaches=tuple(breaches) if len(breaches) > 1 else (),
        chosen=rounds[-1].chosen,
    )


def _later(breached: Breached, num_steps: int) -> Breached:
    return Breached(breached.breach + num_steps, breached.bifurcation + num_steps)


def _moved(step: StepTrace, num_chars: int) -> StepTrace:
    if step.start is None or step.end is None:
        return step
    return replace(step, start=step.start + num_chars, end=step.end + num_chars)
