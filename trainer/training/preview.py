"""Says what a training would do: its data, its command, the trainer's settings and the recipe."""

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from trainer.environments import trainer_python
from trainer.training.dataset import prepare
from trainer.training.hardware import fitted, inspect_environment
from trainer.training.launch import program_of
from trainer.training.recipe import OnPolicyLoss, Recipe, WeightedLoss
from trainer.training.run_folder import SETTINGS_FILES, trainer_settings
from trainer.training.trl import check


def preview(recipe: Recipe, python: Path | None) -> str:
    """Return what `train` would do, in lines. Everything is checked, and nothing is left behind.

    Raises what `train` raises before anything runs.
    """
    interpreter = trainer_python(python, recipe.trainer)
    output = recipe.output.resolve()
    with TemporaryDirectory(prefix="motab-") as scratch:
        dataset = prepare(recipe.data, Path(scratch), recipe.loss_by_span)
        if isinstance(recipe.loss, OnPolicyLoss):
            check(recipe, dataset)
        environment = inspect_environment(interpreter, recipe)
        hardware = fitted(recipe, environment)
        settings = _yaml(trainer_settings(recipe, hardware, dataset, output / "model"))
        if dataset.folder.is_relative_to(Path(scratch).resolve()):
            settings = settings.replace(str(dataset.folder), str(output / "data"))
    weighted = isinstance(recipe.loss_by_span, WeightedLoss)
    program = program_of(recipe.trainer, interpreter, hardware, weighted=weighted)
    variables = " ".join(f"{name}={value}" for name, value in program.devices.items())
    dropped = [f"  {number:,} dropped by {name}" for name, number in dataset.dropped.items()]
    return "\n".join(
        (
            f"data: {dataset.num_examples:,} examples from {dataset.source}",
            *dropped,
            f"model: {recipe.model}, {environment.num_parameters:,} parameters",
            f"folder: {output}",
            f"command: {variables} {shlex.join(program.command)}",
            f"\n# recipe.yaml, with all defaults\n{_yaml(recipe.model_dump(mode='json'))}",
            f"# {SETTINGS_FILES[recipe.trainer]}\n{settings}",
        )
    )


def _yaml(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
