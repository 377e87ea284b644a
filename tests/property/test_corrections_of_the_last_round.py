"""Several corrections are those of the last round, and are chosen by the whole text."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.types import ChoosingMonitor, Command, Keep, ReadAnswers, Write
from tests.property.corrected import Correction, Kept, keep
from tests.property.relayed import Rounds, Text, in_rounds
from tests.property.test_corrections_equal_plain_loop import Reader
from tests.property.test_relay_equals_plain_loop import timings
from tests.property.test_rounds_equal_plain_loop import Case, EntropyWorld, some_cases
from tests.support.cases import num_cases


def candidate(case: Case, index: int, context: str) -> Text:
    return replace(case.models, seed=case.models.seed + index).writes("teacher", context)


class LastRoundWorld(EntropyWorld):
    """Obeys a monitor that has several corrections written in its last round."""

    def __init__(self, case: Case, timing: Any, corrections: int, reader: Reader) -> None:
        super().__init__(case, timing, corrections)
        assert isinstance(self.monitor, ChoosingMonitor)
        self.reader = reader
        self.candidates: list[Write] = []
        self.reading: ReadAnswers | None = None
        self.kept: int | None = None

    def obey(self, commands: list[Command]) -> None:
        others: list[Command] = []
        for command in commands:
            match command:
                case Write(write_id=write_id, steps=steps) if command.is_candidate:
                    index = len(self.candidates)
                    self.candidates.append(command)
                    self.writes[write_id] = command
                    self.unsent[write_id] = candidate(self.case, index, "".join(steps))
                    self.num_sent[write_id] = 0
                case ReadAnswers():
                    self.reading = command
                case Keep(write_id):
                    self.kept = write_id
                case _:
                    others.append(command)
        super().obey(others)

    def move(self) -> None:
        live = self.writes.keys() - self.ended
        if self.reading is not None and (not live or self.choose(2)):
            reading, self.reading = self.reading, None
            self.obey(self.monitor.read(tuple(map(self.reader.read, reading.texts))))
        elif live or self.scoring is not None:
            super().move()


def plain(case: Case, num: int, reader: Reader) -> tuple[Rounds, Kept | None]:
    """The plain loops, with each of the corrections in the last round."""

    def with_candidate(index: int) -> Rounds:
        num_asked = 0

        def writes(author: str, context: str) -> Text:
            nonlocal num_asked
            num_asked += author == "teacher"
            is_last = author == "teacher" and num_asked == case.num_rounds
            return (
                candidate(case, index, context) if is_last else case.models.writes(author, context)
            )

        how = (case.num_rounds, case.correction_steps)
        return in_rounds(case.setting, writes, case.models.value, case.entropy, *how)

    found = [with_candidate(index) for index in range(num)]
    if len(found[0].breaches) < case.num_rounds:
        return found[0], None
    author, context, _ = found[0].asked[-1]
    assert author == "teacher"
    texts = [candidate(case, index, context) for index in range(num)]
    corrections = [Correction(text.tokens, text.end) for text in texts]
    answers = {
        id(one): reader.answer(whole.text) for one, whole in zip(corrections, found, strict=True)
    }
    kept = keep(corrections, lambda one: answers[id(one)], reader.are_equal, reader.reference)
    return found[kept.index], kept


@settings(max_examples=num_cases(1_000))
@given(
    some_cases,
    st.integers(2, 4),
    st.builds(Reader, st.integers(0, 999), st.sampled_from([None, "1", "two", "3"])),
    timings,
)
def test_any_timing_keeps_the_plain_loops_correction_in_the_last_round(
    case: Case, num: int, reader: Reader, timing: object
) -> None:
    world = LastRoundWorld(case, timing, num, reader)
    ours = world.run()
    expected, kept = plain(case, num, reader)
    assert ours.text == expected.text == world.emitted
    assert [(s.role, s.start, s.end) for s in ours.spans] == expected.spans
    assert ours.finish_reason == expected.end
    assert world.breached == expected.breaches
    if kept is None:
        assert ours.chosen is None
        assert world.candidates == []
        return
    assert ours.chosen is not None
    assert (ours.chosen.index, ours.chosen.by) == (kept.index, kept.by)
    assert list(ours.chosen.answers) == kept.answers
    assert world.kept == world.candidates[kept.index].write_id
    author, context, budget = expected.asked[-1]
    assert {(w.author, "".join(w.steps), w.max_tokens) for w in world.candidates} == {
        (author, context, budget)
    }
