"""`motab train` with LLaMA-Factory itself, on the CPU, with a tiny random model."""

from pathlib import Path

import orjson
import psutil
import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.trainer.llamafactory import PYTHON, Motab, in_trainer, recipe_of
from trainer.errors import RecipeError
from trainer.training.dataset import Dataset
from trainer.training.hardware import inspect_environment
from trainer.training.llamafactory import settings_of
from trainer.training.recipe import AutoHardware, Recipe, load_recipe

NUM_STEPS = 24


def test_a_student_learns_and_goes_on_after_a_kill(model: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_dump(recipe_of(model, tmp_path))
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    first = Motab(tmp_path)
    trainer = first.trainer()
    trainer.suspend()
    first.process.kill()
    first.wait()
    between = Motab(tmp_path)
    assert between.wait() == 1
    assert "another process trains there" in between.said
    trainer.kill()
    psutil.wait_procs([trainer])

    second = Motab(tmp_path)
    assert second.wait() == 0, second.said
    losses = {line["current_steps"]: line["loss"] for line in second.log if "loss" in line}
    assert sorted(losses) == list(range(1, NUM_STEPS + 1))
    assert losses[1] > 5  # log 259 is 5.6
    assert losses[NUM_STEPS] < 3
    run = orjson.loads((second.output / "run.json").read_bytes())
    killed, resumed = run["sessions"]
    assert (killed["resumed_from"], killed["exit_code"]) == (None, None)
    assert resumed["resumed_from"] in {6, 12, 18}
    assert resumed["exit_code"] == 0
    assert run["versions"]["llamafactory"] == "0.9.5"
    assert f"Continuing after step {resumed['resumed_from']}" in second.said
    assert f"{NUM_STEPS} steps, loss " in second.said
    there = {path.name for path in (second.output / "model").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "training_loss.png"} <= there


def test_llamafactory_knows_every_setting_of_the_recipes(tmp_path: Path) -> None:
    files = [tmp_path / "wrong.yaml"]
    files[0].write_text("template: none_such\nlerning_rate: 1\nseed: 1\n", encoding="utf-8")
    dataset = Dataset(tmp_path, "motab", tmp_path, "", 1)
    for path in sorted((ROOT / "configs" / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        if recipe.trainer != "llamafactory":
            continue
        assert not isinstance(recipe.hardware, AutoHardware)
        settings = settings_of(recipe, recipe.hardware, dataset, tmp_path / "model")
        files.append(tmp_path / path.name)
        files[-1].write_text(yaml.safe_dump(settings), encoding="utf-8")
    found = orjson.loads(in_trainer("known_settings.py", *files).splitlines()[-1])
    assert found.pop("wrong") == ["lerning_rate", "template none_such"]
    assert found == {path.stem: [] for path in files[1:]}


def test_the_model_is_looked_at_before_it_is_trained(model: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_of(model, tmp_path))
    found = inspect_environment(PYTHON, recipe)
    assert (found.num_parameters, found.max_positions, found.gpus) == (115392, 512, ())
    with pytest.raises(RecipeError, match=r"^template: LLaMA-Factory has no 'none_such'$"):
        inspect_environment(PYTHON, recipe.model_copy(update={"template": "none_such"}))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=f"^model: {broken}: "):
        inspect_environment(PYTHON, recipe.model_copy(update={"model": str(broken)}))
