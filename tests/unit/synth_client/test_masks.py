import pytest

from synth_client.training_data.masks import LossSpan, Mask, loss_spans, step_ends
from tests.support.records import CORRECTION, FLAWED, REVISE, SAFE, breached, record_of, unbroken

SAFE_END = len("".join(SAFE))
FLAWED_END = SAFE_END + len("".join(FLAWED))
END = FLAWED_END + len(REVISE + CORRECTION)


@pytest.mark.parametrize(
    ("mask", "spans"),
    [
        ("all", [(0, END)]),
        ("correction", [(FLAWED_END, END)]),
        ("unflawed", [(0, SAFE_END), (FLAWED_END, END)]),
    ],
)
def test_a_mask_leaves_out_what_it_says(mask: Mask, spans: list[tuple[int, int]]) -> None:
    expected = tuple(LossSpan(start, end) for start, end in spans)
    assert loss_spans(record_of(breached()), mask) == expected


def test_where_the_teacher_wrote_nothing_there_is_no_correction_to_learn() -> None:
    record = record_of(unbroken())
    assert loss_spans(record, "correction") == ()
    assert loss_spans(record, "unflawed") == (LossSpan(0, SAFE_END),)


@pytest.mark.parametrize(("keep_code", "ends"), [(True, [7, 14, 17]), (False, [4, 7, 10, 14, 17])])
def test_steps_end_where_the_recorded_delimiters_do(keep_code: bool, ends: list[int]) -> None:
    safe, flawed = "```\na;\n", "b;\n```\nc;\n"  # a cap cut the code
    text = safe + flawed
    record = record_of(
        unbroken(
            output=text,
            spans=[
                {"role": "student", "start": 0, "end": len(safe)},
                {"role": "student", "start": len(safe), "end": len(text)},
            ],
            steps=[],
            params={"delimiter": {"any": ["\n"], "keep_code": keep_code}},
        )
    )
    found = [end for span in record.spans for end in step_ends(record, span)]
    assert found == ends
