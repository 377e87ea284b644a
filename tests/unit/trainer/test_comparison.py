"""The tables of a comparison, against values computed by hand."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.records import breached, record_of, several, spans_of, unbroken
from trainer.compare.wording import Spread
from trainer.evaluation.cost_plot import cost_plots
from trainer.evaluation.pass_at_k import Outcome, estimate
from trainer.reproduce.arms import ARMS, Arm
from trainer.reproduce.curve import curve
from trainer.reproduce.plan import Unit
from trainer.reproduce.results import (
    DOUBT,
    Answer,
    Comparison,
    answers_of,
    comparison,
    counts_of,
    rates_of,
)
from trainer.reproduce.table import cost_points, to_markdown
from trajectory_records.record import Record

RIGHT, WRONG, CUT = "It is 7.", "It is 8.", "It is"
DOUBTED = f"It is 8.\n\n{DOUBT}\n\nIt is 7."


def test_a_spread_is_a_mean_and_the_deviation_of_a_sample() -> None:
    assert Spread.over([0.1, 0.2, 0.3]).percent() == "20.0 ± 10.0"
    assert Spread.over([0.125]).percent() == "12.5"


def is_right(text: str) -> bool:
    return text.endswith("It is 7.")


def mistake_of(record: Record) -> str | None:
    """An answer that corrects itself has none."""
    return None if record.correct else "other"


def answer(problem: str, text: str) -> dict[str, Any]:
    return unbroken(
        id=problem,
        output=text,
        spans=spans_of([("teacher", text)]),
        steps=[],
        correct=is_right(text),
        finish_reason="length" if text == CUT else "stop",
    )


def evaluated(folder: Path, answers: Mapping[str, Sequence[str]]) -> Path:
    """The folder of an evaluation in which the problems were answered with these texts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        record_of(answer(problem, text)).to_json_line()
        for problem, texts in answers.items()
        for text in texts
    ]
    (folder / "records.jsonl").write_bytes(b"".join(lines))
    right = [Outcome(len(texts), sum(map(is_right, texts))) for texts in answers.values()]
    value = [{"k": 1, "value": estimate(right, 1).value}]
    rows = [("level", "4 steps"), ("all", None)]
    table = [{"by": by, "name": name, "pass_at_k": value} for by, name in rows]
    (folder / "results.json").write_bytes(orjson.dumps({"table": table}))
    return folder


def arm_of(name: str) -> Arm:
    return next(arm for arm in ARMS if arm.name == name)


def unit_of(
    root: Path,
    arm: Arm | str,
    answers: Mapping[str, Sequence[str]],
    *,
    seed: int = 1,
    data: Sequence[dict[str, Any]] = (),
) -> Unit:
    unit = Unit(arm_of(arm) if isinstance(arm, str) else arm, seed, root / f"{seed}")
    evaluated(unit.evaluation, answers)
    lines = [record_of(one).to_json_line() for one in data or [unbroken(correct=True)]]
    unit.records.parent.mkdir(parents=True, exist_ok=True)
    unit.records.write_bytes(b"".join(lines))
    return unit


def compared(root: Path, units: Sequence[Unit], base: Mapping[str, Sequence[str]]) -> Comparison:
    pair = {
        "teacher": evaluated(root / "teacher", {"a": [RIGHT], "b": [DOUBTED]}),
        "student": evaluated(root / "student", base),
    }
    return comparison(units, pair, curve(units[-1].records), mistake_of)


def tables(found: Comparison) -> dict[str, list[list[str]]]:
    """The cells of each table, by its first head."""
    parts = [part.splitlines() for part in to_markdown(found).split("\n\n")]
    rows = [[[cell.strip() for cell in line[1:-1].split("|")] for line in part] for part in parts]
    return {part[0][0]: part for part in rows}


def test_the_tables_have_means_deviations_and_paired_differences(tmp_path: Path) -> None:
    right, wrong = unbroken(correct=True), breached() | {"correct": False}
    half = {"a": [RIGHT, WRONG], "b": [RIGHT, WRONG]}
    units = [
        unit_of(tmp_path, "sft", half, seed=1),
        unit_of(tmp_path, "sft", {"a": [RIGHT, RIGHT], "b": [RIGHT, WRONG]}, seed=2),
        unit_of(tmp_path, "rft", half, seed=1, data=[right, wrong]),
        unit_of(tmp_path, "rft", half, seed=2, data=[right, wrong]),
        unit_of(tmp_path, "motab", {"a": [RIGHT, CUT], "b": [DOUBTED, RIGHT]}, data=[right, wrong]),
        unit_of(tmp_path, "motab", {"a": [RIGHT], "b": [RIGHT]}, seed=2, data=[right, wrong]),
    ]
    found = compared(tmp_path, units, {"a": [RIGHT, WRONG], "b": [WRONG, WRONG]})
    by_title = tables(found)
    assert by_title["Methods"][0] == [
        *("Methods", "pass@1", "against SFT", "against the base", "says However"),
    ]
    teacher, student, sft, rft, motab = by_title["Methods"][2:]
    assert teacher == ["the teacher itself", "100.0", "", "", "50.0"]
    assert student == ["the student itself", "25.0", "", "", "0.0"]
    assert sft == ["SFT", "62.5 ± 17.7", "", "+37.5 [0.0, 50.0]", "0.0 ± 0.0"]
    assert rft[:3] == ["RFT", "50.0 ± 0.0", "-12.5 [-50.0, 0.0]"]
    # Paired: 0, +0.5 under the first seed; 0, +0.5 under the second.
    assert motab[:3] == ["MOTAB", "87.5 ± 17.7", "+25.0 [0.0, 50.0]"]
    assert motab[4] == "12.5 ± 17.7"
    assert by_title["MOTAB without its parts"][4:] == [motab]
    answers = {row[0]: row[1:] for row in by_title["Answers, %"]}
    assert answers["Answers, %"] == [
        *("says However", "right with it", "right without it", "cut off", "right: 4 steps"),
    ]
    assert answers["the teacher itself"] == ["50.0", "100.0", "100.0", "0.0", ""]
    # Only one seed has a doubt, so its share has no deviation.
    assert answers["MOTAB"][:2] == ["12.5 ± 17.7", "100.0"]
    assert answers["MOTAB"][2:4] == ["83.3 ± 23.6", "12.5 ± 17.7"]
    data = {row[0]: row[1:4] for row in by_title["Data, mean over the seeds"]}
    assert data["RFT"] == ["1", "50.0", "50.0"]
    assert data["MOTAB"] == ["2", "50.0", "50.0"]
    kinds = by_title["What goes wrong first, % of the answers"]
    assert kinds[2][kinds[0].index("other")] == "37.5 ± 17.7"
    json = orjson.loads(found.to_json())
    assert json["arms"][0]["by_k"]["1"] == {"1": 0.5, "2": 0.75}
    assert json["arms"][2]["against_sft"]["mean"] == pytest.approx(0.25)
    assert "found in 80% of the cases, at the 5% level, if it is at least" in to_markdown(found)


def test_a_student_that_is_right_exactly_when_it_doubts_gives_the_table_of_arithmetic(
    tmp_path: Path,
) -> None:
    # It doubts in 1, 2 or 3 of 4 answers: 50% of all, and so its pass@1.
    answers = {f"{n}": [DOUBTED] * n + [WRONG] * (4 - n) for n in (1, 2, 3)}
    units = [unit_of(tmp_path, "sft", answers, seed=seed) for seed in (1, 2, 3)]
    found = compared(tmp_path, units, {name: [WRONG] for name in answers})
    by_title = tables(found)
    assert by_title["Methods"][4][:2] == ["SFT", "50.0 ± 0.0"]
    # Over the problems the rates are 25, 50 and 75%, all above the base's 0%.
    assert by_title["Methods"][4][3:] == ["+50.0 [25.0, 75.0]", "50.0 ± 0.0"]
    row = by_title["Answers, %"][4]
    assert row[:5] == ["SFT", "50.0 ± 0.0", "100.0 ± 0.0", "0.0 ± 0.0", "0.0 ± 0.0"]
    assert by_title["What goes wrong first, % of the answers"][2][-1] == "50.0 ± 0.0"


def test_identical_data_under_two_names_give_an_interval_that_holds_0(tmp_path: Path) -> None:
    draw = random.Random(2)
    units = []
    for seed in (1, 2, 3):
        chances = {f"{n}": draw.random() for n in range(25)}
        for name in ("sft", "rft"):  # each answers with luck of its own
            drawn = {
                problem: [RIGHT if draw.random() < chance else WRONG for _ in range(8)]
                for problem, chance in chances.items()
            }
            units.append(unit_of(tmp_path, name, drawn, seed=seed))
    found = compared(tmp_path, units, {f"{n}": [WRONG] for n in range(25)})
    (rft,) = (one for one in found.arms if one.arm.name == "rft")
    assert rft.against_sft is not None
    assert rft.against_sft.low is not None
    assert rft.against_sft.high is not None
    assert rft.against_sft.low < 0.0 < rft.against_sft.high
    assert rft.against_base is not None
    assert rft.against_base.low is not None
    assert rft.against_base.low > 0.0


@pytest.mark.parametrize("names", [("sft", "motab"), ("motab", "sft"), ("motab",)])
def test_the_order_of_the_methods_decides_about_no_number(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    answers = {"sft": {"a": [WRONG], "b": [RIGHT]}, "motab": {"a": [RIGHT], "b": [RIGHT]}}
    units = [unit_of(tmp_path, name, answers[name]) for name in names]
    rows = {row[0]: row for row in tables(compared(tmp_path, units, answers["sft"]))["Methods"]}
    against = "+50.0 [0.0, 100.0]"
    assert rows["MOTAB"][2:4] == [against if "sft" in names else "", against]


def test_thresholds_that_were_tried_have_a_table_of_their_own(tmp_path: Path) -> None:
    motab = arm_of("motab")
    units = [unit_of(tmp_path, motab, {"a": [RIGHT], "b": [WRONG]}, data=[breached()])]
    for base_threshold, text in ((0.9, WRONG), (0.1, RIGHT)):
        arm = replace(
            motab, name=f"motab-{base_threshold}", params={"base_threshold": base_threshold}
        )
        made = breached()
        made["params"]["base_threshold"] = base_threshold
        data = [made, unbroken(id="bags", params=made["params"])]
        units.append(unit_of(tmp_path, arm, {"a": [text], "b": [text]}, data=data))
    by_title = tables(compared(tmp_path, units, {"a": [WRONG], "b": [WRONG]}))
    assert [row[:3] + row[4:5] for row in by_title["eps_0"][2:]] == [
        ["0.1", "1", "50.0", "100.0"],
        ["0.2", "1", "100.0", "50.0"],
        ["0.9", "1", "50.0", "0.0"],
    ]
    assert len(by_title["Methods"]) == 5  # the pair and MOTAB


def test_answers_are_counted_by_what_they_say() -> None:
    answers = [
        Answer("a", is_right=True, doubts=True, is_cut=False, mistake=None),
        Answer("b", is_right=False, doubts=True, is_cut=True, mistake="place"),
        Answer("a", is_right=False, doubts=False, is_cut=False, mistake="place"),
        Answer("b", is_right=False, doubts=False, is_cut=False, mistake="other"),
    ]
    found = counts_of(answers)
    assert (found.num, found.doubting, found.cut) == (4, 0.5, 0.25)
    assert (found.right_doubting, found.right_without) == (0.5, 0.0)
    assert found.mistakes == {"other": 0.25, "place": 0.5}
    assert rates_of(answers) == {"a": 0.5, "b": 0.0}
    assert counts_of(answers[:1]).right_without is None
    assert counts_of(answers[2:]).right_doubting is None


def test_an_answer_that_could_not_be_judged_counts_neither_way() -> None:
    records = [record_of(answer("a", RIGHT)), record_of(answer("a", DOUBTED) | {"correct": None})]
    assert answers_of(records, mistake_of) == [
        Answer("a", is_right=True, doubts=False, is_cut=False, mistake=None)
    ]


def test_the_data_of_several_breaches_have_their_number_and_what_was_thrown_away(
    tmp_path: Path,
) -> None:
    usage = unbroken()["usage"]
    usage["motab"] |= {"teacher_tokens": 30, "teacher_tokens_discarded": 12}
    data = [several((1, 1), (1, 2), usage=usage), unbroken(id="bags"), breached()]
    unit = unit_of(tmp_path, "motab-rounds", {"a": [RIGHT]}, data=data)
    head, _, row = tables(compared(tmp_path, [unit], {"a": [WRONG]}))["Data, mean over the seeds"]
    found = dict(zip(head, row, strict=True))
    assert (found["breached, %"], found["breaches each"]) == ("66.7", "1.00")
    written = [record_of(one).usage.motab.teacher_tokens or 0 for one in data]
    assert found["teacher tokens written"] == f"{sum(written) / 3:.0f}"
    assert found["of these thrown away"] == "4"


def test_the_cost_of_an_arm_is_per_question_and_drawn_against_its_accuracy(tmp_path: Path) -> None:
    # Two tries of one question, and 30 tokens of the teacher's in each.
    usage = unbroken()["usage"]
    usage["motab"] |= {"teacher_tokens": 30, "teacher_scored_tokens": 10}
    data = [unbroken(id="q", sample=sample, usage=usage) for sample in (0, 1)]
    units = [
        unit_of(tmp_path, "sft", {"a": [RIGHT], "b": [text]}, seed=seed, data=data)
        for seed, text in ((1, WRONG), (2, RIGHT))
    ]
    (point,) = cost_points(compared(tmp_path, units, {"a": [WRONG], "b": [WRONG]}))
    assert (point.label, point.written, point.scored, point.accuracy) == ("SFT", 60, 20, 0.75)
    written, all_tokens = cost_plots([point]).plots
    assert (written.figure.data[0].x, written.figure.data[0].y) == ((60,), (0.75,))
    assert all_tokens.figure.data[0].x == (80,)
    assert written.figure.data[0].error_y.array == (pytest.approx(0.3536, abs=1e-4),)
