"""Checks that the trainer's environment, the models and this machine can do what a recipe asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from trainer.environments import FOREIGN, ScriptFailed, ask_script, trainer_variables
from trainer.errors import RecipeError, TrainerMissing
from trainer.training.llamafactory import located
from trainer.training.recipe import (
    AutoHardware,
    CpuHardware,
    GpuHardware,
    Hardware,
    OnPolicyLoss,
    Recipe,
    accumulation_of,
)

# In float32: weights, gradients and AdamW's two moments. ZeRO-3 in bfloat16 needs the same.
_BYTES_PER_PARAMETER: Final = 16
_BYTES_OF_A_TEACHER: Final = {"cpu": 4, "gpu": 2}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this machine."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Environment:
    """The packages, models and GPUs to train with.

    `max_positions` is the smaller of the student's and the teacher's, None if neither model has it;
    `teacher_parameters` is 0 without a teacher.
    """

    python: Path
    versions: Mapping[str, str]
    gpus: tuple[Gpu, ...]
    num_parameters: int
    max_positions: int | None
    teacher_parameters: int = 0


def inspect_environment(python: Path, recipe: Recipe) -> Environment:
    """Inspect the environment and the models. Raises `RecipeError` if a model cannot be used."""
    _check_model("model", recipe.model)
    command = [str(python), str(FOREIGN / "inspect_models.py"), located(recipe.model)]
    if recipe.template is not None:
        command += ["--template", recipe.template]
    if isinstance(recipe.loss, OnPolicyLoss):
        _check_model("loss.teacher", recipe.loss.teacher)
        command += ["--teacher", located(recipe.loss.teacher)]
    try:
        answer = ask_script(command, trainer_variables(python, recipe.trainer))
    except OSError as error:
        raise TrainerMissing(f"{python}: {error.strerror}") from error
    except ScriptFailed as error:
        raise TrainerMissing(f"{python}: cannot be used to train: {error.reason}") from error
    if "error" in answer:
        kind = TrainerMissing if answer["error"].startswith("environment:") else RecipeError
        raise kind(answer["error"].replace("environment:", f"{python}:", 1))
    return Environment(
        python,
        answer["versions"],
        tuple(Gpu(gpu["name"], gpu["bytes"]) for gpu in answer["gpus"]),
        answer["num_parameters"],
        answer["max_positions"],
        answer.get("teacher_parameters", 0),
    )


def _check_model(key: str, model: str) -> None:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RecipeError(f"{key}: {model} is not a model's folder: it has no config.json")
    elif model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise RecipeError(f"{key}: {model}: neither a folder nor a Hugging Face name (ORG/NAME)")


def fitted(recipe: Recipe, environment: Environment) -> Hardware:
    """Return the hardware to train on. Raises if the machine or the environment lacks something."""
    positions = environment.max_positions
    if positions is not None and recipe.training.max_tokens > positions:
        raise RecipeError(
            f"training.max_tokens: {recipe.training.max_tokens} is more than the {positions}"
            " positions of the model"
        )
    hardware = _chosen(recipe.hardware, environment)
    try:
        accumulation_of(recipe.training, hardware)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if isinstance(hardware, GpuHardware):
        _check_gpus(hardware, environment)
    _check_memory(hardware, environment)
    return hardware


def _chosen(hardware: AutoHardware | Hardware, environment: Environment) -> Hardware:
    if not isinstance(hardware, AutoHardware):
        return hardware
    if environment.gpus:
        gpus = len(environment.gpus)
        return GpuHardware(kind="gpu", gpus=gpus, per_device=hardware.per_device)
    return CpuHardware(kind="cpu", per_device=hardware.per_device)


def _check_gpus(hardware: GpuHardware, environment: Environment) -> None:
    there = len(environment.gpus)
    if hardware.gpus > there:
        raise RecipeError(
            f"hardware.gpus: {hardware.gpus} wanted, PyTorch {environment.versions.get('torch')}"
            f" sees only {there}; kind: cpu trains without GPUs"
        )
    wanted = {
        "deepspeed": hardware.zero3,
        "flash-attn": hardware.attention == "flash2",
        "liger-kernel": hardware.liger,
    }
    missing = [name for name, is_wanted in wanted.items() if is_wanted]
    missing = [name for name in missing if name not in environment.versions]
    if missing:
        raise TrainerMissing(
            f"{environment.python}: the recipe needs {', '.join(missing)}, not installed there"
        )


def _check_memory(hardware: Hardware, environment: Environment) -> None:
    """Check the least memory that a device needs; activations come on top of it."""
    needed = environment.num_parameters * _BYTES_PER_PARAMETER
    needed += environment.teacher_parameters * _BYTES_OF_A_TEACHER[hardware.kind]
    if isinstance(hardware, GpuHardware):
        needed //= hardware.gpus if hardware.zero3 else 1
        there = min(gpu.num_bytes for gpu in environment.gpus[: hardware.gpus])
        place, cure = "each GPU", "zero3 on more GPUs, or a smaller model"
    else:
        needed *= hardware.processes
        there = psutil.virtual_memory().available
        place, cure = "this machine", "fewer processes, or a smaller model"
    if needed > there:
        teacher = environment.teacher_parameters
        also = f" and a teacher's {teacher:,} weights" if teacher else ""
        raise RecipeError(
            f"out of memory: weights, gradients and moments of {environment.num_parameters:,}"
            f" parameters{also} take {needed / 1e9:.1f} GB, but {place} has {there / 1e9:.1f};"
            f" use {cure}"
        )
