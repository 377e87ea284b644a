import csv
from pathlib import Path
from typing import Any

import datasets
import orjson
import pytest

from synth_client.errors import InputError
from synth_client.questions.layout import Columns
from synth_client.questions.question import BadRow, Question
from trainer.evaluation.benchmark import Benchmark, Problem, load_benchmark

MATH_500 = {
    "problem": "What is $1+1$?",
    "solution": "It is $\\boxed{2}$.",
    "answer": "2",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}

GPQA = {
    "Record ID": "rec1",
    "Question": "Which planet is the largest?\n",
    "Correct Answer": "Jupiter",
    "Incorrect Answer 1": "Mars",
    "Incorrect Answer 2": " Venus",
    "Incorrect Answer 3": "Saturn",
    "High-level domain": "Physics",
}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def load(path: Path, *rows: dict[str, Any], **how: Any) -> Benchmark:
    return load_benchmark(str(written(path / "math.jsonl", *rows)), **how)


def questions(benchmark: Benchmark) -> list[Question]:
    rows = list(benchmark.dataset.rows())
    found = [row for row in rows if not isinstance(row, BadRow)]
    assert len(found) == len(rows)
    return found


def asked(benchmark: Benchmark) -> list[str]:
    return [question.messages[-1].content for question in questions(benchmark)]


def test_a_row_of_math_500_is_read_with_level_subject_and_id(tmp_path: Path) -> None:
    found = load(tmp_path, MATH_500)
    assert found.problems == (Problem("test/prealgebra/1.json", "1", "Prealgebra"),)
    (question,) = questions(found)
    assert (question.id, question.answer) == ("test/prealgebra/1.json", "2")
    assert asked(found) == ["What is $1+1$?"]


def test_rows_need_no_more_than_a_question_and_an_answer(tmp_path: Path) -> None:
    found = load(tmp_path, {"question": "a", "answer": 0}, {"prompt": "b", "answer": "x", "id": 7})
    assert found.problems == (Problem("0", None, None), Problem("7", None, None))


def test_the_prompt_is_put_around_every_problem_as_it_stands(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{x}?"}]
    rows: list[dict[str, Any]] = [MATH_500, {"messages": messages, "answer": "1"}]
    found = load(tmp_path, *rows, prompt="Solve: {problem}\nin \\boxed{}.")
    assert asked(found) == ["Solve: What is $1+1$?\nin \\boxed{}.", "Solve: {x}?\nin \\boxed{}."]
    assert questions(found)[1].messages[0].content == "Be brief."


def test_the_limit_takes_the_first_problems(tmp_path: Path) -> None:
    rows = [{"problem": str(i), "answer": "1"} for i in range(5)]
    found = load(tmp_path, *rows, limit=2)
    assert asked(found) == ["0", "1"]
    assert (len(found.problems), found.dataset.count()) == (2, 2)


def test_the_digest_changes_with_what_is_asked_and_expected_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    digest = load(tmp_path, MATH_500).digest
    assert load(tmp_path, MATH_500 | {"solution": "", "level": 5}).digest == digest
    assert load(tmp_path, MATH_500 | {"answer": "3"}).digest != digest
    assert load(tmp_path, MATH_500 | {"problem": "?"}).digest != digest
    assert load(tmp_path, MATH_500, prompt="Solve {problem}").digest != digest


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"problem": "a"}, "no answer; every problem of a benchmark needs one"),
        ({"problem": "a", "answer": None}, "no answer; every problem of a benchmark needs one"),
        ({"problem": "a", "answer": " "}, "no answer; every problem of a benchmark needs one"),
        ({"problem": "a", "answer": [[1]]}, "answer is no answer, but a list"),
        ({"text": "a", "answer": "1"}, "no question: none of messages, question, problem,"),
        ({"problem": "a", "answer": "1", "id": "0"}, "repeats the id 0"),
        ({"problem": "a", "answer": "1", "level": []}, "level is neither text nor a whole number"),
        ({"problem": "a", "answer": "1", "subject": 0.5}, "subject is neither text nor a whole"),
    ],
)
def test_a_row_that_is_no_problem_is_named_and_ends_it(
    row: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, {"problem": "good", "answer": "1"}, row)
    assert str(caught.value).startswith(f"math.jsonl, line 2: {fault}")


def test_a_row_of_gpqa_becomes_a_question_with_lettered_choices(tmp_path: Path) -> None:
    found = load(tmp_path, GPQA, prompt="{problem}\n\nEnd with the letter.")
    assert (found.problems, found.rule) == ((Problem("rec1", None, "Physics"),), "choice")
    (question,) = questions(found)
    first, blank, *choices, gap, last = question.messages[0].content.splitlines()
    assert (first, last) == ("Which planet is the largest?", "End with the letter.")
    assert (blank, gap) == ("", "")
    assert [line[:3] for line in choices] == ["A) ", "B) ", "C) ", "D) "]
    assert {line[3:] for line in choices} == {"Jupiter", "Mars", "Venus", "Saturn"}
    assert f"{question.answer}) Jupiter" in choices


def test_gpqa_is_read_from_a_folder_with_its_csv(tmp_path: Path) -> None:
    names = [name for name in GPQA if "Answer" in name]
    row = GPQA | {"Question": "One, or another?"} | dict(zip(names, "1234", strict=True))
    with (tmp_path / "gpqa_diamond.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(row))
        table.writeheader()
        table.writerow(row)
    found = load_benchmark(str(tmp_path), split="train")
    (question,) = questions(found)
    assert f"\n{question.answer}) 1" in question.messages[0].content


def test_the_right_choice_has_no_favourite_letter_and_keeps_its_own(tmp_path: Path) -> None:
    rows = [GPQA | {"Record ID": str(i), "Question": f"Which, {i}?"} for i in range(400)]
    answers = [question.answer for question in questions(load(tmp_path, *rows))]
    assert all(70 <= answers.count(letter) <= 130 for letter in "ABCD")
    # Whatever the order of the rows is.
    assert [q.answer for q in questions(load(tmp_path, *rows[::-1]))] == answers[::-1]


def test_a_row_of_gpqa_without_one_of_its_answers_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"math\.jsonl, line 2: Incorrect Answer 2 is neither a"):
        load(tmp_path, GPQA, GPQA | {"Incorrect Answer 2": None})


def test_rows_with_answers_are_judged_by_math_unless_all_are_choices(tmp_path: Path) -> None:
    assert load(tmp_path, MATH_500).rule == "math"
    assert load(tmp_path, GPQA, MATH_500).rule == "math"


def test_a_benchmark_without_rows_or_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"math\.jsonl holds no rows"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        load_benchmark(str(tmp_path / "gone.jsonl"))


def test_a_folder_of_data_files_is_read_by_its_test_split(tmp_path: Path) -> None:
    row = {**MATH_500, "level": 2}
    splits = {"train": datasets.Dataset.from_list([row | {"problem": "no"}])}
    splits["test"] = datasets.Dataset.from_list([row, row | {"unique_id": "b", "level": None}])
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "math"))
    found = load_benchmark(str(tmp_path / "math"))
    assert found.name == "math test"
    assert [problem.level for problem in found.problems] == ["2", None]
    assert asked(found) == ["What is $1+1$?"] * 2


def test_the_columns_of_a_benchmark_can_be_named(tmp_path: Path) -> None:
    row = GPQA | {"text": "Why?", "meta": {"target": [7, 8]}}
    named = Columns(question="text", answer="meta.target", id="Record ID")
    found = load(tmp_path, row, columns=named)
    (question,) = questions(found)
    assert (found.rule, asked(found)) == ("math", ["Why?"])
    assert (question.id, question.answer) == ("rec1", '["7","8"]')
