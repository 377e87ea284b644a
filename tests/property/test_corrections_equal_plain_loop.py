import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.monitor import monitor_for
from proxy.core.types import (
    ChoosingMonitor,
    Command,
    FoundAnswer,
    Keep,
    ReadAnswers,
    Trajectory,
    Write,
)
from tests.property.corrected import Correction, Kept, keep
from tests.property.pieces import PIECES
from tests.property.schedules import any_limit, any_schedule
from tests.property.sequential import Result, run
from tests.property.test_monitor_equals_sequential import (
    Case,
    World,
    cases,
    params_of,
)
from tests.support.cases import num_cases

ANSWERS = [None, "1", "one", "2", "two", "3"]
MEANINGS = {"1": 1, "one": 1, "2": 2, "two": 2, "3": 3}


@dataclass
class Reader:
    """A rule by which answers are read: a function of the whole text, drawn by a checksum."""

    seed: int
    reference: str | None

    def answer(self, text: str) -> str | None:
        return ANSWERS[zlib.crc32(f"{self.seed}|{text}".encode()) % len(ANSWERS)]

    def are_equal(self, one: str, other: str) -> bool:
        return MEANINGS[one] == MEANINGS[other]

    def read(self, text: str) -> FoundAnswer:
        found = self.answer(text)
        if found is None:
            return FoundAnswer(None, None if self.reference is None else False)
        right = None if self.reference is None else self.are_equal(found, self.reference)
        return FoundAnswer(found, right, MEANINGS[found])


@st.composite
def several(draw: st.DrawFn) -> list[Correction]:
    pieces = st.lists(st.sampled_from([*PIECES, "\n", " "]), max_size=5)
    ends = st.sampled_from(["stop", "stop", "length", "lost"])
    found = draw(
        st.lists(st.builds(Correction, pieces, ends), min_size=2, max_size=6).filter(
            lambda all_: any(one.end != "lost" for one in all_)
        )
    )
    # Some are the same text, as of a teacher that is sure.
    return [*found, found[0]] if draw(st.booleans()) else found


class Corrected(World):
    """Obeys a monitor that has several corrections written, too."""

    def __init__(
        self,
        case: Case,
        corrections: list[Correction],
        reader: Reader,
        choose: Callable[[int], int],
    ) -> None:
        super().__init__(case, choose)
        params = params_of(case.setting, any_limit(choose))
        self.monitor = monitor_for(
            replace(params, corrections=len(corrections)), schedule=any_schedule(choose)
        )
        assert isinstance(self.monitor, ChoosingMonitor)
        self.choosing = self.monitor
        self.reader = reader
        self.unsent |= {index: list(one.tokens) for index, one in enumerate(corrections, 1)}
        self.ends |= {index: one.end for index, one in enumerate(corrections, 1)}
        self.asked: list[Write] = []
        self.reading: ReadAnswers | None = None
        self.kept: int | None = None
        self.before = ""
        """The output that was sent when one was kept."""

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Write(author="teacher"):
                    self.asked.append(command)
                case ReadAnswers():
                    assert self.reading is None
                    self.reading = command
                case Keep(write_id):
                    self.kept, self.before = write_id, self.emitted
        super().obey(commands)

    def end(self, write_id: int) -> None:
        if self.ends[write_id] == "lost":
            self.obey(self.choosing.lost(write_id))
        else:
            super().end(write_id)

    def move(self) -> None:
        if self.reading is not None and (self.writing <= {0} - self.halted or self.choose(2)):
            reading, self.reading = self.reading, None
            self.obey(self.choosing.read(tuple(map(self.reader.read, reading.texts))))
        elif self.writing or self.scoring is not None:
            super().move()


def plain(case: Case, corrections: list[Correction], reader: Reader) -> tuple[Result, Kept | None]:
    """The whole of it as plain loops."""

    def run_with(one: Correction) -> Result:
        draft = (case.tokens, case.student_end)
        teacher = (case.teacher.value, case.teacher.entropy)
        return run(case.setting, *draft, *teacher, one.text, one.end)

    first = run_with(corrections[0])
    if first.breach is None:
        return first, None
    kept = keep(
        corrections,
        lambda one: reader.answer(run_with(one).text),
        reader.are_equal,
        reader.reference,
    )
    return run_with(corrections[kept.index]), kept


@settings(max_examples=num_cases(1_000))
@given(
    case=cases(),
    corrections=several(),
    reader=st.builds(Reader, st.integers(0, 999), st.sampled_from([None, "1", "two", "3"])),
    timing=st.randoms(use_true_random=False),
)
def test_any_timing_of_several_corrections_keeps_what_the_plain_loop_keeps(
    case: Case, corrections: list[Correction], reader: Reader, timing: object
) -> None:
    world = Corrected(case, corrections, reader, timing.randrange)  # type: ignore[attr-defined]
    ours: Trajectory = world.run()
    expected, kept = plain(case, corrections, reader)

    assert ours.text == expected.text == world.emitted
    assert [(span.role, span.start, span.end) for span in ours.spans] == expected.spans
    assert (ours.breach, ours.bifurcation) == (expected.breach, expected.bifurcation)
    assert ours.finish_reason == expected.finish_reason
    if kept is None:
        assert ours.chosen is None
        assert world.asked == []
        return
    assert ours.chosen is not None
    found = ours.chosen
    assert (found.index, found.by) == (kept.index, kept.by)
    assert (list(found.answers), list(found.lost)) == (kept.answers, kept.lost)
    assert world.kept == 1 + kept.index
    # Nothing of a correction is sent before one is kept.
    sent_then = ours.text.removeprefix(world.before)
    assert sent_then.lstrip("\n") == corrections[kept.index].text.lstrip("\n")
    assert ours.teacher_tokens == len(corrections[kept.index].tokens)
    assert [write.write_id for write in world.asked] == list(range(1, 1 + len(corrections)))
    for write in world.asked:
        assert write.is_candidate
        assert "".join(write.steps) == expected.correction_context
        assert write.max_tokens == expected.correction_budget
