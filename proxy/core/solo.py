"""Runs the methods in which one author writes everything, as a state machine."""

from proxy.core.params import Params
from proxy.core.segmenter import Segmenter
from proxy.core.stitch import cover
from proxy.core.types import (
    Author,
    Command,
    Emit,
    Event,
    Finish,
    FinishReason,
    Halt,
    Scored,
    Step,
    Trajectory,
    Write,
    WriteEnded,
    Wrote,
)
from proxy.core.verdict import placed, unscored


class SoloMonitor:
    """Keeps the author's text unchanged: SFT data by the teacher, RFT data by the student."""

    _WRITE = 0

    def __init__(self, params: Params, author: Author) -> None:
        self._params = params
        self._author: Author = author
        # A step cap bounds the text that waits for a score; here nothing is scored.
        self._segmenter = Segmenter(
            params.delimiter, params.max_total_tokens, params.max_total_tokens
        )
        self._steps: list[Step] = []
        self._num_unreported = 0
        """Tokens whose text, if they have any, is not emitted yet."""
        self._ended = False

    def start(self) -> list[Command]:
        return [Write(self._WRITE, self._author, (), self._params.max_total_tokens)]

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Wrote(self._WRITE, pieces) if not self._ended:
                return self._wrote(pieces)
            case WriteEnded(self._WRITE, reason) if not self._ended:
                self._steps.extend(self._segmenter.close())
                return [self._finish(reason)]
            case Scored():
                raise ValueError(f"method {self._params.method} asks for no scores")
            case Wrote():  # more than was requested
                return [Halt(event.write_id)]
            case _:
                return []

    def _wrote(self, pieces: tuple[str, ...]) -> list[Command]:
        segmenter = self._segmenter
        num_before = segmenter.total_tokens
        self._steps += segmenter.feed_all(pieces)
        if segmenter.exhausted:
            num_taken = segmenter.total_tokens - num_before
            return [*self._emit(pieces[:num_taken]), self._finish("length")]
        return self._emit(pieces)

    def _emit(self, pieces: tuple[str, ...]) -> list[Command]:
        self._num_unreported += len(pieces)
        text = "".join(pieces)
        if not text:
            return []
        num_tokens, self._num_unreported = self._num_unreported, 0
        return [Emit(text, num_tokens)]

    def _finish(self, reason: FinishReason) -> Finish:
        self._ended = True
        traces = [unscored(step, self._author) for step in self._steps]
        output = cover((self._author, "".join(step.text for step in self._steps)))
        return Finish(
            Trajectory(
                text=output.text,
                spans=output.spans,
                steps=placed(traces),
                breach=None,
                bifurcation=None,
                finish_reason=reason,
                student_tokens=sum(trace.student_tokens for trace in traces),
                teacher_tokens=sum(trace.teacher_tokens for trace in traces),
            )
        )
