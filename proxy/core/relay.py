"""Runs the methods in which student and teacher write one text, stretch by stretch.

A stretch is the text that one author writes in one stream: as many steps as the method allows. The
step that ends a stretch ends with the delimiter, and any text that its author wrote beyond it is
discarded; a token that the cut goes through counts for that step, because part of its text is kept.
So every stretch costs at least one token, and the trajectory ends.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from proxy.core.params import Params
from proxy.core.segmenter import FencedCode, Segmenter, code_before, text_after
from proxy.core.stitch import cover
from proxy.core.types import (
    Author,
    Command,
    Emit,
    Finish,
    FinishReason,
    Halt,
    Step,
    StepTrace,
    Trajectory,
    Write,
    Wrote,
)
from proxy.core.verdict import placed, unscored


@dataclass(frozen=True, slots=True)
class Taken:
    """The completed steps, and the new text of the stretch."""

    steps: tuple[Step, ...]
    text: str


class Stretch:
    """One author's text, cut into steps up to its last one."""

    def __init__(
        self,
        write: Write,
        params: Params,
        ends_after: Callable[[int], bool],
        code: FencedCode | None,
    ) -> None:
        """`ends_after(k)` says whether the stretch's k-th step, counted from 1, is its last, and
        `code` is where the text before stands.
        """
        self.write_id = write.write_id
        self.author: Author = write.author
        self.is_cut = False
        """Its last step was completed; any further text of its author is not part of it."""
        self.num_steps = 0
        caps = params.max_step_tokens, write.max_tokens
        self._segmenter = Segmenter(params.delimiter, *caps, code)
        self._ends_after = ends_after

    @property
    def is_exhausted(self) -> bool:
        """Return whether a token cap was reached, inside a step or right after the last step."""
        return self._segmenter.exhausted

    @property
    def is_over(self) -> bool:
        """Return whether no more text is taken."""
        return self.is_cut or self.is_exhausted

    @property
    def open_tokens(self) -> int:
        """The tokens of the step that is being written."""
        return self._segmenter.open_tokens

    def after(self, steps: Sequence[str], num_steps: int, num_chars: int) -> str:
        """See `text_after`; `steps` are all steps up to the open text."""
        return text_after(steps, num_steps, self._segmenter, num_chars)

    @property
    def stops_by_itself(self) -> bool:
        """Return whether its author has written all that was requested."""
        return self.is_exhausted and not self._segmenter.step_was_cut

    def take(self, pieces: Iterable[str]) -> Taken:
        """Take more of the author's text, one piece per token."""
        steps: list[Step] = []
        text = ""
        for piece in pieces:
            if self.is_over:
                break
            num_taken = self._segmenter.open_length
            kept = list(self._kept(self._segmenter.feed(piece)))
            if kept:
                text += "".join(step.text for step in kept)[num_taken:]
                num_taken = 0
            if not self.is_cut:
                text += self._segmenter.open_text(num_taken)
            steps += kept
        return Taken(tuple(steps), text)

    def _kept(self, steps: list[Step]) -> Iterator[Step]:
        for position, step in enumerate(steps, start=1):
            self.num_steps += 1
            is_ended = position < len(steps) or not self._segmenter.last_is_open
            if is_ended and self._ends_after(self.num_steps):
                self.is_cut = True
                goes_on = position < len(steps) or self._segmenter.open_length > 0
                yield Step(step.text, step.num_tokens + goes_on)
                return
            yield step

    def close(self) -> list[Step]:
        """Return the rest of the text as the last step, because the author has ended."""
        return self._segmenter.close()


class Relay:
    """A text that passes from author to author; methods decide who writes next, and what is kept.

    Text that still comes of a halted write is ignored, even an end right after the delimiter,
    because its amount depends on timing.
    """

    def __init__(self, params: Params) -> None:
        self._params = params
        self._steps: list[StepTrace] = []
        """All steps with a verdict, including steps that are not kept."""
        self._kept: list[str] = []
        self._code = code_before(params.delimiter)
        """Where the text of these steps stands, if no step may end within code."""
        self._budget = params.max_total_tokens
        """Tokens that are left; each step is counted in its author's tokens."""
        self._stretch: Stretch
        self._num_emitted = 0
        """Tokens of the text that was emitted."""
        self._num_writes = 0
        self._open: set[int] = set()
        """Writes whose servers have neither sent the end nor been stopped."""
        self._is_finished = False

    def _pass_on(self) -> list[Command]:
        """Begin the next stretch: the last one was cut, and there is budget left."""
        raise NotImplementedError

    def _begin(
        self, author: Author, ends_after: Callable[[int], bool], *, logprobs: bool = False
    ) -> Write:
        write = Write(self._num_writes, author, tuple(self._kept), self._budget, logprobs=logprobs)
        self._num_writes += 1
        self._open.add(write.write_id)
        self._stretch = Stretch(write, self._params, ends_after, self._code)
        return write

    def _is_current(self, write_id: int) -> bool:
        over = self._is_finished or self._stretch.is_over
        return write_id == self._stretch.write_id and not over

    def _halt(self, write_id: int) -> list[Command]:
        """Halt a write, once, and only if its server has not ended it."""
        if write_id not in self._open:
            return []
        self._open.remove(write_id)
        return [Halt(write_id)]

    def _keep(self, step: StepTrace) -> None:
        self._steps.append(step)
        self._kept.append(step.text)
        if self._code is not None:
            self._code.take(step.text)
        by_student = step.author == "student"
        self._budget -= step.student_tokens if by_student else step.teacher_tokens

    def _emit(self, text: str, num_open: int = 0) -> Emit:
        """Emit the text of all steps kept, and of `num_open` tokens after them."""
        num_so_far = self._params.max_total_tokens - self._budget + num_open
        num_tokens, self._num_emitted = num_so_far - self._num_emitted, num_so_far
        return Emit(text, num_tokens)

    def _wrote(self, event: Wrote) -> list[Command]:
        """Take more of a stretch that is kept as it is written."""
        stretch = self._stretch
        taken = stretch.take(event.pieces)
        for step in taken.steps:
            self._keep(unscored(step, stretch.author))
        num_open = 0 if stretch.is_cut else stretch.open_tokens
        commands: list[Command] = [self._emit(taken.text, num_open)] if taken.text else []
        if stretch.is_cut:
            commands += self._halt(stretch.write_id)
            return commands + (self._pass_on() if self._budget else [self._finish("length")])
        if stretch.is_exhausted:
            if not stretch.stops_by_itself:
                commands += self._halt(stretch.write_id)
            commands.append(self._finish("length"))
        return commands

    def _ended(self, reason: FinishReason) -> list[Command]:
        """End the trajectory, because the author of such a stretch has ended."""
        for step in self._stretch.close():
            self._keep(unscored(step, self._stretch.author))
        return [self._finish(reason)]

    def _finish(self, reason: FinishReason) -> Finish:
        self._is_finished = True
        rejected = {index for index, step in enumerate(self._steps) if step.safe is False}
        steps = placed(self._steps, rejected)
        kept = [step for step in steps if step.start is not None]
        output = cover(*_by_author(kept))
        return Finish(
            Trajectory(
                text=output.text,
                spans=output.spans,
                steps=steps,
                breach=None,
                bifurcation=None,
                finish_reason=reason,
                student_tokens=sum(s.student_tokens for s in kept if s.author == "student"),
                teacher_tokens=sum(s.teacher_tokens for s in kept if s.author == "teacher"),
            )
        )


def _by_author(steps: Iterable[StepTrace]) -> Iterator[tuple[Author, str]]:
    """The text of each run of steps by one author."""
    author: Author | None = None
    text = ""
    for step in steps:
        if author is not None and step.author != author:
            yield author, text
            text = ""
        author = step.author
        text += step.text
    if author is not None:
        yield author, text
