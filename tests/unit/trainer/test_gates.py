"""The gates that a pair must pass before methods are compared on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from synth_client.report.threshold_rule import Learned
from tests.support.records import record_of, spans_of, steps_of, unbroken
from trainer.cli import reproduce as command_module
from trainer.cli.reproduce import reproduce_command
from trainer.errors import GateFailed
from trainer.reproduce.gates import Gate, check_pair, check_sft, gates_table
from trainer.reproduce.run import Reproduction
from trainer.reproduce.thresholds import Thresholds
from trajectory_records.record import Record

LEARNED = Thresholds(Learned(0.5, 0.0, 9, 1, 10, 10), Learned(0.5, 0.0, 9, 1, 10, 10))
NAMES = (
    "teacher - base, pass@1",
    "the base says However",
    "t* before t, of the breaches",
    "wrong trajectories that breach",
    "right trajectories that breach",
    "the teacher's answers with However that are right",
)


def measured(folder: Path, rates: Sequence[float], redone: Sequence[bool] = ()) -> Path:
    """An evaluation with 10 answers to each problem, and records with However."""
    folder.mkdir(parents=True)
    problems = [{"id": str(i), "c": round(10 * rate), "n": 10} for i, rate in enumerate(rates)]
    (folder / "results.json").write_bytes(orjson.dumps({"problems": problems}))
    answers = [answer(f"{i}", is_right, [0.9], "However,\n\n") for i, is_right in enumerate(redone)]
    answers.append(answer("-", False, [0.9]))
    (folder / "records.jsonl").write_bytes(b"".join(one.to_json_line() for one in answers))
    return folder


def answer(name: str, is_right: bool, values: Sequence[float], end: str = "") -> Record:
    texts = [f"step {place}.\n\n" for place in range(len(values))]
    texts[-1] += end
    fields: dict[str, Any] = unbroken(
        id=name,
        correct=is_right,
        output="".join(texts),
        spans=spans_of([("student", "".join(texts))]),
        steps=steps_of(texts, values),
    )
    for step in fields["steps"]:
        step |= {"entropy": 0.0, "boundary": 0.0, "safe": True}
    return record_of(fields)


# Twenty answers of the base student: with However, breached at t* = t, breached earlier, right.
GOOD = [
    answer("doubt", False, [0.9, 0.1], "However,\n\n"),
    *[answer(f"late-{i}", False, [0.9, 0.1]) for i in range(6)],
    # The fall to the second step is steeper than the fall below the boundary.
    *[answer(f"early-{i}", False, [1.0, 0.55, 0.45]) for i in range(2)],
    answer("missed", False, [0.9, 0.9]),
    *[answer(f"right-{i}", True, [0.9, 0.9]) for i in range(9)],
    answer("alarm", True, [0.9, 0.2]),
]


def gates_of(folder: Path, trial: Sequence[Record], **changes: Any) -> dict[str, Gate]:
    rates: dict[str, Any] = {"teacher": [0.9, 0.8], "student": [0.4, 0.5], "redone": [True, False]}
    rates |= changes
    teacher = measured(folder / "teacher", rates["teacher"], rates["redone"])
    student = measured(folder / "student", rates["student"])
    return {gate.name: gate for gate in check_pair(teacher, student, trial, LEARNED)}


def test_a_good_pair_passes_every_gate(tmp_path: Path) -> None:
    gates = gates_of(tmp_path, GOOD)
    assert tuple(gates) == NAMES
    assert {name: gate.value for name, gate in gates.items()} == pytest.approx(
        dict(zip(NAMES, (0.4, 0.05, 0.2, 0.9, 0.1, 0.5), strict=True))
    )
    assert all(gate.holds for gate in gates.values())


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"teacher": [0.6, 0.7]}, NAMES[0]),
        ({"redone": [True, False, False]}, NAMES[5]),
        ({"redone": []}, NAMES[5]),
    ],
)
def test_a_pair_that_is_too_close_or_cannot_redo_fails(
    changes: dict[str, Any], failed: str, tmp_path: Path
) -> None:
    gates = gates_of(tmp_path, GOOD, **changes)
    assert [name for name, gate in gates.items() if not gate.holds] == [failed]


@pytest.mark.parametrize(
    ("trial", "failed"),
    [
        (GOOD[1:], [NAMES[1]]),
        ([*GOOD, *[answer(f"d{i}", True, [0.9], "However,\n\n") for i in range(8)]], [NAMES[1]]),
        ([one for one in GOOD if "early" not in one.id], [NAMES[2]]),
        ([*GOOD, *[answer(f"m{i}", False, [0.9]) for i in range(2)]], [NAMES[3]]),
        ([*GOOD, *[answer(f"a{i}", True, [0.3]) for i in range(2)]], [NAMES[4]]),
        (GOOD[:9], [NAMES[4]]),
    ],
)
def test_a_student_that_cannot_show_a_difference_fails(
    trial: Sequence[Record], failed: list[str], tmp_path: Path
) -> None:
    gates = gates_of(tmp_path, trial)
    assert [name for name, gate in gates.items() if not gate.holds] == failed


def test_sft_must_gain_twice_the_standard_error(tmp_path: Path) -> None:
    base = measured(tmp_path / "base", [0.2, 0.4, 0.6, 0.8])
    same = [measured(tmp_path / f"a{seed}", [0.3, 0.5, 0.7, 0.9]) for seed in (1, 2)]
    gate = check_sft(same, base)
    assert gate.value == pytest.approx(0.1)
    assert gate.holds
    # The differences are 0.6, -0.2, 0.2 and -0.2; the standard error of their mean is 0.166 where
    # problems are drawn with replacement.
    noisy = check_sft([measured(tmp_path / "b", [0.8, 0.2, 0.8, 0.6])], base)
    assert noisy.value == pytest.approx(0.1)
    assert not noisy.holds
    said, least = noisy.wanted.rsplit(" ", 1)
    assert said == "above 2 standard errors,"
    assert float(least.rstrip("%")) == pytest.approx(33.2, abs=1.0)


def test_the_table_says_what_was_wanted_and_found() -> None:
    table = gates_table(
        [Gate("a", "at least 25%", 0.304, holds=True), Gate("b", "at most 20%", None, holds=False)]
    )
    assert table.splitlines()[2:] == [
        "| a | at least 25% | 30.4% | yes |",
        "| b | at most 20% |  | no |",
    ]


def test_a_task_whose_gate_fails_does_not_keep_the_other_from_being_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[str] = []

    def reject(job: Reproduction) -> None:
        tried.append(job.task.name)
        assert job.needs_gates
        raise GateFailed(f"{job.task.name} cannot")

    monkeypatch.setattr(command_module, "reproduce", reject)
    with pytest.raises(GateFailed, match="sets cannot\nsums cannot"):
        reproduce_command(scale=command_module._Size.MINI, output=tmp_path)
    assert tried == ["sets", "sums"]
