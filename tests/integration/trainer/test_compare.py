"""Whole runs of `motab compare` with scripted servers and a scripted trainer."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from synth_client.files.record_file import read_records
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.configs import written
from tests.support.trainer.evaluations import ENV
from tests.support.trainer.plans import lines_of, plan_in
from tests.support.trainer.scripted import ScriptedTrainer
from trainer.compare.processes import free_port, is_up

# The weights are the hash of the data and of the seed, so that a student is what it has learned.
TRAIN = """mkdir -p model/checkpoint-3
(cat data/*.json; grep '^seed:' llamafactory.yaml) | sha256sum > model/weights
echo '{"current_steps": 3, "total_steps": 3, "loss": 1.5}' > model/trainer_log.jsonl
echo '{"train_runtime": 1.5}' > model/all_results.json
echo '{}' > model/checkpoint-3/trainer_state.json
"""
ARMS: dict[str, Any] = {
    "sft": {"label": "SFT", "params": {"method": "teacher"}},
    "rft": {"params": {"method": "student"}, "tries": 2, "filters": ["correct"]},
    "motab": {"label": "MOTAB", "params": {"method": "motab"}},
    "clean": {"params": {"method": "motab", "stitch": "clean"}},
}
RESULTS = ("comparison.md", "comparison.json")


class Compare:
    """`motab compare` as a process of its own, on a plan in this folder."""

    def __init__(self, scripted: ScriptedTrainer, output: Path, **changes: Any) -> None:
        self.output, self._folder = output, scripted.folder
        self._python = scripted.python
        scripted.trains(TRAIN)
        port = free_port()
        fields = plan_in(scripted.folder, output=str(output), **changes)
        questions = scripted.folder / "questions.jsonl"
        questions.write_bytes(lines_of([(f"{n} bags?", "36") for n in range(12)]))
        model = str(scripted.folder / "model")
        training = {"max_tokens": 512, "batch_size": 3}
        recipe = {"model": model, "training": training, "hardware": {"kind": "cpu"}}
        recipe |= {"data": {"kind": "records", "path": "x"}, "output": "x"}
        fields["recipe"] = str(written(recipe, scripted.folder / "recipe.yaml"))
        fake = "{python} -m tests.support.trainer.fake_models"
        server = {"command": f"{fake} {port}", "ready": f"http://127.0.0.1:{port}/health"}
        base_url = f"http://127.0.0.1:{port}/v1"
        fields["pair"] = {"base_url": base_url, "model": "motab/smol+big", "servers": [server]}
        fields["serve"] = {"command": f"{fake} {{port}} {{model}}", "ready": "/health"}
        self.plan = written(fields, scripted.folder / f"{output.name}.yaml")

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "motab", "compare", str(self.plan), *options]
        command += ["--python", str(self._python)]
        env = {**ENV, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)

    @property
    def log(self) -> Path:
        return self._folder / f"{self.output.name}.log"

    def run(self, *options: str) -> str:
        assert self.start(*options).wait(300) == 0, self.said
        return self.said

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def results(self) -> list[bytes]:
        return [(self.output / name).read_bytes() for name in RESULTS]

    def size(self) -> int:
        """Something that grows with all that is written."""
        sizes = []
        for folder, _, names in os.walk(self.output):
            for name in names:
                try:
                    sizes.append(Path(folder, name).stat().st_size + 1)
                except FileNotFoundError:
                    continue  # in place by now, under another name
        return sum(sizes)


@pytest.mark.timeout(900)
def test_killed_at_twenty_places_and_resumed_it_has_the_table_of_an_undisturbed_run(
    scripted: ScriptedTrainer,
) -> None:
    arms = {name: ARMS[name] for name in ("sft", "motab", "clean")}
    whole = Compare(scripted, scripted.folder / "whole", arms=arms)
    whole.run()
    killed = Compare(scripted, scripted.folder / "killed", arms=arms)
    draw, num_kills = random.Random(1), 0
    while num_kills < 20:
        process = killed.start()
        for _ in range(draw.randint(1, 5)):
            before = killed.size()
            while process.poll() is None and killed.size() == before:
                time.sleep(0.005)
        time.sleep(draw.random() * 0.2)
        if process.poll() is not None:  # done before its twenty kills
            assert killed.results() == whole.results(), killed.said
            shutil.rmtree(killed.output)
            continue
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        num_kills += 1
        _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
        assert not alive
    killed.run()
    assert killed.results() == whole.results()
    # Nothing is done again.
    before = killed.size()
    killed.run()
    assert killed.size() == before


def test_the_results_show_every_arm_its_data_and_examples(scripted: ScriptedTrainer) -> None:
    prices = {"teacher": 2.0, "student": 0.1}
    compare = Compare(scripted, scripted.folder / "out", arms=ARMS, prices=prices)
    said = compare.run()
    found = orjson.loads((compare.output / "comparison.json").read_bytes())
    assert [arm["name"] for arm in found["arms"]] == list(ARMS)
    (sft, rft, motab, clean) = found["arms"]
    assert sft["scores"]["sums"]["against_baseline"] is None
    assert motab["scores"]["sums"]["against_baseline"]["low"] is not None
    assert rft["data"]["1"]["num_examples"] < 24  # 12 questions, asked twice, the wrong ones out
    assert motab["data"]["1"]["teacher_tokens"] == clean["data"]["1"]["teacher_tokens"]
    # 20 tokens of the teacher and 40 of the student for each of 12 questions.
    assert sft["cost"] == pytest.approx(12 * (20 * 2.0 + 40 * 0.1) / 1e6)
    for words in ("| SFT |", "against SFT", "against the student", "the student itself"):
        assert words in said
    page = (compare.output / "comparison.html").read_text(encoding="utf-8")
    for words in ("Difference from SFT", "Examples of each arm", "Accuracy against", "cost of a"):
        assert words in page
    assert len(list((compare.output / "data").iterdir())) == 3  # clean shares motab's
    (examples,) = (
        list(read_records(path))
        for path in compare.output.glob("examples/motab-*/records.jsonl")
        if b'"stitch":"clean"' in path.read_bytes()
    )
    assert len(examples) == 12
    assert {piece.role for one in examples for piece in one.pieces()} == {"student", "teacher"}
    assert all(one.verification is not None for one in examples)


def test_a_budget_ends_the_data_of_every_arm_and_only_what_it_pays_for_is_learned(
    scripted: ScriptedTrainer,
) -> None:
    budget = {"kind": "tokens", "teacher_tokens": 90}
    compare = Compare(scripted, scripted.folder / "out", arms=ARMS, budget=budget)
    compare.run()
    # 20 tokens an answer: the fifth is paid in part. RFT asks each question twice.
    for name in ("teacher", "motab"):
        for path in compare.output.glob(f"examples/{name}-*/affordable.jsonl"):
            assert len(list(read_records(path))) == 5


def test_a_trial_estimates_what_the_plan_takes(scripted: ScriptedTrainer) -> None:
    compare = Compare(scripted, scripted.folder / "out", arms=ARMS)
    before = compare.run("--dry-run")
    assert "Not known (?), because the plan does not have assume.tokens.teacher." in before
    said = compare.run("--trial", "4").removeprefix(before)
    rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()]
    data = {row[2]: row for row in rows if row[1:2] == ["data"]}
    # 12 questions: 40 tokens of the student, 32 scored and 20 of the teacher, 6 calls.
    assert data["sft"][4:10] == ["to do", "~12", "~72", "~480", "~384", "~240"]
    assert data["rft"][5] == "~24"
    assert data["motab, clean"][5] == "~12"
    assert "from a trial of 4 questions" in said
    assert "?" not in said.rpartition("Together")[2]
    assert "from a trial of 4 questions" in compare.run("--trial", "4").removeprefix(said)
    smaller = compare.run("--trial", "2")
    assert (compare.output / "trial" / "3").exists()  # a batch at least
    assert "from a trial of 4 questions" in smaller
    assert not (compare.output / "data").exists()  # only the trial's own folder has any


def test_a_server_that_cannot_start_is_named_with_the_end_of_its_log(
    scripted: ScriptedTrainer,
) -> None:
    compare = Compare(scripted, scripted.folder / "out", arms=ARMS)
    text = compare.plan.read_text().replace("tests.support.trainer.fake_models", "no.such.module")
    compare.plan.write_text(text)
    assert compare.start().wait(PATIENCE_S) == 1
    assert "a server ended with code 1: the end of" in compare.said
    assert "No module named" in compare.said


def test_a_server_that_answers_before_it_is_started_is_refused(scripted: ScriptedTrainer) -> None:
    compare = Compare(scripted, scripted.folder / "out", arms=ARMS)
    (line,) = (one for one in compare.plan.read_text().splitlines() if "ready: http" in one)
    port = line.rpartition(":")[2].partition("/")[0]
    other = subprocess.Popen(
        [sys.executable, "-m", "tests.support.trainer.fake_models", port], cwd=ROOT
    )
    try:
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert other.poll() is None
            time.sleep(0.05)
        assert compare.start().wait(PATIENCE_S) == 1
        assert "answers before its server is started" in compare.said
    finally:
        other.kill()
        other.wait()
