from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.proxy.configs import complaint_of, with_value, written
from tests.support.trainer.recipes import FILE
from trainer.errors import RecipeError
from trainer.training.dataset import Dataset
from trainer.training.llamafactory import settings_of
from trainer.training.recipe import AutoHardware, CpuHardware, GpuHardware, Recipe, load_recipe

RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
GOLDEN = ROOT / "tests" / "golden" / "llamafactory-0.9.5"
DATASET = Dataset(Path("/runs/student/data"), "motab", Path("records.jsonl"), "", 1)


def changed(path: str, value: object) -> dict[str, Any]:
    """The file with another value at this path; keys are divided by dots."""
    return with_value(FILE, path.split("."), value)


def loaded(content: object, folder: Path) -> Recipe:
    return load_recipe(written(content, folder / "recipe.yaml"))


def complaint(content: object, folder: Path) -> str:
    return complaint_of(load_recipe, written(content, folder / "recipe.yaml"), RecipeError)


def settings(recipe: Recipe, hardware: CpuHardware | GpuHardware) -> dict[str, Any]:
    return settings_of(recipe, hardware, DATASET, Path("/runs/student/model"))


def test_the_papers_recipe_becomes_these_settings() -> None:
    recipe = load_recipe(ROOT / "configs" / "recipes" / "qwen3_4b.yaml")
    assert isinstance(recipe.hardware, GpuHardware)
    golden = yaml.safe_load((GOLDEN / "qwen3_4b.yaml").read_text(encoding="utf-8"))
    assert settings(recipe, recipe.hardware) == golden


def test_what_is_left_out_is_the_papers(tmp_path: Path) -> None:
    written = load_recipe(ROOT / "configs" / "recipes" / "qwen3_4b.yaml").training
    assert loaded(FILE, tmp_path).training == written.model_copy(update={"packing": "none"})


def test_without_hardware_the_machine_decides(tmp_path: Path) -> None:
    assert loaded(FILE, tmp_path).hardware == AutoHardware()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_opens_with_the_command_that_runs_it(path: Path) -> None:
    load_recipe(path)
    said = path.read_text(encoding="utf-8")
    assert f"#   motab train {path.relative_to(ROOT)}" in said


def test_on_the_cpu_nothing_of_a_gpu_is_asked_for(tmp_path: Path) -> None:
    recipe = loaded(changed("training.batch_size", 8), tmp_path)
    found = settings(recipe, CpuHardware(kind="cpu", processes=2, per_device=2))
    assert (found["use_cpu"], found["bf16"], found["flash_attn"]) == (True, False, "sdpa")
    assert found["gradient_accumulation_steps"] == 2
    assert found.keys().isdisjoint({"template", "deepspeed", "enable_liger_kernel", "max_steps"})


@pytest.mark.parametrize(
    ("path", "value", "key", "expected"),
    [
        ("loss", {"kind": "dft"}, "use_dft_loss", True),
        ("loss", {"kind": "sft", "learn_history": False}, "mask_history", True),
        ("training.packing", "neat", "neat_packing", True),
        ("training.max_steps", 3, "max_steps", 3),
        ("template", "qwen3", "template", "qwen3"),
        ("model", ".", "model_name_or_path", str(Path.cwd())),
    ],
)
def test_every_choice_reaches_llamafactory(
    path: str, value: object, key: str, expected: object, tmp_path: Path
) -> None:
    cpu = CpuHardware(kind="cpu")
    assert settings(loaded(FILE, tmp_path), cpu).get(key) != expected
    assert settings(loaded(changed(path, value), tmp_path), cpu)[key] == expected


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("modle", "x", "modle is not a known field; did you mean 'model'?"),
        ("training.lr", 1, "training.lr is not a known field"),
        ("data.filter", [], "data.filter is not a known field; did you mean 'filters'?"),
        ("data", {"path": "x"}, "data.kind is missing"),
        ("data.kind", "csv", "data.kind: must be 'records', 'export', not 'csv'"),
        (
            "loss",
            {"kind": "sft", "mask": "some"},
            "loss.mask: input should be 'all', 'correction' or 'unflawed'",
        ),
        ("hardware", {"kind": "gpu"}, "hardware.gpus is missing"),
        (
            "hardware",
            {"kind": "cpu", "processes": 3},
            (
                "training.batch_size: 32 cannot be divided by the 3 sequences that 3 device(s)"
                " take at once (hardware.per_device each)"
            ),
        ),
        (
            "training.learning_rate",
            1e-6,
            "training: min_learning_rate must be less than learning_rate",
        ),
        ("training.epochs", 0, "training.epochs: input should be greater than 0"),
        ("loss", {"kind": "on_policy"}, "loss.teacher is missing"),
        (
            "loss",
            {"kind": "on_policy", "teacher": "org/teacher", "mask": "all"},
            "loss.mask is not a known field",
        ),
        (
            "loss",
            {"kind": "on_policy", "teacher": "org/teacher", "max_new_tokens": 32768},
            (
                "loss.max_new_tokens: 32768 of the 32768 of training.max_tokens leave no room for a"
                " prompt"
            ),
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(
    path: str, value: object, sentence: str, tmp_path: Path
) -> None:
    assert complaint(changed(path, value), tmp_path) == sentence


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("template", "qwen3", "template: with loss.kind on_policy it is the tokenizer's own"),
        ("training.packing", "neat", "training.packing: loss.kind on_policy does not pack"),
        ("from_scratch", True, "from_scratch: loss.kind on_policy needs a student that can write"),
    ],
)
def test_what_on_policy_does_not_have_is_refused(
    path: str, value: object, sentence: str, tmp_path: Path
) -> None:
    content = changed(path, value) | {"loss": {"kind": "on_policy", "teacher": "org/teacher"}}
    assert complaint(content, tmp_path).startswith(sentence)


def test_a_misspelt_key_is_named_before_the_one_that_is_missing(tmp_path: Path) -> None:
    misspelt = {("modle" if key == "model" else key): value for key, value in FILE.items()}
    sentence = "modle is not a known field; did you mean 'model'? (and 1 more)"
    assert complaint(misspelt, tmp_path) == sentence


def test_a_missing_key_is_named_and_the_others_counted(tmp_path: Path) -> None:
    assert complaint({"output": "out"}, tmp_path) == "model is missing (and 1 more)"


def test_what_is_no_recipe_at_all_is_told(tmp_path: Path) -> None:
    assert complaint("[1]", tmp_path) == "must hold the keys model, data and output"
    assert complaint("a: [", tmp_path).startswith("not valid YAML: ")
    with pytest.raises(RecipeError, match=r"none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")
