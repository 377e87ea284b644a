"""Records with no breach, one and several: what they say, what is learned, what is refused."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from synth_client.training_data.masks import LossSpan, Mask, loss_spans
from tests.support.records import FIELDS, breached, left_out, record_of, several, unbroken
from trajectory_records.record import Record, RecordError

SHAPES = ((2, 2), (0, 1), (1, 3))
"""Of each round, its safe and its flawed steps."""


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize(
    ("num", "expected"),
    [(0, []), (1, [(3, 2)]), (2, [(3, 2), (4, 4)]), (3, [(3, 2), (4, 4), (8, 6)])],
)
def test_all_breaches_are_listed_in_one_way_however_many_there_are(
    num: int, expected: list[tuple[int, int]], clean: bool
) -> None:
    record = record_of(several(*SHAPES[:num], tail=2, clean=clean))
    assert [(one.breach, one.bifurcation) for one in record.all_breaches] == expected
    assert (record.breach, record.bifurcation) == (expected[0] if expected else (None, None))
    assert record.went_back == bool(expected)
    assert Record.from_json_line(record.to_json_line()) == record


@pytest.mark.parametrize("fields", [unbroken(), breached(), left_out(), several((2, 2), tail=1)])
def test_a_record_with_at_most_one_breach_has_no_list_of_them(fields: dict[str, Any]) -> None:
    assert list(orjson.loads(record_of(fields).to_json_line())) == FIELDS


def test_the_list_follows_the_first_breach_in_the_line() -> None:
    line = record_of(several(*SHAPES)).to_json_line()
    assert b'"breach":3,"bifurcation":2,"breaches":[{"breach":3,"bifurcation":2},' in line


def test_a_breach_taken_at_its_own_step_went_back_nowhere() -> None:
    assert not record_of(several((1, 1), (2, 1))).went_back
    assert record_of(several((1, 1), (2, 2))).went_back


@pytest.mark.parametrize("clean", [False, True])
def test_each_step_has_the_role_and_the_verdict_of_its_round(clean: bool) -> None:
    record = record_of(several(*SHAPES, tail=2, clean=clean))
    steps = range(len(record.steps))
    flawed = {2, 3, 4, 6, 7, 8}
    assert [index for index in steps if record.step_role(index) == "flawed"] == sorted(flawed)
    assert [index for index in steps if record.step_role(index) == "student"] == [0, 1, 5, 9, 10]
    verdicts = [record.step_verdict(index) for index in steps]
    assert [index for index in steps if verdicts[index] == "breach"] == [3, 4, 8]
    assert set(verdicts) == {"safe", "breach"}


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("tail", [0, 2])
@pytest.mark.parametrize("num", [0, 1, 2, 3])
def test_each_correction_is_found_whole(num: int, tail: int, clean: bool) -> None:
    record = record_of(several(*SHAPES[:num], tail=tail + (not num), clean=clean))
    revise = [] if clean else ["However,\n\n"]
    assert [[piece.text for piece in pieces] for pieces in record.corrections()] == [
        [*revise, f"teacher {number}.\n\n"] for number in range(num)
    ]


def test_two_clean_corrections_in_one_span_are_the_first_ones() -> None:
    fields = several((1, 1), (0, 1), clean=True)
    first, second = fields["spans"][1:]
    fields["spans"][1:] = [{**first, "end": second["end"]}]
    found = record_of(fields).corrections()
    assert [[piece.text for piece in one] for one in found] == [
        ["teacher 0.\n\nteacher 1.\n\n"],
        [],
    ]


def test_a_stretch_of_the_output_is_cut_at_the_spans() -> None:
    record = record_of(breached())
    middle = [piece.text for piece in record.pieces(3, len(record.output) - 3)]
    assert "".join(middle) == record.output[3:-3]
    assert len(middle) == len(record.spans)
    assert record.pieces(5, 5) == ()


def without_quality(**changes: Any) -> dict[str, Any]:
    fields = several((1, 1), (1, 1), **changes)
    del fields["quality"]
    return fields


def test_a_correction_that_repeats_the_step_of_its_round_is_flagged() -> None:
    fields = without_quality()
    assert record_of(fields).flags() == ()
    own, others = "flawed 1.0\U0001f34e.\n\n", "flawed 0.0\U0001f34e.\n\n"
    for text, flags in [(own, ("repeated_step",)), (others, ()), ("\n\n", ("empty_correction",))]:
        changed = without_quality()
        last = changed["spans"][-1]
        changed["output"] = changed["output"][: last["start"]] + text
        last["end"] = len(changed["output"])
        assert record_of(changed).flags() == flags


def at(*places: tuple[int, int]) -> list[dict[str, int]]:
    return [{"breach": breach, "bifurcation": bifurcation} for breach, bifurcation in places]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"breaches": []}, "breaches lists 0, but must be there only for two or more"),
        ({"breaches": at((3, 2))}, "breaches lists 1, but must be there only for two or more"),
        (
            {"breaches": at((3, 1), (4, 4), (8, 6))},
            "breaches begins with breach 3 and bifurcation 1, but breach is 3 and bifurcation 2",
        ),
        (
            {"breach": None, "bifurcation": None},
            "begins with breach 3 and bifurcation 2, but breach is null and bifurcation null",
        ),
        (
            {"breaches": at((3, 2), (4, 3), (8, 6))},
            "bifurcation 3 is not after breach 3, the breach before it",
        ),
        (
            {"breaches": at((3, 2), (8, 6), (4, 4))},
            "bifurcation 4 is not after breach 8, the breach before it",
        ),
        (
            {"breaches": at((3, 2), (3, 2))},
            "bifurcation 2 is not after breach 3, the breach before it",
        ),
        ({"breaches": at((3, 2), (4, 5))}, "bifurcation 5 and breach 4 do not fit 11 steps"),
        ({"breaches": at((3, 2), (11, 9))}, "bifurcation 9 and breach 11 do not fit 11 steps"),
        ({"breaches": at((3, 2), (7, 6))}, "step 7 is said to be the breach, but is not unsafe"),
        ({"breaches": at((3, 2), (8, 6))}, "step 4 is unsafe, but is not among the breaches"),
        (
            {"breaches": at((4, 4), (8, 6)), "breach": 4, "bifurcation": 4},
            "step 3 is unsafe, but is not among the breaches",
        ),
        (
            {"breaches": None, "breach": 8, "bifurcation": 6},
            "step 3 is unsafe, but is not among the breaches",
        ),
        ({"breaches": None}, "step 4 is unsafe, but is not among the breaches"),
        (
            {"breaches": at((3, 2), (4, 4), (8, 7))},
            "the flawed steps are at 30 to 58, 80 to 94, 145 to 173, the flawed spans at 30 to",
        ),
        ({"breaches": [{"breach": 3}, *at((4, 4))]}, "breaches.0.bifurcation is missing"),
        ({"breaches": [*at((3, 2)), {"breach": 4, "bifurcation": -1}]}, "breaches.1.bifurcation"),
        ({"breaches": [*at((3, 2)), {"breach": "4", "bifurcation": 4}]}, "breaches.1.breach"),
        ({"breaches": [*at((3, 2)), {**at((4, 4))[0], "depth": 0}]}, "depth is not a known field"),
        ({"breaches": {"breach": 3, "bifurcation": 2}}, "breaches: "),
    ],
)
def test_a_list_that_contradicts_the_record_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecordError) as caught:
        record_of(several(*SHAPES, tail=2) | changes)
    assert fault in str(caught.value)


def falls_after_a_correction(fields: dict[str, Any]) -> None:
    fields["steps"][5]["td_error"] = 0.1


def is_half_left_out(fields: dict[str, Any]) -> None:
    fields["steps"][3] |= {"start": None, "end": None}


def goes_back_in_the_text(fields: dict[str, Any]) -> None:
    fields["steps"][5] |= {"start": 0, "end": 1}


def with_roles(*roles: str) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        for span, role in zip(fields["spans"], roles, strict=True):
            span["role"] = role

    return change


def leaves_a_safe_step_out(fields: dict[str, Any]) -> None:
    fields["steps"][5] |= {"start": None, "end": None}


STITCHED = ("student", "flawed", "revise", "teacher")


@pytest.mark.parametrize(
    ("change", "clean", "fault"),
    [
        (
            falls_after_a_correction,
            False,
            "step 5 begins a round, after breach 4, but has a td_error",
        ),
        (is_half_left_out, False, "1 of 6 flawed steps are left out of the output"),
        (leaves_a_safe_step_out, True, "step 5 is left out of the output, but is not flawed"),
        (goes_back_in_the_text, False, "step 5 starts at 0, before the end of another"),
        (
            with_roles(*STITCHED, "student", "revise", "teacher", *STITCHED, "student"),
            False,
            "are not student, flawed, revise and teacher in turn",
        ),
        (
            with_roles(*STITCHED, *STITCHED[1:], *STITCHED[:3], "student", "teacher"),
            False,
            "are not student, flawed, revise and teacher in turn",
        ),
        (
            with_roles("student", "teacher", "flawed", "student", "teacher", "student"),
            True,
            "are not student and teacher in turn",
        ),
        (
            with_roles("student", "teacher", "student", "student", "teacher", "student"),
            True,
            "are not student and teacher in turn",
        ),
    ],
)
def test_steps_and_spans_that_are_not_those_of_rounds_are_refused(
    change: Callable[[dict[str, Any]], None], clean: bool, fault: str
) -> None:
    fields = several(*SHAPES, tail=2, clean=clean)
    change(fields)
    with pytest.raises(RecordError) as caught:
        record_of(fields)
    assert fault in str(caught.value)


def test_a_message_about_many_spans_is_short() -> None:
    fields = several(*[(0, 1)] * 1000)
    fields["spans"][-1]["role"] = "student"
    with pytest.raises(RecordError, match="revise and 2,980 more") as caught:
        record_of(fields)
    assert len(str(caught.value)) < 400


def test_a_record_of_a_thousand_rounds_is_read() -> None:
    record = record_of(several(*[(0, 1)] * 1000, clean=True))
    assert [len(pieces) for pieces in record.corrections()] == [1] * 1000
    assert record.step_verdict(999) == "breach"


@pytest.mark.parametrize(
    ("mask", "roles"),
    [
        ("all", [{"student", "flawed", "revise", "teacher"}]),
        ("correction", [{"revise", "teacher"}] * 2),
        ("unflawed", [{"student"}, {"revise", "teacher", "student"}, {"revise", "teacher"}]),
    ],
)
def test_a_mask_is_about_the_text_of_every_round(mask: Mask, roles: list[set[str]]) -> None:
    record = record_of(several((1, 1), (1, 2)))
    found = [
        {span.role for span in record.spans if one.start <= span.start and span.end <= one.end}
        for one in loss_spans(record, mask)
    ]
    assert found == roles


def test_without_the_flawed_attempts_all_that_is_there_is_unflawed() -> None:
    record = record_of(several((1, 1), (0, 2), clean=True))
    assert loss_spans(record, "unflawed") == (LossSpan(0, len(record.output)),)
    corrections = [record.output[one.start : one.end] for one in loss_spans(record, "correction")]
    assert corrections == ["teacher 0.\n\nteacher 1.\n\n"]
