"""A trajectory of any rounds is a record, in which the readers find the same rounds."""

from dataclasses import asdict

from hypothesis import given, settings

from proxy.core.stitch import quality_of
from tests.property.test_monitor_equals_sequential import params_of
from tests.property.test_relay_equals_plain_loop import timings
from tests.property.test_rounds_equal_plain_loop import Case, EntropyWorld, some_cases
from tests.support.cases import num_cases
from tests.support.records import record_of, unbroken


@settings(max_examples=num_cases(1_000))
@given(some_cases, timings)
def test_a_trajectory_of_any_rounds_is_a_record(case: Case, timing: object) -> None:
    world = EntropyWorld(case, timing)
    found = world.run()
    params = params_of(case.setting, 100)
    fields = unbroken(
        output=found.text,
        spans=[asdict(span) for span in found.spans],
        steps=[asdict(step) for step in found.steps],
        params={"delimiter": asdict(params)["delimiter"], "stitch": params.stitch},
        breach=found.breach,
        bifurcation=found.bifurcation,
        finish_reason=found.finish_reason,
        **({"breaches": [asdict(one) for one in found.breaches]} if found.breaches else {}),
    )
    del fields["quality"]  # so that the record says itself what is wrong
    record = record_of(fields)
    assert [(one.breach, one.bifurcation) for one in record.all_breaches] == world.breached
    assert record.flags() == quality_of(found, params, in_thought=False)
    corrections = [
        "".join(piece.text for piece in pieces if piece.role == "teacher")
        for pieces in record.corrections()
    ]
    spans = [found.text[one.start : one.end] for one in found.spans if one.role == "teacher"]
    assert [text for text in corrections if text] == spans
