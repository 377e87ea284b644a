import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from synth_client.errors import OutputError
from synth_client.files.record_file import read_records
from synth_client.questions.question import Question, Synthesis
from synth_client.report.threshold_rule import Learned
from synth_client.training_data.masks import Mask
from tests.support.records import CORRECTION, FLAWED, SAFE, breached, record_of, unbroken
from trainer.errors import RunExists, ServerFailed, TrainerMissing, TrainingFailed
from trainer.reproduce import run as run_module
from trainer.reproduce import servers
from trainer.reproduce.arms import ARMS, Arm
from trainer.reproduce.asking import params_of, write_clean
from trainer.reproduce.curve import curve
from trainer.reproduce.plan import MINI, SMOKE, TINY, Unit, recipe_of
from trainer.reproduce.run import Reproduction, reproduce
from trainer.reproduce.servers import Trainings, find_vllm, vllm
from trainer.reproduce.sets import Sets
from trainer.reproduce.sums import Sums
from trainer.reproduce.task import RULE
from trainer.reproduce.thresholds import Thresholds
from trainer.reproduce.tiny_pair import Pair
from trainer.training.recipe import SftLoss, WeightedLoss, load_recipe
from trajectory_records.record import Message, Piece


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_all_methods_and_ablations_of_the_paper_are_compared_alike() -> None:
    assert [arm.name for arm in TINY.arms] == [arm.name for arm in ARMS]
    methods = [arm.params["method"] for arm in ARMS if not arm.is_ablation and arm.data_of is None]
    motab = ["motab"] * 3  # the paper's, several rounds, several corrections
    assert methods == ["teacher", "student", "imitkd", "skd", "skd", "skd", "prefix", *motab]
    changed = [
        {name: value for name, value in arm.params.items() if name != "method"}
        for arm in ARMS
        if arm.is_ablation and arm.data_of is None
    ]
    assert changed == [
        {"boundary": "static"},
        {"backtrack": "none"},
        *({"base_threshold": value} for value in (0.2, 0.4, 0.6, 0.8)),
    ]
    assert len(TINY.seeds) >= 3
    recipes = [
        recipe_of(Unit(arm, 1, Path("x")), TINY, Path("student")).model_dump(
            exclude={"data", "output"}
        )
        for arm in ARMS
        if arm.data_of is None
    ]
    assert all(recipe == recipes[0] for recipe in recipes)


def test_motab_beyond_the_paper_is_compared_at_the_smaller_scale_too() -> None:
    beyond = {arm.name: arm for arm in MINI.arms if arm.params.keys() & {"rounds", "corrections"}}
    assert {name: arm.params for name, arm in beyond.items()} == {
        "motab-rounds": {"method": "motab", "rounds": 3},
        "motab-best": {"method": "motab", "corrections": 4, "choose": "verified"},
    }
    question = Question(id="q", messages=(Message(role="user", content="?"),), answer="11,8,1")
    sent = {
        name: Synthesis(model="m", params=arm.params).body(question, 0)["motab"]
        for name, arm in beyond.items()
    }
    # The proxy can only find a right correction if the request has the answer.
    assert sent["motab-best"] == {**beyond["motab-best"].params, "reference": "11,8,1"}
    assert sent["motab-rounds"] == beyond["motab-rounds"].params


def test_the_proxy_judges_corrections_by_the_rule_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], *_: object) -> AbstractContextManager[None]:
        started.append(command)
        return nullcontext()

    monkeypatch.setattr(servers, "server_process", start)
    models = {"student": tmp_path / "student", "teacher": tmp_path / "teacher"}
    with servers.proxy("http://127.0.0.1:1", "http://127.0.0.1:2", models, tmp_path):
        (command,) = started
    assert command[command.index("--verify") + 1] == RULE


def test_only_right_trajectories_are_learned_by_rft() -> None:
    assert [arm.name for arm in ARMS if arm.filters] == ["rft"]
    (rft,) = (arm for arm in ARMS if arm.filters)
    recipe = recipe_of(Unit(rft, 1, Path("x")), TINY, Path("student"))
    assert recipe.data.kind == "records"
    assert recipe.data.filters == ("correct",)


@pytest.mark.parametrize("mask", ["unflawed", "correction"])
def test_an_arm_that_masks_a_part_learns_from_the_records_of_motab(mask: Mask) -> None:
    (arm,) = (arm for arm in ARMS if arm.mask == mask)
    unit = Unit(arm, 1, Path("x"))
    assert unit.records == unit.learned == Path("x/motab/records.jsonl")
    assert unit.training == Path(f"x/motab-{mask}/training")
    assert recipe_of(unit, TINY, Path("student")).loss == SftLoss(kind="sft", mask=mask)


def test_the_arm_without_stitches_learns_from_the_records_of_motab_without_the_flawed_attempts(
    tmp_path: Path,
) -> None:
    (arm,) = (arm for arm in ARMS if arm.is_clean)
    unit = Unit(arm, 1, Path("x"))
    assert unit.records == Path("x/motab/records.jsonl")
    assert unit.learned == Path("x/motab/clean.jsonl")
    assert unit.learned == recipe_of(unit, TINY, Path("student")).data.path
    stitched = record_of(breached())
    records, clean = tmp_path / "records.jsonl", tmp_path / "clean.jsonl"
    records.write_bytes(stitched.to_json_line() + record_of(unbroken()).to_json_line())
    write_clean(records, clean)
    found, other = read_records(clean)
    assert found.pieces() == (Piece("student", "".join(SAFE)), Piece("teacher", CORRECTION))
    assert [found.step_text(index) for index in range(len(found.steps))] == [*SAFE, *FLAWED]
    assert [step.start is None for step in found.steps] == [False, False, True, True]
    assert found.params["stitch"] == "clean"
    assert (found.breach, found.bifurcation) == (stitched.breach, stitched.bifurcation)
    assert (other.pieces(), other.breach) == (record_of(unbroken()).pieces(), None)


@pytest.mark.parametrize("level", ["token", "step", "prefix"])
def test_an_arm_that_weights_tokens_learns_from_the_scored_records_of_sft(level: Any) -> None:
    (arm,) = (arm for arm in ARMS if arm.weights == level)
    unit = Unit(arm, 1, Path("x"))
    assert unit.records == Path("x/sft/records.jsonl")
    recipe = recipe_of(unit, TINY, Path("student"))
    assert recipe.data.path == Path("x/sft/scored.jsonl")
    assert recipe.loss == WeightedLoss(kind="weighted", level=level)


def test_the_recipe_of_every_arm_is_one_that_motab_train_reads(tmp_path: Path) -> None:
    job = job_in(tmp_path, arms=ARMS)
    for unit in job.units:
        run_module._write_recipe(job, unit)
        assert load_recipe(unit.recipe) == recipe_of(unit, job.scale, job.pair.student)


def test_an_arm_comes_after_the_arm_whose_records_it_learns_from() -> None:
    for scale in (TINY, MINI, SMOKE):
        names = [arm.name for arm in scale.arms]
        for arm in scale.arms:
            if arm.data_of is not None:
                assert names.index(arm.data_of) < names.index(arm.name)
        assert names[0] == "sft"


def test_all_students_see_six_epochs_of_the_questions() -> None:
    for scale in (TINY, MINI):
        examples = scale.num_steps * scale.batch_size
        assert 6 * scale.num_questions <= examples < 6 * scale.num_questions + scale.batch_size
    assert TINY.num_questions == 1200
    assert TINY.num_test >= 300
    assert TINY.num_samples == 8


def test_every_boundary_has_the_thresholds_that_were_learned_for_it() -> None:
    learned = Thresholds(Learned(0.7, 0.5, 9, 1, 10, 10), Learned(0.4, 0.0, 8, 1, 10, 10))
    for arm in ARMS:
        params = params_of(arm, learned)
        found = (params.get("base_threshold"), params.get("entropy_scale"))
        if arm.params["method"] != "motab":
            assert found == (None, None)
        else:
            base = arm.params.get("base_threshold", 0.7)
            assert found == ((0.4, 0.0) if arm.name == "motab-static" else (base, 0.5))


def test_only_rft_asks_more_than_once() -> None:
    assert {arm.name: arm.num_tries for arm in ARMS if arm.num_tries > 1} == {"rft": 4}


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


def test_a_training_that_fails_says_why_when_it_is_waited_for(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: x\n")
    with Trainings() as trainings:
        trainings.start(recipe)
        with pytest.raises(
            TrainingFailed, match=r"(?s)code 1: the end of .*recipe.yaml: data is missing"
        ):
            trainings.wait(recipe)


def test_a_training_that_waits_for_its_turn_ends_with_the_comparison(tmp_path: Path) -> None:
    recipes = [tmp_path / name / "recipe.yaml" for name in ("a", "b", "c")]
    with Trainings() as trainings:
        for recipe in recipes:
            recipe.parent.mkdir()
            recipe.write_text("model: x\n")
            trainings.start(recipe)
    assert not recipes[2].with_name("train.log").exists()


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
    return Reproduction(scale, Sets(), pair, folder / "out", Console(quiet=True))


def stop(*_: object) -> None:
    raise OutputError("stop")


def test_every_seed_has_questions_of_its_own_and_all_share_trial_and_test(
    vllm_stand_in: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_stand_in("exit 1")
    monkeypatch.setattr(run_module, "_try_pair", stop)
    job = job_in(tmp_path, seeds=(1, 2))
    with pytest.raises(OutputError, match="stop"):
        reproduce(job)
    names = ("seed-1", "seed-2", "trial", "test")
    rows = [[orjson.loads(line) for line in lines_of(job.questions(name))] for name in names]
    asked = [{row["problem"] for row in one} for one in rows]
    assert [len(one) for one in asked] == [24, 24, 48, 12]
    assert len(set.union(*asked)) == 108
    assert {row["level"] for row in rows[0]} == {"2 steps", "3 steps"}
    for name, one in zip(names, rows, strict=True):
        assert {row["id"]: row["answer"] for row in one} == {
            problem.id: problem.answer for problem in job.problems(name).values()
        }


def test_a_folder_with_another_comparison_is_refused(
    vllm_stand_in: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_stand_in("exit 1")
    monkeypatch.setattr(run_module, "_try_pair", stop)
    for _ in range(2):
        with pytest.raises(OutputError, match="stop"):
            reproduce(job_in(tmp_path))
    with pytest.raises(RunExists, match="holds another comparison; choose another --output"):
        reproduce(job_in(tmp_path, num_steps=4))
    with pytest.raises(RunExists, match="holds another comparison"):
        reproduce(replace(job_in(tmp_path), task=Sums()))


def test_seeds_come_one_after_the_other() -> None:
    job = job_in(Path("x"), seeds=(1, 2), arms=ARMS)
    num = len(ARMS)
    assert [unit.seed for unit in islice(job.units, num + 1)] == [1] * num + [2]
    assert isinstance(next(job.units).arm, Arm)
