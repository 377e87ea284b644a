"""The pair that the comparison trains: tokenizers, lessons, and the shipped models."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from tokenizers import Tokenizer

from trainer.reproduce.plan import SHIPPED
from trainer.reproduce.sets import Sets
from trainer.reproduce.sums import Sums
from trainer.reproduce.task import DOUBT, Task
from trainer.reproduce.tiny_pair import (
    BATCH,
    STUDENT,
    TEACHER,
    Design,
    Round,
    Schooling,
    write_blank,
    write_lessons,
)

DESIGNS = pytest.mark.parametrize("design", [STUDENT, TEACHER], ids=lambda one: one.name)
TASKS = pytest.mark.parametrize("task", [Sets(), Sums()], ids=lambda task: task.name)


def tokenizer_of(task: Task, design: Design, folder: Path) -> Tokenizer:
    write_blank(task, design, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@TASKS
@DESIGNS
def test_a_blank_model_has_a_tokenizer_that_loses_nothing(
    task: Task, design: Design, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(task, design, tmp_path)
    config = orjson.loads((tmp_path / "config.json").read_bytes())
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    text = "12+37=49.\n\nHowever,\n\nThe answer is \\boxed{49}. Ünïcode 😀"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@TASKS
@DESIGNS
def test_a_step_has_the_same_tokens_whatever_follows(
    task: Task, design: Design, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(task, design, tmp_path)
    for first in ("12+37=49.\n\n", "9 from 20 is 11.\n\n", "However,\n\n"):
        step = tokenizer.encode(first).ids
        for text in ("49-1=48.\n\n", "3 from 11 is 8.\n\n", "\\boxed{3}", "However,\n\n"):
            assert tokenizer.encode(first + text).ids[: len(step)] == step


@TASKS
def test_a_number_is_one_token_in_both_and_the_end_of_a_step_is_not(
    task: Task, tmp_path: Path
) -> None:
    ends = {}
    for design in (STUDENT, TEACHER):
        tokenizer = tokenizer_of(task, design, tmp_path / design.name)
        texts = task.problems("x", 200, "hard")
        rng = random.Random(0)
        for problem in texts:
            tokens = tokenizer.encode(task.worked(problem, rng, 0.5)).tokens
            assert all(token.isdigit() for token in tokens if any(map(str.isdigit, token)))
        ends[design.name] = len(tokenizer.encode(".\n\n").ids)
    assert ends == {"student": 2, "teacher": 1}


@TASKS
def test_there_is_a_lesson_for_every_place_of_every_batch(task: Task, tmp_path: Path) -> None:
    rounds = (Round(40, 1e-3), Round(20, 1e-3, redone=0.5))
    design = replace(STUDENT, hard=1.0, by_task={task.name: Schooling(1, rounds)})
    for index, (num, least, most) in enumerate([(40, 0.07, 0.13), (20, 0.45, 0.65)]):
        write_lessons(task, design, index, tmp_path / "lessons.jsonl")
        lines = (tmp_path / "lessons.jsonl").read_bytes().splitlines()
        lessons = [orjson.loads(line) for line in lines]
        assert len(lessons) == num * BATCH
        doubts = Counter(DOUBT in lesson["solution"] for lesson in lessons)
        assert least < doubts[True] / len(lessons) < most
        # What was begun is wrong, and is not learned.
        begun = [lesson for lesson in lessons if lesson["begun"]]
        assert all(lesson["solution"].startswith(DOUBT) for lesson in begun)
        assert bool(begun) == bool(index)


def test_a_round_may_have_its_own_shares_of_slips_and_of_hard_problems(tmp_path: Path) -> None:
    rounds = (Round(10, 1e-3), Round(10, 1e-3, slips=0.0, hard=0.0), Round(10, 1e-3, slips=1.0))
    design = replace(STUDENT, hard=1.0, by_task={"sets": Schooling(1, rounds)})
    found = []
    for index in range(len(rounds)):
        write_lessons(Sets(), design, index, tmp_path / "lessons.jsonl")
        lines = (tmp_path / "lessons.jsonl").read_bytes().splitlines()
        lessons = [orjson.loads(line) for line in lines]
        doubts = sum(DOUBT in lesson["solution"] for lesson in lessons) / len(lessons)
        numbers = {len(re.findall(r"\d+", lesson["question"])) for lesson in lessons}
        found.append((doubts, numbers))
    # Three numbers and their total, or five.
    assert [numbers for _, numbers in found] == [{6}, {4}, {6}]
    assert found[1][0] == 0.0 < found[0][0] < 0.2
    assert found[2][0] > 0.8


@TASKS
@DESIGNS
def test_the_shipped_pair_is_of_the_designs_that_make_it(
    task: Task, design: Design, tmp_path: Path
) -> None:
    write_blank(task, design, tmp_path)
    folder = SHIPPED / task.name / design.name
    # transformers spells out what else there is.
    for file in ("config.json", "tokenizer.json"):
        shipped = orjson.loads((folder / file).read_bytes())
        made = orjson.loads((tmp_path / file).read_bytes())
        assert {name: shipped[name] for name in made} == made
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
