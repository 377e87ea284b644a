import pytest

from trainer.compare.compared import ArmScores, Compared, Score
from trainer.compare.data_statistics import Data
from trainer.compare.tables import cells_of, cost_points, to_markdown
from trainer.evaluation.paired import Difference

DATA = Data(
    num_examples=10,
    right=0.5,
    breached=0.25,
    breaches=0.5,
    student_tokens=30.0,
    teacher_tokens=20.0,
    teacher_tokens_discarded=5.0,
    teacher_scored_tokens=15.0,
    output_characters=100.0,
    base_threshold=None,
    entropy_scale=None,
)


def arm(name: str, against: Difference | None, *, cost: float | None = None) -> ArmScores:
    score = Score({1: {1: 0.5, 2: 0.6}, 4: {1: 0.75, 2: 0.75}}, against, None)
    return ArmScores(name, name.upper(), {"sums": score}, {1: DATA, 2: DATA}, cost)


def compared(*arms: ArmScores) -> Compared:
    return Compared("sft", arms, {"student": {"sums": {1: 0.4, 4: 0.7}}})


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.01, 0.09, "**+5.0 [1.0, 9.0]**"),
        (-0.09, -0.01, "**+5.0 [-9.0, -1.0]**"),
        (-0.01, 0.09, "+5.0 [-1.0, 9.0]"),
        (0.0, 0.09, "+5.0 [0.0, 9.0]"),
        (None, None, "+5.0"),
    ],
)
def test_a_difference_is_bold_if_its_interval_does_not_contain_0(
    low: float | None, high: float | None, shown: str
) -> None:
    found = compared(arm("sft", None), arm("motab", Difference(0.05, low, high, 0.02)))
    (line,) = (one for one in to_markdown(found).splitlines() if one.startswith("| MOTAB | 55"))
    assert line == f"| MOTAB | 55.0 ± 7.1 | 75.0 ± 0.0 | {shown} |  |"


def test_the_tables_name_the_baseline_and_the_smallest_difference() -> None:
    found = compared(arm("sft", None), arm("motab", Difference(0.05, 0.01, 0.09, 0.02)))
    said = to_markdown(found)
    assert "| sums, % | pass@1 | pass@4 | against SFT | against the student |" in said
    assert "| the student itself | 40.0 | 70.0 |  |  |" in said
    assert "A difference from SFT is found in 80% of the cases" in said
    assert "if it is at least 5.6 points." in said


def test_prices_add_a_column_to_the_data() -> None:
    plain = to_markdown(compared(arm("sft", None)))
    assert "cost" not in plain
    said = to_markdown(compared(arm("sft", None, cost=1.5), arm("motab", None, cost=12.25)))
    lines = [line for line in said.splitlines() if line.startswith(("| Data", "| SFT | 10"))]
    assert lines[0].endswith("| teacher tokens scored | cost of a seed |")
    assert lines[1].endswith("| 20 | 5 | 15 | 1.50 |")
    under = said.splitlines()[said.splitlines().index(lines[0]) + 1]
    assert under == "|---|" + "---:|" * 10


def test_a_point_of_cost_is_an_arm() -> None:
    (point,) = cost_points(compared(arm("sft", None)), "sums")
    assert (point.label, point.written, point.scored) == ("SFT", 20.0, 15.0)
    assert point.accuracy == pytest.approx(0.55)


def test_the_cells_of_a_table_leave_out_the_line_under_its_head() -> None:
    assert cells_of(["| a | b |", "|---|---:|", "| 1 |  |"]) == [["a", "b"], ["1", ""]]
