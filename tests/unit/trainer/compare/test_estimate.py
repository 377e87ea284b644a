from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.plans import loaded_plan
from trainer.compare.estimate import Estimate, estimated, outline
from trainer.compare.stages import stages_of

ASSUME: dict[str, Any] = {
    "tokens": {"teacher": {"teacher": 100}, "motab": {"student": 80, "scored": 60, "teacher": 30}},
    "example_tokens": 120,
    "answer_tokens": 50,
    "student_rate": 10,
    "teacher_rate": 5,
    "score_rate": 20,
    "train_rate": 40,
    "start_seconds": 7,
}


def estimates(folder: Path, **changes: Any) -> dict[str, Estimate]:
    """By the kind of stage and the first arm, or model, that needs it."""
    plan = loaded_plan(folder, **({"assume": ASSUME} | changes))
    stages = stages_of(plan)
    return {
        f"{stage.kind} {stages.arms_of(stage)[0]}": one for stage, one in estimated(plan).stages
    }


def test_an_estimate_is_arithmetic_on_what_the_plan_assumes(tmp_path: Path) -> None:
    found = estimates(tmp_path)
    sft, motab = found["data sft"], found["data motab"]
    assert (sft.requests, sft.tokens["teacher"]) == (8, 800)
    # The pair's servers start once; 100 tokens a question at 5 a second.
    assert sft.seconds == 7 + 8 * 100 / 5
    # The teacher's 30 / 5 + 60 / 20 seconds are more than the student's 80 / 10.
    assert motab.seconds == 8 * 9
    assert motab.tokens == {"student": 640, "scored": 480, "teacher": 240}
    # Six epochs of 8 examples.
    assert found["train sft"].seconds == 7 + 6 * 8 * 120 / 40
    # Two answers to each of 8 problems.
    assert found["eval student"].seconds == 7 + 16 * 50 / 10
    assert found["eval sft"].tokens == {"student": 800}


def test_filters_tries_and_steps_count(tmp_path: Path) -> None:
    rft = {"params": {"method": "teacher"}, "tries": 4, "filters": ["correct"]}
    arms = {"sft": {"params": {"method": "teacher"}}, "rft": rft}
    assume = {**ASSUME, "passing": {"rft": 0.25}, "tokens": {"teacher": {"teacher": 100}}}
    found = estimates(tmp_path, arms=arms, assume=assume)
    assert found["data rft"].requests == 32
    assert found["train rft"].seconds == found["train sft"].seconds


@pytest.mark.parametrize(
    ("budget", "requests"),
    [
        ({"kind": "tokens", "teacher_tokens": 450}, 4.5),
        ({"kind": "tokens", "teacher_tokens": 10_000}, 8),
        ({"kind": "money", "amount": 300 * 2 / 1e6}, 3),
    ],
)
def test_a_budget_bounds_what_is_asked(
    budget: dict[str, Any], requests: float, tmp_path: Path
) -> None:
    found = estimates(tmp_path, budget=budget, prices={"teacher": 2.0})
    assert found["data sft"].requests == pytest.approx(requests)


@pytest.mark.parametrize(
    ("gone", "stage"),
    [
        ("student_rate", "data motab"),
        ("tokens", "data sft"),
        ("train_rate", "train motab"),
        ("example_tokens", "train sft"),
        ("answer_tokens", "eval motab"),
    ],
)
def test_what_is_not_known_is_said_and_not_counted(gone: str, stage: str, tmp_path: Path) -> None:
    assume = {name: value for name, value in ASSUME.items() if name != gone}
    found = estimates(tmp_path, assume=assume)
    assert found[stage].seconds is None
    assert gone in found[stage].missing
    said = outline(loaded_plan(tmp_path, assume=assume))
    assert "Together: ? hours" in said
    assert "Not known (?)" in said


def test_questions_on_a_hub_are_as_many_as_the_plan_says(tmp_path: Path) -> None:
    hub = {"source": "org/name", "verify": "number"}
    assert estimates(tmp_path, questions=hub)["data sft"].missing == "assume.questions"
    known = {**ASSUME, "questions": 50}
    assert estimates(tmp_path, questions=hub, assume=known)["data sft"].requests == 50
    some = {**hub, "limit": 20}
    assert estimates(tmp_path, questions=some, assume=known)["data sft"].requests == 20


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    outline(loaded_plan(tmp_path))
    assert not (tmp_path / "out").exists()
