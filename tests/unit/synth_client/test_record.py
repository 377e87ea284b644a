import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from synth_client.errors import InputError
from synth_client.files.record_file import read_records
from tests.support.records import (
    FIELDS,
    FLAWED,
    SAFE,
    breached,
    left_out,
    record_of,
    scored,
    spans_of,
    steps_of,
    unbroken,
)
from trajectory_records.record import Piece, Record, RecordError
from trajectory_records.steps import Span, StepRecord

CHOSEN = {"index": 2, "by": "majority", "answers": ["5", None, "7"]}


def test_a_record_survives_the_way_through_its_line() -> None:
    record = record_of(breached())
    assert Record.from_json_line(record.to_json_line()) == record


def test_a_line_is_one_line_and_ends_with_its_only_newline() -> None:
    line = record_of(breached()).to_json_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1


def test_a_line_holds_exactly_the_fields_of_the_contract_in_their_order() -> None:
    assert list(orjson.loads(record_of(breached()).to_json_line())) == FIELDS


def test_a_line_says_the_same_as_the_json_it_was_read_from() -> None:
    assert orjson.loads(record_of(breached()).to_json_line()) == breached()


def test_a_record_from_before_there_was_a_quality_is_read_and_stays_as_it_is() -> None:
    fields = breached()
    del fields["quality"]
    record = record_of(fields)
    assert record.quality is None
    assert orjson.loads(record.to_json_line()) == fields


@pytest.mark.parametrize("stitch", [breached, left_out])
@pytest.mark.parametrize(
    ("correction", "flags"),
    [
        (None, ()),
        (" \n", ("empty_correction",)),
        (FLAWED[1] + "No.", ("repeated_step",)),
        ("<think>No.", ("thought_left_open",)),
        ("No.</think>", ()),
        ("No.</think>\n\nSo</think>", ("thought_closed_twice",)),
    ],
)
def test_what_an_old_record_shows_is_flagged(
    stitch: Callable[[], dict[str, Any]], correction: str | None, flags: tuple[str, ...]
) -> None:
    fields = stitch()
    del fields["quality"]
    if correction is not None:
        last = fields["spans"][-1]
        fields["output"] = fields["output"][: last["start"]] + correction
        last["end"] = len(fields["output"])
    assert record_of(fields).flags() == flags


def test_the_proxys_flags_are_believed() -> None:
    assert record_of(breached() | {"quality": ["of_a_later_version"]}).flags() == (
        "of_a_later_version",
    )


@pytest.mark.parametrize("more", [{}, {"lost": [1]}])
def test_a_record_says_which_correction_was_chosen_only_where_there_were_several(
    more: dict[str, Any],
) -> None:
    fields = breached() | {"chosen": CHOSEN | more}
    record = record_of(fields)
    assert record.chosen is not None
    assert orjson.loads(record.to_json_line()) == fields
    # Records of before have no such field.
    assert record_of(breached()).chosen is None
    assert b"chosen" not in record_of(breached()).to_json_line()


def test_text_beyond_ascii_keeps_its_offsets_in_characters() -> None:
    text = "∑ über 😀.\n\n"
    record = record_of(
        unbroken(output=text, spans=spans_of([("student", text)]), steps=steps_of([text], [0.9]))
    )
    assert Record.from_json_line(record.to_json_line()).pieces() == (Piece("student", text),)


def test_a_step_left_out_of_the_output_keeps_its_text() -> None:
    record = Record.from_json_line(record_of(left_out()).to_json_line())
    assert [record.step_text(index) for index in range(4)] == [*SAFE, *FLAWED]


def test_only_a_step_with_a_text_of_its_own_writes_one() -> None:
    steps = orjson.loads(record_of(left_out()).to_json_line())["steps"]
    assert ["text" in step for step in steps] == [False, False, True, True]


def test_a_record_cannot_be_changed() -> None:
    record = record_of(breached())
    with pytest.raises(ValidationError, match="frozen"):
        record.output = "another"  # type: ignore[misc]


def test_predicted_and_correct_may_be_missing_as_null() -> None:
    record = record_of(unbroken(answer=None, predicted=None, correct=None))
    assert (record.predicted, record.correct) == (None, None)


def test_an_empty_output_has_no_spans() -> None:
    assert record_of(unbroken(output="", spans=[], steps=[])).pieces() == ()


@pytest.mark.parametrize(
    ("spans", "fault"),
    [
        ([(0, 10), (11, 53)], "span 1 starts at 11, not at 10"),
        ([(0, 10), (9, 53)], "span 1 starts at 9, not at 10"),
        ([(1, 53)], "span 0 starts at 1, not at 0"),
        ([(0, 53), (53, 53)], "span 1 ends at 53, not after its start"),
        ([(0, 52)], "the spans end at 52, the output at 53"),
        ([(0, 54)], "the spans end at 54, the output at 53"),
        ([], "the spans end at 0, the output at 53"),
    ],
)
def test_spans_that_do_not_cover_the_output_one_after_another_are_refused(
    spans: list[tuple[int, int]], fault: str
) -> None:
    text = "".join(SAFE)[:53]
    wrong = [{"role": "student", "start": start, "end": end} for start, end in spans]
    with pytest.raises(RecordError) as caught:
        record_of(unbroken(output=text, spans=wrong, steps=[]))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"breach": 1}, "only one of breach and bifurcation"),
        ({"bifurcation": 0}, "only one of breach and bifurcation"),
        ({"breach": 2, "bifurcation": 1}, "do not fit 2 steps"),
        ({"breach": 0, "bifurcation": 1}, "do not fit 2 steps"),
        ({"breach": 1, "bifurcation": 1}, "step 1 is said to be the breach"),
        ({"sample": -1}, "sample: "),
        ({"sample": "0"}, "sample: "),
        ({"seconds": True}, "seconds: "),
        ({"attempts": 0}, "attempts: "),
        ({"finish_reason": "error"}, "finish_reason: "),
        ({"messages": []}, "messages: "),
        ({"surprise": 1}, "surprise is not a known field"),
        ({"scoring": "guessed"}, "scoring: "),
        ({"scoring": None}, "step 0 has a value, but scoring is null"),
        ({"chosen": CHOSEN}, "a correction was chosen, but there is no breach"),
        ({"chosen": {**CHOSEN, "index": 3}}, "there is no correction 3 among 3"),
        ({"chosen": {**CHOSEN, "lost": [3]}}, "there is no correction 3 among 3"),
        ({"chosen": {**CHOSEN, "lost": [2]}}, "correction 2 is chosen, but lost"),
        ({"chosen": {**CHOSEN, "lost": []}}, "chosen.lost"),
        ({"chosen": {**CHOSEN, "by": "luck"}}, "chosen.by"),
        ({"chosen": {**CHOSEN, "answers": ["5"]}}, "chosen.answers"),
    ],
)
def test_a_record_that_contradicts_the_format_is_refused(
    changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RecordError) as caught:
        record_of(unbroken(**changes))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"start": None}, "only one of start and end"),
        ({"start": 31, "end": 30}, "not in the output"),
        ({"end": 10_000}, "not in the output"),
        ({"text": "another text"}, "not what the output has there"),
        ({"value": 1.01}, "steps.1.value"),
        ({"entropy": -0.1}, "steps.1.entropy"),
        ({"author": "nobody"}, "steps.1.author"),
    ],
)
def test_a_step_that_contradicts_the_format_is_refused(changes: dict[str, Any], fault: str) -> None:
    fields = unbroken()
    fields["steps"][1] |= changes
    with pytest.raises(RecordError) as caught:
        record_of(fields)
    assert fault in str(caught.value)


@pytest.mark.parametrize("field", FIELDS[:-2])
def test_every_field_must_be_there(field: str) -> None:
    fields = breached()
    del fields[field]
    with pytest.raises(RecordError, match=f"{field} is missing"):
        record_of(fields)


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (b'"value":0.81', b'"value":NaN', "value"),
        (b'"entropy":0.5', b'"entropy":Infinity', "entropy"),
    ],
)
def test_what_is_no_finite_number_is_refused(before: bytes, after: bytes, field: str) -> None:
    line = record_of(unbroken()).to_json_line().replace(before, after)
    assert after in line
    with pytest.raises(RecordError, match=rf"steps\.0\.{field}"):
        Record.from_json_line(line)


def test_the_question_is_what_the_user_asked_last() -> None:
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "so"},
    ]
    assert record_of(unbroken(messages=messages)).question == "second"
    assert record_of(unbroken(messages=messages[3:])).question == "so"


def test_pieces_join_to_the_output() -> None:
    record = record_of(breached())
    assert [piece.role for piece in record.pieces()] == ["student", "flawed", "revise", "teacher"]
    assert "".join(piece.text for piece in record.pieces()) == record.output


def test_steps_from_the_bifurcation_on_are_flawed_even_where_they_were_left_out() -> None:
    for fields in (breached(), left_out()):
        record = record_of(fields)
        roles = [record.step_role(index) for index in range(4)]
        assert roles == ["student", "student", "flawed", "flawed"]


def test_a_step_that_skd_rejected_is_flawed_and_its_boundary_may_be_above_one() -> None:
    fields = unbroken(method="skd")
    rejected = {**fields["steps"][0], "start": None, "end": None, "text": "No.\n\n"}
    rejected |= {"safe": False, "boundary": 1.1}
    record = record_of(fields | {"steps": [rejected, *fields["steps"]]})
    assert record.step_role(0) == "flawed"
    assert record.step_role(1) == "student"
    assert record.step_verdict(0) == "unsafe"


def test_a_step_of_the_teacher_is_the_teachers() -> None:
    fields = unbroken()
    fields["steps"][0]["author"] = "teacher"
    assert record_of(fields).step_role(0) == "teacher"


def test_only_the_unsafe_step_that_ended_the_draft_is_the_breach() -> None:
    record = record_of(breached())
    assert [record.step_verdict(index) for index in range(4)] == ["safe", "safe", "safe", "breach"]
    kept = record_of(unbroken(steps=steps_of(SAFE, [None, 0.01])))
    assert [kept.step_verdict(index) for index in range(2)] == ["unscored", "unsafe"]


def test_records_are_read_in_the_order_of_their_lines(tmp_path: Path) -> None:
    records = [record_of(breached()), record_of(unbroken()), record_of(unbroken(sample=1))]
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join(record.to_json_line() for record in records))
    assert list(read_records(path)) == records


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"id": "half', "invalid JSON"),
        (b'{"id": "\xff"}', "invalid JSON"),
        (b"[1, 2]", "object"),
        (b"{}", "id is missing; sample is missing; messages is missing (and 17 more)"),
    ],
)
def test_a_bad_line_is_named_with_its_file_its_number_and_its_fault(
    tmp_path: Path, line: bytes, fault: str
) -> None:
    good = record_of(breached()).to_json_line()
    path = tmp_path / "records.jsonl"
    path.write_bytes(good + good + line + b"\n" + good)
    records = read_records(path)
    assert next(records) == next(records)
    with pytest.raises(RecordError) as caught:
        next(records)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert fault in str(caught.value)
    assert (caught.value.path, caught.value.line) == (path, 3)


def test_a_missing_file_is_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(read_records(tmp_path / "none.jsonl"))


def test_records_made_in_code_are_checked_like_lines() -> None:
    record = record_of(unbroken())
    with pytest.raises(ValidationError, match="the spans end at 1"):
        Record(**{**dict(record), "spans": (Span(role="student", start=0, end=1),)})
    with pytest.raises(ValidationError, match="value"):
        StepRecord(**{**dict(record.steps[0]), "value": math.nan})


def test_token_logprobs_are_read_back_as_they_were_written() -> None:
    record = record_of(scored())
    line = record.to_json_line()
    assert Record.from_json_line(line) == record
    assert orjson.loads(line)["token_logprobs"]["teacher"]["logprobs"] == [-0.5, -0.25, -1.0]


def test_a_record_that_was_not_scored_has_no_token_logprobs_in_its_line() -> None:
    assert b"token_logprobs" not in record_of(unbroken()).to_json_line()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ends": [3, 4]}, "2 ends, but 3 logprobs"),
        ({"ends": [4, 3, 4]}, "token 1 ends at 3"),
        ({"ends": [1, 2, 3]}, "the teacher's tokens end at 3, the output at"),
        ({"ends": [], "logprobs": []}, "the teacher's tokens end at 0"),
        ({"logprobs": [-0.5, 0.1, -1.0]}, "less than or equal to 0"),
        ({"logprobs": [-0.5, None, -1.0]}, "valid number"),
    ],
)
def test_token_logprobs_that_do_not_cover_the_output_are_refused(
    changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RecordError, match=fault):
        Record.from_json_line(orjson.dumps(scored(**changes)))


def test_counts_that_one_of_two_attempts_does_not_know_are_not_known_together() -> None:
    usage = record_of(breached()).usage
    silent = usage.model_copy(
        update={"motab": usage.motab.model_copy(update={"teacher_cached_tokens": None})}
    )
    both = usage + silent
    assert (both.total_tokens, both.motab.teacher_cached_tokens) == (160, None)
    assert both.motab.teacher_tokens == 40


def test_another_judge_cannot_have_marked_a_step_that_is_not_there() -> None:
    with pytest.raises(RecordError, match="judge_sample judged step 4 of 4 steps"):
        record_of(breached() | {"scoring_fallbacks": {"judge_sample": [0, 4]}})
