"""A record of any number of rounds is read as it was put together, and no other list fits it."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from synth_client.report.rescore import scored_steps
from synth_client.training_data.masks import loss_spans
from tests.support.cases import num_cases
from tests.support.records import record_of, several
from trajectory_records.record import RecordError
from trajectory_records.viewer.view import view_of

SHAPES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=5)


CASES = st.tuples(SHAPES, st.integers(0, 2), st.booleans()).filter(
    lambda one: bool(one[0] or one[1])
)
"""The rounds, the number of steps after the last correction, and whether the stitch is clean."""
Case = tuple[list[tuple[int, int]], int, bool]


def put_together(case: Case) -> dict[str, Any]:
    shapes, tail, clean = case
    return several(*shapes, tail=tail, clean=clean)


@settings(max_examples=num_cases(500))
@given(CASES)
def test_every_reader_finds_the_rounds_that_were_put_together(case: Case) -> None:
    shapes, tail, clean = case
    record = record_of(put_together(case))
    expected: list[tuple[int, int]] = []
    roles: list[str] = []
    output: list[str] = []
    learned = ""
    texts = iter(map(record.step_text, range(len(record.steps))))
    for safe, flawed in shapes:
        bifurcation = len(roles) + safe
        roles += ["student"] * safe + ["flawed"] * flawed
        expected.append((len(roles) - 1, bifurcation))
    roles += ["student"] * tail
    assert [(one.breach, one.bifurcation) for one in record.all_breaches] == expected
    assert [record.step_role(index) for index in range(len(record.steps))] == roles
    for (safe, flawed), pieces in zip(shapes, record.corrections(), strict=True):
        written = [next(texts) or "" for _ in range(safe + flawed)]
        correction = "".join(piece.text for piece in pieces)
        output += [*written[: safe if clean else None], correction]
        learned += correction
    assert "".join([*output, *(text or "" for text in texts)]) == record.output
    spans = loss_spans(record, "correction")
    assert "".join(record.output[span.start : span.end] for span in spans) == learned


@settings(max_examples=num_cases(500))
@given(CASES)
def test_the_viewer_gets_every_character_once(case: Case) -> None:
    shapes, tail, _ = case
    record = record_of(put_together(case))
    view = view_of(record)
    steps = [step[0] for step in view["steps"] if not step[7]]
    parts = [text for part in [*view["corrections"], view["rest"]] for _, text in part]
    assert sorted("".join([*steps, *parts])) == sorted(record.output)
    assert len(view["corrections"]) == len(shapes) - (not tail and bool(shapes))


@settings(max_examples=num_cases(500))
@given(CASES)
def test_only_the_first_round_is_judged_again(case: Case) -> None:
    shapes, tail, _ = case
    record = record_of(put_together(case))
    (scored,) = scored_steps([record], with_entropy=True)
    first = sum(shapes[0]) if shapes else tail
    assert scored.values == tuple(step.value for step in record.steps[:first])
    assert scored.is_open == bool(shapes)
    assert scored.is_continued == (first < len(record.steps))


INDICES = st.tuples(st.integers(0, 30), st.integers(0, 30))


@settings(max_examples=num_cases(1_000))
@given(CASES, st.data())
def test_no_other_list_of_breaches_fits_the_record(case: Case, data: st.DataObject) -> None:
    assume(len(case[0]) > 1)
    fields = put_together(case)
    right = [(one["breach"], one["bifurcation"]) for one in fields["breaches"]]
    edits = st.tuples(st.integers(0, len(right)), st.integers(0, 2), st.lists(INDICES, max_size=2))
    place, num_removed, added = data.draw(edits)
    near = [
        (breach + one[0] % 3 - 1, breach + one[1] % 5 - 3) for one in added for breach, _ in right
    ]
    added = data.draw(st.sampled_from([added, near[: len(added)], [right[0]] * len(added)]))
    wrong = [*right[:place], *added, *right[place + num_removed :]]
    assume(wrong != right and all(min(pair) >= 0 for pair in wrong))
    fields["breaches"] = [{"breach": one, "bifurcation": two} for one, two in wrong]
    with pytest.raises(RecordError):
        record_of(fields)
    if wrong:
        fields |= {"breach": wrong[0][0], "bifurcation": wrong[0][1]}
        fields["breaches"] = fields["breaches"] if len(wrong) > 1 else None
        with pytest.raises(RecordError):
            record_of(fields)
