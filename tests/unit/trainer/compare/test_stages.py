from pathlib import Path
from typing import Any

import pytest

from synth_client.errors import InputError
from tests.support.records import breached, left_out, record_of, unbroken
from tests.support.trainer.plans import loaded_plan
from trainer.compare.plan import Plan
from trainer.compare.restitch import clean
from trainer.compare.stages import ArmUnit, stages_of

MOTAB: dict[str, Any] = {"method": "motab"}


def units(folder: Path, **changes: Any) -> dict[str, ArmUnit]:
    plan = loaded_plan(folder, **changes)
    return {unit.name: unit for unit in stages_of(plan).units if unit.seed == plan.seeds[0]}


def armed(**arms: dict[str, Any]) -> dict[str, Any]:
    return {"sft": {"params": {"method": "teacher"}}, **arms}


def test_arms_that_differ_in_mask_stitch_or_weight_share_their_records(tmp_path: Path) -> None:
    found = units(
        tmp_path,
        arms=armed(
            motab={"params": MOTAB},
            masked={"params": MOTAB, "loss": {"kind": "sft", "mask": "unflawed"}},
            clean={"params": {**MOTAB, "stitch": "clean"}},
            right={"params": MOTAB, "filters": ["correct"]},
            token={"params": MOTAB, "loss": {"kind": "weighted", "level": "token"}},
            step={"params": MOTAB, "loss": {"kind": "weighted", "level": "step"}},
        ),
    )
    shared = {unit.data.folder for name, unit in found.items() if name != "sft"}
    assert len(shared) == 1
    assert found["motab"].examples.folder == found["masked"].examples.folder
    assert found["motab"].examples.folder != found["clean"].examples.folder
    assert found["motab"].examples.folder != found["right"].examples.folder
    assert found["token"].score is not None
    assert found["token"].score == found["step"].score
    assert found["motab"].score is None
    assert len({unit.train.folder for unit in found.values()}) == len(found)


@pytest.mark.parametrize(
    "arm",
    [
        {"params": {**MOTAB, "base_threshold": 0.5}},
        {"params": {**MOTAB, "boundary": "static"}},
        {"params": MOTAB, "tries": 2},
    ],
)
def test_arms_that_ask_otherwise_have_records_of_their_own(
    arm: dict[str, Any], tmp_path: Path
) -> None:
    found = units(tmp_path, arms=armed(motab={"params": MOTAB}, other=arm))
    assert found["motab"].data.folder != found["other"].data.folder


def test_what_is_done_counts_as_done_until_an_input_changes(tmp_path: Path) -> None:
    before = units(tmp_path)["sft"]
    assert units(tmp_path, output=str(tmp_path / "out"))["sft"] == before
    sampling = {"temperature": 1.0}
    for change in ({"sampling": sampling}, {"seeds": [2]}, {"budget": budget(9)}):
        assert units(tmp_path, **change)["sft"].data.key != before.data.key
    longer = {"sums": {"source": str(tmp_path / "questions.jsonl"), "samples": 4}}
    after = units(tmp_path, benchmarks=longer)["sft"]
    assert after.train == before.train
    assert after.evals["sums"].key != before.evals["sums"].key
    # Where the servers run decides nothing.
    moved = units(tmp_path, pair={"base_url": "http://other/v1", "model": "motab/pair"})["sft"]
    assert moved == before


def test_other_questions_in_the_same_file_are_other_data(tmp_path: Path) -> None:
    plan = loaded_plan(tmp_path)
    before = stages_of(plan).units[0].data.key
    with (tmp_path / "questions.jsonl").open("ab") as file:
        file.write(b'{"id": "new", "problem": "1?", "answer": "1"}\n')
    assert stages_of(plan).units[0].data.key != before


def budget(tokens: int) -> dict[str, Any]:
    return {"kind": "tokens", "teacher_tokens": tokens}


def test_every_stage_comes_once_and_after_what_it_needs(tmp_path: Path) -> None:
    plan: Plan = loaded_plan(
        tmp_path,
        seeds=[1, 2],
        arms=armed(a={"params": MOTAB}, b={"params": MOTAB, "loss": {"kind": "dft"}}),
    )
    stages = list(stages_of(plan).in_order())
    kinds = [stage.kind for stage in stages]
    assert kinds == ["data", "examples"] * 4 + ["train"] * 6 + ["eval"] * 7
    assert len({stage.folder for stage in stages}) == len(stages)


def test_the_clean_record_is_the_one_that_the_proxy_makes() -> None:
    made, wanted = clean(record_of(breached())), record_of(left_out())
    assert made.output == wanted.output
    assert made.spans == wanted.spans
    assert made.steps == wanted.steps
    assert made.params == {**wanted.params, "stitch": "clean"}
    # Two safe steps of 9 tokens, and the teacher's 20.
    assert (made.usage.completion_tokens, made.usage.total_tokens) == (38, 58)
    assert made.usage.motab.student_tokens_discarded == 40 - 18
    assert record_of(orjson_of(made)) == made


def orjson_of(record: Any) -> dict[str, Any]:
    fields: dict[str, Any] = record.model_dump()
    return fields


def test_a_record_without_a_breach_stays_as_it_is() -> None:
    record = record_of(unbroken())
    assert clean(record).output == record.output
    assert clean(record).steps == record.steps


def test_a_record_of_several_breaches_is_not_stitched_again() -> None:
    fields = breached()
    whole, end = fields["output"], fields["spans"][1]["end"]
    start = fields["spans"][1]["start"]
    middle = start + 5
    fields["spans"][1:2] = [
        {"role": "flawed", "start": start, "end": middle},
        {"role": "student", "start": middle, "end": middle + 1},
        {"role": "flawed", "start": middle + 1, "end": end},
    ]
    assert whole == fields["output"]
    with pytest.raises(InputError, match="apples: a trajectory with several breaches"):
        clean(record_of(fields))


@pytest.mark.parametrize("name", ["rounds", "corrections"])
def test_a_record_whose_text_decided_what_came_next_is_not_stitched_again(name: str) -> None:
    fields = breached()
    fields["params"][name] = 2
    with pytest.raises(InputError, match=f"apples: a trajectory with {name} cannot be stitched"):
        clean(record_of(fields))


def test_arms_whose_text_decides_what_comes_next_share_no_records(tmp_path: Path) -> None:
    several = {**MOTAB, "rounds": 2}
    arms = armed(motab={"params": several}, clean={"params": {**several, "stitch": "clean"}})
    found = units(tmp_path, arms=arms)
    assert found["motab"].data.folder != found["clean"].data.folder
    assert found["clean"].data.params["stitch"] == "clean"
