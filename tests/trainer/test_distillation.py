"""`motab train` on-policy with TRL itself, on the CPU, with tiny random models."""

from pathlib import Path
from statistics import fmean

import orjson
import psutil
import pytest
import yaml

from synth_client.training_data.export import Export, export
from synth_client.training_data.filters import Filters
from tests.support.paths import ROOT
from tests.support.synth_client.exports import written
from tests.support.trainer.llamafactory import Motab, in_trainer, recipe_of
from trainer.training.dataset import Dataset
from trainer.training.recipe import CpuHardware, GpuHardware, OnPolicyLoss, load_recipe
from trainer.training.trl import distillation_of

PYTHON = ROOT / ".venv-reference" / "bin" / "python"
NUM_STEPS = 24


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `student`, `teacher` and `stranger`, whose vocabulary is another."""
    folder = tmp_path_factory.mktemp("models")
    in_trainer("make_model.py", folder / "student")
    in_trainer("make_model.py", folder / "teacher", "--seed", "1", "--spread", "0.2")
    in_trainer("make_model.py", folder / "stranger", "--merges", "in", "th")
    return folder


def write_recipe(models: Path, teacher: str, folder: Path) -> None:
    loss = {
        "kind": "on_policy",
        "teacher": str(models / teacher),
        "share": 0.8,
        "top_k": 100,
        "max_new_tokens": 24,
    }
    # Half a batch at once, so that passes are accumulated.
    hardware = {"kind": "cpu", "per_device": 2}
    recipe = recipe_of(models / "student", folder, loss=loss, hardware=hardware)
    # The eighth step is in the middle of an epoch, so that batches are skipped.
    recipe["training"]["save_every"] = 8
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def test_a_student_nears_its_teacher_and_goes_on_after_a_kill(models: Path, tmp_path: Path) -> None:
    write_recipe(models, "teacher", tmp_path)
    first = Motab(tmp_path, PYTHON)
    trainer = first.trainer()
    trainer.suspend()
    first.process.kill()
    first.wait()
    trainer.kill()
    psutil.wait_procs([trainer])

    second = Motab(tmp_path, PYTHON)
    assert second.wait() == 0, second.said
    losses = {line["current_steps"]: line["loss"] for line in second.log if "loss" in line}
    assert sorted(losses) == list(range(1, NUM_STEPS + 1))
    # A random teacher cannot be guessed, only followed in which tokens it likes.
    begin, end = (fmean(losses[first + i] for i in range(6)) for first in (1, NUM_STEPS - 5))
    assert end < 0.94 * begin
    run = orjson.loads((second.output / "run.json").read_bytes())
    killed, resumed = run["sessions"]
    assert (killed["resumed_from"], killed["exit_code"]) == (None, None)
    assert resumed["resumed_from"] in {8, 16}
    assert resumed["exit_code"] == 0
    assert run["versions"]["trl"] == "1.16.0"
    assert f"{NUM_STEPS} steps, loss " in second.said
    there = {path.name for path in (second.output / "model").iterdir()}
    assert {"model.safetensors", "tokenizer.json"} <= there


def test_trl_knows_every_argument(tmp_path: Path) -> None:
    files = [tmp_path / "wrong.yaml"]
    files[0].write_text("arguments: {lerning_rate: 1, seed: 1}\n", encoding="utf-8")
    folder = tmp_path / "export"
    source = written(tmp_path / "records.jsonl")
    export(Export(source=source, output=folder, format="llamafactory", filters=Filters(())))
    dataset = Dataset(folder, "motab", source, "", 1)
    recipe = load_recipe(ROOT / "configs" / "recipes" / "tiny_on_policy.yaml")
    assert isinstance(recipe.loss, OnPolicyLoss)
    gpu = GpuHardware(kind="gpu", gpus=2, attention="flash2", liger=True, zero3=True)
    for hardware in (CpuHardware(kind="cpu"), gpu):
        settings = distillation_of(recipe, recipe.loss, hardware, dataset, tmp_path / "model")
        files.append(tmp_path / f"{hardware.kind}.yaml")
        files[-1].write_text(yaml.safe_dump(settings), encoding="utf-8")
    found = orjson.loads(in_trainer("known_arguments.py", *files, python=PYTHON).splitlines()[-1])
    assert found == {"wrong": ["lerning_rate"], "cpu": [], "gpu": []}


def test_a_teacher_with_another_vocabulary_is_refused(models: Path, tmp_path: Path) -> None:
    write_recipe(models, "stranger", tmp_path)
    refused = Motab(tmp_path, PYTHON)
    assert refused.wait() == 1
    (line,) = refused.said.splitlines()
    assert "different vocabularies (261 and 259 tokens, 259 the same)" in line
    assert "motab synth" in line
    assert not refused.output.exists()
