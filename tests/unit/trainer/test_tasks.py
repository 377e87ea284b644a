"""The two tasks of the comparison: problems, worked solutions, slips, and the judge of a step."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import pytest

from trainer.reproduce.sets import Sets
from trainer.reproduce.sums import Sums
from trainer.reproduce.task import DELIMITER, DOUBT, Exercise, State, Task, judge_answer

SETS, SUMS = Sets(), Sums()
TASKS = pytest.mark.parametrize("task", [SETS, SUMS], ids=lambda task: task.name)
SET = Exercise("q", "Make 20 from 12 9 8 3 11.", "hard", State(20, (-12, -9, -8, -3, -11)), "8,9,3")
LOST = ("3 from 20 is 17.\n\n", "12 from 17 is 5.\n\n")
SUM = Exercise("q", "What is 20 plus 5 minus 3?", "hard", State(20, (5, -3)), "22")


def solution(*steps: str) -> str:
    return DELIMITER.join(steps)


@TASKS
def test_a_worked_problem_has_no_mistake_and_the_right_answer(task: Task) -> None:
    rng = random.Random(0)
    for problem in task.problems("x", 300, "hard"):
        text = task.worked(problem, rng)
        judged = task.judged(problem, text)
        assert judged.first_mistake is None
        found = [verdict.is_wrong for verdict in judged.verdicts]
        # The opening counts as neither.
        assert found == [None] * task.has_opening + [False] * (task.num_steps(problem) + 1)
        assert DOUBT not in text
        assert judge_answer({"output": text, "answer": problem.answer})[1] is True


def slipped(task: Task, num: int) -> Iterator[tuple[Exercise, str]]:
    """Solutions that were asked to slip, and did: a wrong choice is not always there."""
    rng = random.Random(0)
    for problem in task.problems("x", num, "hard"):
        text = task.worked(problem, rng, slips=1.0)
        if DOUBT in text:
            yield problem, text


@TASKS
def test_a_solution_that_slips_notices_it_and_is_right_in_the_end(task: Task) -> None:
    num_doubts: Counter[int] = Counter()
    for problem, text in slipped(task, 300):
        steps = text.split(DELIMITER)
        num_doubts[steps.count(DOUBT)] += 1
        judged = task.judged(problem, text)
        assert judged.first_mistake is None  # an answer that corrects itself is not a mistake
        assert any(verdict.mistake for verdict in judged.verdicts)
        assert len(judged.verdicts) == len(steps)
    assert num_doubts.keys() == {1, 2}
    assert 0.65 < num_doubts[1] / num_doubts.total() < 0.85
    assert num_doubts.total() > 250


@TASKS
def test_a_tenth_of_the_solutions_slips_where_a_tenth_is_asked_for(task: Task) -> None:
    rng = random.Random(0)
    found = [DOUBT in task.worked(one, rng, 0.1) for one in task.problems("x", 2000, "hard")]
    assert 0.07 < sum(found) / 2000 < 0.12


@TASKS
def test_most_slips_are_wrong_choices_noticed_one_to_three_steps_later(task: Task) -> None:
    kinds: Counter[str | None] = Counter()
    later: Counter[int] = Counter()
    for problem, text in slipped(task, 1000):
        judged = task.judged(problem, text)
        first = next(i for i, verdict in enumerate(judged.verdicts) if verdict.mistake)
        kinds[judged.verdicts[first].mistake] += 1
        later[text.split(DELIMITER).index(DOUBT) - first - 1] += 1
    chosen = kinds["choice"] + kinds["place"]
    assert 0.7 < chosen / kinds.total() < 0.85
    assert kinds["result"] == kinds.total() - chosen
    assert max(later) == 3
    # Where nothing fits any more, the mistake is noticed at once.
    assert later[1] + later[2] + later[3] > 0.7 * later.total()


@TASKS
def test_a_solution_to_redo_is_cut_before_the_mistake_is_noticed(task: Task) -> None:
    rng, num_begun = random.Random(0), 0
    for problem in task.problems("x", 300, "hard"):
        begun, rest = task.redone(problem, rng)
        judged = task.judged(problem, begun + rest)
        assert judged.first_mistake is None
        num_begun += bool(begun)
        assert rest.startswith(DOUBT) == bool(begun)
        assert DOUBT not in begun
        assert rest.count(DOUBT) <= 1
        if begun:
            cut = task.judged(problem, begun + f"\\boxed{{{problem.answer}}}")
            assert any(verdict.mistake for verdict in cut.verdicts)
    assert num_begun > 200


@TASKS
def test_problems_differ_and_the_same_name_gives_the_same_problems(task: Task) -> None:
    assert list(task.problems("x", 50, "hard")) == list(task.problems("x", 50, "hard"))
    texts = [one.text for one in task.problems("x", 500, "hard")]
    assert len(set(texts)) == len(texts)
    others = {one.text for one in task.problems("y", 50, "hard")}
    assert others.isdisjoint(one.text for one in task.problems("x", 50, "hard"))


@TASKS
def test_problems_are_worded_in_at_least_four_ways(task: Task) -> None:
    first = {one.text.split()[0] for one in task.problems("x", 100, "hard")}
    assert len(first - {word for word in first if word[0].isdigit()}) >= 3
    assert any(word[0].isdigit() for word in first)


def test_a_set_has_one_solution() -> None:
    for level in ("easy", "hard"):
        for problem in SETS.problems("x", 200, level):
            numbers = [-term for term in problem.start.left]
            found = [
                choice
                for num in range(1, len(numbers) + 1)
                for choice in combinations(numbers, num)
                if sum(choice) == problem.start.value
            ]
            assert [sorted(choice) for choice in found] == [
                sorted(map(int, problem.answer.split(",")))
            ]


def test_an_easy_set_leaves_less_to_choose() -> None:
    assert {len(one.start.left) for one in SETS.problems("x", 50, "easy")} == {3}
    assert {len(one.start.left) for one in SETS.problems("x", 50, "hard")} == {5}


def test_the_values_of_a_sum_stay_within_bounds() -> None:
    for problem in SUMS.problems("x", 200, "hard"):
        value = problem.start.value
        for term in problem.start.left:
            value += term
            assert 0 <= value <= 29
        assert problem.answer == str(value)


@pytest.mark.parametrize(
    ("steps", "expected", "first"),
    [
        (["9 from 20 is 11.", "8 from 11 is 3.", "3 from 3 is 0."], "ooo", None),
        (["9 from 20 is 12.", "8 from 12 is 4."], "w-", "result"),
        (["12 from 20 is 8.", "8 from 8 is 0."], "oo", None),
        (["11 from 20 is 9.", "9 from 9 is 0."], "oo", None),
        (["5 from 20 is 15."], "w", "place"),  # not one of the numbers
        (["9 from 20 is 11.", "9 from 11 is 2."], "ow", "place"),  # taken twice
        (["9 from 21 is 12."], "w", "place"),
        (["3 from 20 is 17.", "12 from 17 is 5.", "12 from 5 is 0."], "o-w", "choice"),
        (["3 from 20 is 17.", "12 from 17 is 5.", DOUBT, "9 from 17 is 8."], "o--o", "answer"),
        (["I do not know."], "w", "other"),
        (["Start from 20.", "9 from 20 is 11."], "-o", None),
        (["Start from 21.", "9 from 21 is 12."], "w-", "place"),
        (["9 from 20 is 11.", "Start from 20."], "ow", "other"),
    ],
)
def test_a_step_of_a_set_is_right_wrong_or_shown_wrong_by_what_follows(
    steps: list[str], expected: str, first: str | None
) -> None:
    judged = SETS.judged(SET, solution(*steps, "\\boxed{1}"))
    marks = {True: "w", False: "o", None: "-"}
    assert "".join(marks[one.is_wrong] for one in judged.verdicts[:-1]) == expected
    if first is not None:
        assert judged.first_mistake == first


def test_a_solution_that_goes_back_is_judged_by_what_it_keeps() -> None:
    kept = ["12 from 20 is 8.", "3 from 8 is 5.", DOUBT, "8 from 8 is 0."]
    problem = Exercise("q", SET.text, "hard", SET.start, "12,8")
    judged = SETS.judged(problem, solution(*kept, "\\boxed{12,8}"))
    assert judged.first_mistake is None
    assert [verdict.mistake for verdict in judged.verdicts] == [None, "choice", None, None, None]
    wrong = SETS.judged(problem, solution(*kept, "\\boxed{12,3}"))
    assert wrong.first_mistake == "answer"
    dropped = SETS.judged(problem, solution(*kept[:2], "8 from 5 is 0.", "\\boxed{12,3,8}"))
    assert dropped.first_mistake == "choice"


@pytest.mark.parametrize(
    ("steps", "expected", "first"),
    [
        (["20+5=25.", "25-3=22.", "\\boxed{22}"], "ooo", None),
        (["20+5=26.", "26-3=23.", "\\boxed{23}"], "w--", "result"),
        (["20+5=25.", "25+3=28.", "\\boxed{28}"], "oww", "place"),
        (["20-3=17.", "17+5=22.", "\\boxed{21}"], "w-w", "place"),
        (["20+5=25.", "\\boxed{25}"], "ow", "answer"),
        (["Start from 20.", "20+5=25."], "w-", "other"),
        (["20+5=25.", "25-3=22."], "oo", "other"),
        (["20+5=26.", DOUBT, "20+5=25.", "25-3=22.", "\\boxed{22}"], "w-ooo", None),
    ],
)
def test_a_step_of_a_sum_is_right_or_wrong(
    steps: list[str], expected: str, first: str | None
) -> None:
    judged = SUMS.judged(SUM, solution(*steps))
    marks = {True: "w", False: "o", None: "-"}
    assert "".join(marks[one.is_wrong] for one in judged.verdicts) == expected
    assert judged.first_mistake == first


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            [*LOST, "12 from 5 is 0.\n\n", "\\boxed{3,12}"],
            [False, None, True],
        ),
        # The doubt belongs to the step that follows it, because the proxy cuts after a full stop.
        (
            [*LOST, "However,\n\n8 from 17 is 9.\n\n", "5"],
            [False, None, False, True],
        ),
        (["12 from 20 is 8.\n\n", "However,\n\n8 from 8 is 1.\n\n", "\\boxed{12}"], [False, True]),
        (["9 from 20\n\n8 from 20 is 12.\n\n", "9 from 12 is 3.\n\n"], [True]),
        (["12 from 20 is 8.\n\n", "\n\n", "8 from 8 is 0.\n\n"], [False, None, False]),
    ],
)
def test_each_step_of_the_proxy_is_labelled_up_to_the_first_that_shows_a_mistake(
    steps: list[str], expected: list[bool | None]
) -> None:
    assert SETS.labels(SET, steps) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("\\boxed{3,9,8}", ("3,9,8", True)),
        ("\\boxed{1}\n\n\\boxed{8,3,9}.", ("8,3,9", True)),
        ("\\boxed{8,3}", ("8,3", False)),
        ("\\boxed{8,3,9,9}", ("8,3,9,9", False)),
        ("8,3,9", (None, False)),
    ],
)
def test_an_answer_is_right_in_any_order(output: str, expected: tuple[str | None, bool]) -> None:
    assert judge_answer({"output": output, "answer": "8,9,3"}) == expected


def test_without_a_reference_nothing_is_judged() -> None:
    assert judge_answer({"output": "\\boxed{1}", "answer": None}) == ("1", None)
