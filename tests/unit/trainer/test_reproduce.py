import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console
from tokenizers import Tokenizer

from synth_client.errors import OutputError
from tests.support.records import record_of, unbroken
from trainer.errors import RunExists, ServerFailed, TrainerMissing
from trainer.reproduce import run as run_module
from trainer.reproduce.arms import ARMS, Arm
from trainer.reproduce.curve import curve
from trainer.reproduce.plan import SHIPPED, SMOKE, TINY, Unit, recipe_of
from trainer.reproduce.run import Reproduction, reproduce
from trainer.reproduce.servers import find_vllm, vllm
from trainer.reproduce.task import LARGEST, ChainSum, first_mistake, problems, worked
from trainer.reproduce.tiny_pair import (
    STUDENT,
    TEACHER,
    Design,
    Pair,
    Round,
    write_blank,
    write_lessons,
)
from trainer.training.recipe import SftLoss

STEP = re.compile(r"(First )?(\d+)([+-]\d+)=(\d+)")
WORDS = {"plus": "+", "and": "+", "minus": "-", "less": "-"}


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_a_worked_problem_is_right_in_every_step_and_begins_where_the_last_one_ended() -> None:
    for problem in problems("x", 300, (2, 6)):
        *steps, end = worked(problem, random.Random(problem.id)).split(".\n\n")
        value = problem.start
        for step in steps:
            _, *numbers = STEP.fullmatch(step).groups()  # type: ignore[union-attr]
            before, term, after = map(int, numbers)
            assert before == value
            assert before + term == after
            assert 0 <= after <= LARGEST
            value = after
        assert end == f"The answer is \\boxed{{{problem.answer}}}."
        assert value == problem.answer


def test_a_problem_says_its_terms_in_words_and_symbols() -> None:
    for problem in problems("x", 300, (2, 6)):
        text = problem.text.removeprefix("What is ").removesuffix("?")
        for word, sign in WORDS.items():
            text = text.replace(word, sign)
        assert eval(text) == problem.answer
        assert len(problem.terms) in {2, 6}


def test_a_worked_problem_has_no_mistake_and_a_spoilt_one_the_first_that_is_in_it() -> None:
    for problem in problems("x", 300, (3,)):
        assert first_mistake(problem, worked(problem, random.Random(problem.id))) is None
    problem = ChainSum("x", 30, (25, -4), "What is 30 plus 25 minus 4?")
    end = "The answer is \\boxed{51}."
    spoilt = {
        "30+25=56.\n\n56-5=51.\n\n": "sum",
        "First 30+20=50.\n\n50+5=54.\n\n": "sum",
        "30+20=50.\n\n": "place",  # half a term that is not said to be one
        "First 30+20=50.\n\n50-4=46.\n\n": "place",
        "30-4=26.\n\n": "place",
        "30+25=55.\n\n54-4=50.\n\n": "place",
        "30+25=55.\n\n": "place",
        "30+25=55.\n\n55-4=51.\n\n51-4=47.\n\n": "place",
        "30+25=55.\n\nHowever,\n\n55-4=51.\n\n": "other",
        "30+25=55.\n\n55-4=51.\n\n": None,
    }
    assert {text: first_mistake(problem, text + end) for text in spoilt} == spoilt


def test_about_half_of_the_terms_that_can_be_are_taken_in_two_steps() -> None:
    there = list(problems("x", 500, (4,)))
    can = sum(abs(term) > 10 and bool(term % 10) for one in there for term in one.terms)
    rng = random.Random(0)
    solutions = [worked(one, rng) for one in there]
    num_split = sum(solution.count("First ") for solution in solutions)
    assert sum(solution.count("\n\n") for solution in solutions) == 4 * len(there) + num_split
    assert 0.4 < num_split / can < 0.6


def test_the_same_name_gives_the_same_problems_and_no_problem_twice() -> None:
    assert list(problems("x", 50, (3,))) == list(problems("x", 50, (3,)))
    texts = [one.text for one in problems("x", 2000, (1,))]
    assert len(set(texts)) == len(texts)
    assert {one.text for one in problems("y", 50, (3,))}.isdisjoint(
        one.text for one in problems("x", 50, (3,))
    )


@pytest.mark.parametrize("design", [STUDENT, TEACHER], ids=lambda one: one.name)
def test_a_blank_model_has_a_tokenizer_that_loses_nothing(design: Design, tmp_path: Path) -> None:
    write_blank(design, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    config = orjson.loads((tmp_path / "config.json").read_bytes())
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    text = "12+37=49.\n\nHowever,\n\nThe answer is \\boxed{49}. Ünïcode 😀"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("design", [STUDENT, TEACHER], ids=lambda one: one.name)
def test_a_step_has_the_same_tokens_whatever_follows(design: Design, tmp_path: Path) -> None:
    write_blank(design, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    step = tokenizer.encode("12+37=49.\n\n").ids
    for text in ("49-1=48.\n\n", "The answer", "First 49-20", "However,"):
        assert tokenizer.encode(f"12+37=49.\n\n{text}").ids[: len(step)] == step


def test_the_tokenizers_of_the_pair_differ_in_how_they_read_numbers(tmp_path: Path) -> None:
    tokens = {}
    for design in (STUDENT, TEACHER):
        write_blank(design, tmp_path / design.name)
        file = tmp_path / design.name / "tokenizer.json"
        tokens[design.name] = Tokenizer.from_file(str(file)).encode("12+37=49").tokens
    assert tokens == {
        "student": ["1", "2", "+", "3", "7", "=", "4", "9"],
        "teacher": ["12", "+", "37", "=", "49"],
    }


def test_there_is_a_lesson_for_every_place_of_every_batch(tmp_path: Path) -> None:
    design = replace(STUDENT, rounds=(Round(2, 1e-3, 1e-4), Round(1, 1e-3, 1e-4)))
    write_lessons(design, 0, tmp_path)
    lessons = [orjson.loads(line) for line in lines_of(tmp_path / "lessons.jsonl")]
    assert len(lessons) == 64
    assert lessons[0].keys() == {"question", "solution"}
    write_lessons(design, 1, tmp_path / "second")
    assert len(lines_of(tmp_path / "second" / "lessons.jsonl")) == 32


def test_the_shipped_pair_is_of_the_designs_that_make_it(tmp_path: Path) -> None:
    for design in (STUDENT, TEACHER):
        write_blank(design, tmp_path / design.name)
        for file, leaves in (("config.json", set()), ("tokenizer.json", {"post_processor"})):
            shipped = orjson.loads((SHIPPED / design.name / file).read_bytes())
            made = orjson.loads((tmp_path / design.name / file).read_bytes())
            names = made.keys() - leaves  # transformers spells out that nothing is added
            assert {name: shipped[name] for name in names} == {name: made[name] for name in names}
        assert (SHIPPED / design.name / "model.safetensors").stat().st_size < 4_000_000


def test_all_methods_and_ablations_of_the_paper_are_compared_alike() -> None:
    assert [arm.name for arm in TINY.arms] == [arm.name for arm in ARMS]
    methods = [arm.params["method"] for arm in ARMS if not arm.is_ablation]
    assert methods == ["teacher", "student", "imitkd", "skd", "skd", "skd", "prefix", "motab"]
    changed = [
        {name: value for name, value in arm.params.items() if name != "method"}
        for arm in ARMS
        if arm.is_ablation and arm.data_of is None
    ]
    assert changed == [{"boundary": "static"}, {"backtrack": "none"}, {"stitch": "clean"}]
    assert len(TINY.seeds) >= 3
    recipes = [
        recipe_of(Unit(arm, 1, Path("x")), TINY, Path("student")).model_dump(
            exclude={"data", "output"}
        )
        for arm in ARMS
        if arm.data_of is None
    ]
    assert all(recipe == recipes[0] for recipe in recipes)


def test_only_right_trajectories_are_learned_by_rft() -> None:
    assert [arm.name for arm in ARMS if arm.filters] == ["rft"]
    (rft,) = (arm for arm in ARMS if arm.filters)
    recipe = recipe_of(Unit(rft, 1, Path("x")), TINY, Path("student"))
    assert recipe.data.kind == "records"
    assert recipe.data.filters == ("correct",)


def test_an_arm_that_masks_the_flawed_attempt_learns_from_the_records_of_motab() -> None:
    (arm,) = (arm for arm in ARMS if arm.data_of is not None)
    unit = Unit(arm, 1, Path("x"))
    assert unit.records == Path("x/motab/records.jsonl")
    assert unit.training == Path("x/motab-unflawed/training")
    assert recipe_of(unit, TINY, Path("student")).loss == SftLoss(kind="sft", mask="unflawed")


def test_the_curve_tells_breaches_of_right_trajectories_from_those_of_wrong_ones(
    tmp_path: Path,
) -> None:
    low, high = unbroken(correct=False), unbroken(correct=True)
    for record, value in ((low, 0.45), (high, 0.75)):
        record["steps"] = [{**step, "value": value, "entropy": 0.0} for step in record["steps"]]
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(record_of(one).to_json_line() for one in (low, high)))
    lines = curve(path).to_markdown().splitlines()
    assert lines[0].startswith("| Breached, % at eps_0 | theta 0: all | theta 0: right |")
    assert lines[2 + 3].startswith("| 0.4 | 0.0 | 0.0 | 0.0 | 0.0")
    assert lines[2 + 4].startswith("| 0.5 | 50.0 | 0.0 | 100.0 | 50.0")
    assert lines[2 + 7].startswith("| 0.8 | 100.0 | 100.0 | 100.0 |")
    path.write_bytes(record_of(low).to_json_line())
    assert curve(path).to_markdown().splitlines()[2 + 4].startswith("| 0.5 | 100.0 |  | 100.0 |")


@pytest.fixture
def vllm_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A Python that does `script` whatever it is asked to run."""

    def write(script: str) -> Path:
        python = tmp_path / ".venv-servers" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.chdir(tmp_path)
        return python

    return write


def test_a_server_that_ends_is_told_with_the_end_of_its_log(
    vllm_stand_in: Callable[[str], Path], tmp_path: Path
) -> None:
    python = vllm_stand_in("echo no such model; exit 3")
    with (
        pytest.raises(ServerFailed, match=r"(?s)ended with code 3: the end of .*no such model"),
        vllm(python, tmp_path / "model", tmp_path / "log"),
    ):
        pass


def test_a_server_ends_with_all_that_it_started(
    vllm_stand_in: Callable[[str], Path], tmp_path: Path
) -> None:
    serve = (
        "from http.server import *; import os, sys, subprocess;"
        "class H(BaseHTTPRequestHandler):\n"
        " def do_GET(self): self.send_response(200); self.end_headers()\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open('child', 'w').write(str(child.pid))\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[-1])), H).serve_forever()\n"
    ).replace(";class", "\nclass")
    (tmp_path / "serve.py").write_text(serve)
    python = vllm_stand_in(f'exec {sys.executable} serve.py "$@"')
    with vllm(python, tmp_path / "model", tmp_path / "log"):
        child = int((tmp_path / "child").read_text())
        assert Path(f"/proc/{child}").exists()
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_missing_vllm_is_told_with_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainer.reproduce.servers._FOLDER", ".venv-none")
    with pytest.raises(TrainerMissing, match="make reproduce"):
        find_vllm()


def job_in(folder: Path, **changes: Any) -> Reproduction:
    scale = replace(SMOKE, **changes)
    pair = Pair(student=folder / "student", teacher=folder / "teacher")
    return Reproduction(scale, pair, folder / "out", Console(quiet=True))


def stop(*_: object) -> None:
    raise OutputError("stop")


def test_every_seed_has_questions_of_its_own_and_all_share_the_test(
    vllm_stand_in: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_stand_in("exit 1")
    monkeypatch.setattr(run_module, "_make_data", stop)
    job = job_in(tmp_path, seeds=(1, 2))
    with pytest.raises(OutputError, match="stop"):
        reproduce(job)
    asked = [
        {orjson.loads(line)["problem"] for line in lines_of(path)}
        for path in (job.questions(1), job.questions(2), job.test)
    ]
    assert [len(one) for one in asked] == [24, 24, 12]
    assert len(set.union(*asked)) == 60


def test_a_folder_with_another_comparison_is_refused(
    vllm_stand_in: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_stand_in("exit 1")
    monkeypatch.setattr(run_module, "_make_data", stop)
    for _ in range(2):
        with pytest.raises(OutputError, match="stop"):
            reproduce(job_in(tmp_path))
    with pytest.raises(RunExists, match="holds another comparison; choose another --output"):
        reproduce(job_in(tmp_path, num_steps=4))


def test_seeds_come_one_after_the_other() -> None:
    job = job_in(Path("x"), seeds=(1, 2), arms=ARMS)
    assert [unit.seed for unit in islice(job.units, 13)] == [1] * 12 + [2]
    assert isinstance(next(job.units).arm, Arm)
