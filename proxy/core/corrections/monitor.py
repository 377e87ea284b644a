"""Asks for several corrections where the monitor inside asks for one, and gives it the one kept."""

from dataclasses import replace

from proxy.core.corrections.choice import Correction, choose
from proxy.core.params import Params
from proxy.core.stitch import blank_line_before
from proxy.core.types import (
    Chosen,
    Command,
    Emit,
    Event,
    Finish,
    Following,
    FoundAnswer,
    Keep,
    ReadAnswers,
    ScoringMonitor,
    Write,
    WriteEnded,
    Wrote,
)


class CorrectionsMonitor:
    """The teacher writes `params.corrections` corrections at the breach, all from the same text.

    When all have ended, their answers are read, and `choose` keeps one. The monitor inside gets it
    as if it had been the only one, so nothing of a correction is emitted before.
    """

    def __init__(self, motab: ScoringMonitor, params: Params) -> None:
        self._motab = motab
        self._params = params
        self._emitted: list[str] = []
        """The output before the correction."""
        self._write: Write | None = None
        """The write that the candidates stand for."""
        self._candidates: dict[int, Correction] = {}
        """By their write's id."""
        self._chosen: Chosen | None = None

    def start(self) -> list[Command]:
        return self._obeyed(self._motab.start())

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Wrote(write_id, pieces) if write_id in self._candidates:
                self._candidates[write_id].pieces += pieces
                return []
            case WriteEnded(write_id, reason) if write_id in self._candidates:
                self._candidates[write_id].end = reason
                return self._read_answers()
            case _:
                return self._obeyed(self._motab.handle(event))

    def following(self, num_steps: int, num_chars: int) -> Following:
        """See `ScoringMonitor`."""
        return self._motab.following(num_steps, num_chars)

    def lost(self, write_id: int) -> list[Command]:
        """See `ChoosingMonitor`."""
        candidate = self._candidates.get(write_id)
        if candidate is None or candidate.is_over:
            return []
        candidate.is_lost = True
        return self._read_answers()

    def read(self, answers: tuple[FoundAnswer, ...]) -> list[Command]:
        """See `ChoosingMonitor`."""
        if self._write is None:
            raise ValueError("no correction was asked for")
        candidates = list(self._candidates.values())
        kept = [index for index, one in enumerate(candidates) if not one.is_lost]
        self._chosen = choose(candidates, dict(zip(kept, answers, strict=True)))
        write_id, one = self._write.write_id, candidates[self._chosen.index]
        if one.end is None:
            raise ValueError(f"correction {self._chosen.index} has no end")
        self._candidates = {}
        commands: list[Command] = [Keep(write_id + self._chosen.index, self._chosen)]
        if one.pieces:
            commands += self._motab.handle(Wrote(write_id, tuple(one.pieces)))
        return self._obeyed([*commands, *self._motab.handle(WriteEnded(write_id, one.end))])

    def _obeyed(self, commands: list[Command]) -> list[Command]:
        """The commands of the monitor inside, with several corrections for its one."""
        obeyed: list[Command] = []
        for command in commands:
            match command:
                case Write(author="teacher"):
                    obeyed += self._writes(command)
                case Emit(text):
                    self._emitted.append(text)
                    obeyed.append(command)
                case Finish(trajectory):
                    obeyed.append(Finish(replace(trajectory, chosen=self._chosen)))
                case _:
                    obeyed.append(command)
        return obeyed

    def _writes(self, command: Write) -> list[Command]:
        self._write = command
        first = command.write_id
        ids = range(first, first + self._params.corrections)
        self._candidates = {write_id: Correction() for write_id in ids}
        return [replace(command, write_id=write_id, is_candidate=True) for write_id in ids]

    def _read_answers(self) -> list[Command]:
        candidates = self._candidates.values()
        if not all(one.is_over for one in candidates):
            return []
        before = "".join(self._emitted)
        texts = [before + self._joined(one.text) for one in candidates if not one.is_lost]
        return [ReadAnswers(tuple(texts))]

    def _joined(self, correction: str) -> str:
        """The output from the correction on, as it is stitched."""
        if self._params.stitch == "clean":
            return correction
        return blank_line_before(correction) + correction
