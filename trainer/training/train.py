"""Runs one training, from the recipe to the student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.environments import trainer_python
from trainer.errors import RunExists, TrainingFailed
from trainer.training.dataset import Dataset, discard, prepare, settle
from trainer.training.hardware import Environment, fitted, inspect_environment
from trainer.training.launch import launch, program_of
from trainer.training.llamafactory import settings_of
from trainer.training.progress import LOG, Display, Losses
from trainer.training.recipe import Hardware, OnPolicyLoss, Recipe, WeightedLoss
from trainer.training.run_folder import Checkpoint, RunFolder, difference, now, opened, run_of
from trainer.training.tokenise import weigh
from trainer.training.trl import check


@dataclass(frozen=True, slots=True)
class Trained:
    """The student's folder and the losses by step; `was_done` if nothing was left to do."""

    model: Path
    by_step: dict[int, float]
    was_done: bool


def train(recipe: Recipe, *, python: Path | None, resume: bool, console: Console) -> Trained:
    """Train, or continue a training of the same recipe on the same data.

    Raises before anything is run if the recipe cannot be trained, `TrainingFailed` after it, and
    KeyboardInterrupt when interrupted.
    """
    interpreter = trainer_python(python, recipe.trainer)
    with opened(recipe.output) as folder:
        dataset = prepare(recipe.data, folder.path, recipe.loss_by_span)
        try:
            if isinstance(recipe.loss, OnPolicyLoss):
                check(recipe, dataset)
            with console.status("Inspecting the environment and the model ..."):
                environment = inspect_environment(interpreter, recipe)
            hardware = fitted(recipe, environment)
            run = run_of(recipe, hardware, dataset, environment)
            sessions = _earlier(folder, run, resume=resume)
        except BaseException:
            discard(dataset)
            raise
        dataset = settle(dataset)
        losses = Losses(folder.model / LOG)
        if sessions and sessions[-1]["exit_code"] == 0:
            losses.read()
            return Trained(folder.model, losses.by_step, was_done=True)
        run["sessions"] = sessions
        _session(_Job(recipe, hardware, dataset, environment, folder, run), losses, console)
        return Trained(folder.model, losses.by_step, was_done=False)


@dataclass(frozen=True, slots=True)
class _Job:
    recipe: Recipe
    hardware: Hardware
    dataset: Dataset
    environment: Environment
    folder: RunFolder
    run: dict[str, Any]


def _earlier(folder: RunFolder, run: dict[str, Any], *, resume: bool) -> list[dict[str, Any]]:
    """Return the sessions of the training that this one continues."""
    before = folder.read()
    if before is None or not resume:
        folder.clear()
        return []
    other = difference(before, run)
    if other is not None:
        raise RunExists(
            f"{folder.path} holds another training ({other}); choose another output, or --no-resume"
            " to start over"
        )
    sessions: list[dict[str, Any]] = before["sessions"]
    return sessions


def _session(job: _Job, losses: Losses, console: Console) -> None:
    folder = job.folder
    checkpoint = folder.checkpoint()
    if checkpoint is None:
        folder.clear()  # LLaMA-Factory refuses a folder with a log but no checkpoint
    recipe, python, loss = job.recipe, job.environment.python, job.recipe.loss_by_span
    weighted = isinstance(loss, WeightedLoss)
    program = program_of(recipe.trainer, python, job.hardware, weighted=weighted)
    folder.write_settings(recipe, job.hardware, job.dataset, checkpoint)
    if loss is not None:
        settings = settings_of(recipe, job.hardware, job.dataset, folder.model)
        with console.status("Tokenising ..."):
            job.run["tokens"] = weigh(folder.path, python, loss, settings)
    session = {
        "started": now(),
        "command": program.command,
        "variables": program.devices,
        "resumed_from": None if checkpoint is None else checkpoint.step,
        "ended": None,
        "exit_code": None,
    }
    job.run["sessions"].append(session)
    folder.write(job.run)
    _say_begin(job, checkpoint, console)
    losses.read()
    losses.forget_after(0 if checkpoint is None else checkpoint.step)
    try:
        with Display(console, losses) as display:

            def show() -> None:
                if losses.read():
                    display.update()

            launch(folder, program, show)
        session["exit_code"] = 0
    except TrainingFailed as error:
        session["exit_code"] = error.exit_code
        raise
    except KeyboardInterrupt:
        session["exit_code"] = 130
        raise
    finally:
        session["ended"] = now()
        folder.write(job.run)


def _say_begin(job: _Job, checkpoint: Checkpoint | None, console: Console) -> None:
    kind = "CPU process" if job.hardware.kind == "cpu" else "GPU"
    console.print(
        f"{job.dataset.num_examples:,} examples, {job.environment.num_parameters:,} parameters,"
        f" {job.hardware.num_devices} {kind}(s); log in {job.folder.log}",
        highlight=False,
        soft_wrap=True,
    )
    if checkpoint is not None:
        console.print(f"Continuing after step {checkpoint.step}", highlight=False)
