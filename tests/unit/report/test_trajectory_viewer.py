from typing import Any

import pytest

from synth_client.report import trajectory_viewer as viewer
from synth_client.report.trajectory_viewer import Sample
from tests.support.pages import data_of
from tests.support.records import (
    CORRECTION,
    FLAWED,
    REVISE,
    SAFE,
    breached,
    left_out,
    record_of,
    spans_of,
    unbroken,
)
from trajectory_records.viewer.view import entry_of, view_of


def data_of_sample(sample: Sample) -> dict[str, Any]:
    blocks = (
        f'<script type="application/gzip" id="data-{one.name}">{one.content}</script>'
        for one in sample.blocks()
    )
    return data_of("".join(blocks))


def test_a_view_holds_the_output_in_whole_texts() -> None:
    view = view_of(record_of(breached()))
    assert [step[0] for step in view["steps"]] == [*SAFE, *FLAWED]
    assert [step[1] for step in view["steps"]] == ["student", "student", "flawed", "flawed"]
    assert [step[2] for step in view["steps"]] == ["safe", "safe", "safe", "breach"]
    assert view["rest"] == [("revise", REVISE), ("teacher", CORRECTION)]


def test_a_view_counts_no_offsets_so_emoji_shift_nothing() -> None:
    fields = unbroken()
    text = "\U0001f34e\U0001f34e.\n\n" + "end"
    fields |= {"output": text, "spans": spans_of([("student", text)]), "steps": fields["steps"][:1]}
    fields["steps"][0] |= {"start": 0, "end": 5}
    view = view_of(record_of(fields))
    assert view["steps"][0][0] == "\U0001f34e\U0001f34e.\n\n"
    assert view["rest"] == [("student", "end")]


def test_a_view_says_which_of_several_corrections_was_kept() -> None:
    chosen = {"index": 0, "by": "reference", "answers": ("7", None), "lost": (1,)}
    fields = breached()
    assert view_of(record_of(fields))["chosen"] is None
    fields["chosen"] = {**chosen, "answers": ["7", None], "lost": [1]}
    assert view_of(record_of(fields))["chosen"] == chosen


def test_steps_left_out_are_shown_and_marked() -> None:
    view = view_of(record_of(left_out()))
    assert [step[0] for step in view["steps"]] == [*SAFE, *FLAWED]
    assert [step[7] for step in view["steps"]] == [False, False, True, True]
    assert view["rest"] == [("teacher", CORRECTION)]


def test_a_record_without_steps_is_all_rest() -> None:
    text = "All mine."
    fields = unbroken(output=text, spans=spans_of([("teacher", text)]), steps=[])
    assert view_of(record_of(fields))["rest"] == [("teacher", text)]


def test_an_entry_tells_what_the_list_searches_and_shows() -> None:
    assert entry_of(record_of(breached())) == (
        "apples",
        0,
        "How many apples are in 12 bags [of 3]?",
        "36",
        "36",
        3,
        2,
        True,
        4,
    )


def test_every_entry_leads_to_its_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "_CHUNK_BYTES", 3000)
    sample = Sample(100)
    for number in range(20):
        sample.add(record_of(unbroken(sample=number, seconds=float(number))))
    data = data_of_sample(sample)
    assert [entry[1] for entry in data["index"]] == list(range(20))
    assert len([name for name in data if name.startswith("chunk-")]) > 3
    for entry in data["index"]:
        assert data[f"chunk-{entry[9]}"][entry[10]]["seconds"] == entry[1]


def test_a_sample_is_the_same_each_time_in_order_and_from_everywhere() -> None:
    samples = []
    for _ in range(2):
        sample = Sample(50)
        for number in range(1000):
            sample.add(record_of(unbroken(sample=number)))
        samples.append([entry[1] for entry in data_of_sample(sample)["index"]])
    assert samples[0] == samples[1] == sorted(samples[0])
    assert len(set(samples[0])) == 50
    assert min(samples[0]) < 100
    assert max(samples[0]) > 900


def test_a_sample_of_nothing_has_an_empty_index() -> None:
    sample = Sample(0)
    sample.add(record_of(breached()))
    assert data_of_sample(sample) == {"index": []}


def test_a_step_that_another_judge_marked_names_it() -> None:
    view = view_of(record_of(breached() | {"scoring_fallbacks": {"judge_sample": [1]}}))
    assert [step[8] for step in view["steps"]] == [None, "judge_sample", None, None]
