"""The environment that trains: where it is, what it holds, and whether the recipe fits it.

LLaMA-Factory pins transformers apart from what serving wants and TRL from what TRL is now, so each
lives in a virtual environment of its own, and is looked at through a script that runs there.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import psutil

from synth_client.errors import ClientError
from trainer.errors import RecipeError, TrainerMissing
from trainer.recipe import (
    AutoHardware,
    CpuHardware,
    GpuHardware,
    Hardware,
    OnPolicyLoss,
    Recipe,
    Trainer,
    accumulation_of,
)
from trainer.settings import located

_HERE: Final = Path(__file__).parent
_FOLDERS: Final[dict[Trainer, str]] = {"llamafactory": ".venv-trainer", "trl": ".venv-reference"}
_TARGETS: Final[dict[Trainer, str]] = {"llamafactory": "train-env", "trl": "distill-env"}
# In float32: weights, gradients and AdamW's two moments. ZeRO-3 in bfloat16 comes to the same.
_BYTES_PER_PARAMETER: Final = 16
_BYTES_OF_A_TEACHER: Final = {"cpu": 4, "gpu": 2}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this machine."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Environment:
    """What there is to train with.

    `max_positions` is the least of student and teacher, None where no model says it;
    `teacher_parameters` is 0 without a teacher.
    """

    python: Path
    versions: Mapping[str, str]
    gpus: tuple[Gpu, ...]
    num_parameters: int
    max_positions: int | None
    teacher_parameters: int = 0


def find_python(asked: Path | None, trainer: Trainer = "llamafactory") -> Path:
    """The interpreter asked for, or that of the trainer's environment here or beside the source.

    Raises `TrainerMissing` that says how to make one.
    """
    hint = (
        f"make {_TARGETS[trainer]} makes it in motab's source, or name the Python of an environment"
        f" with {trainer} by --python or MOTAB_TRAINER_PYTHON"
    )
    return python_in(_FOLDERS[trainer], asked, missing=TrainerMissing, hint=hint)


def python_in(
    environment: str, asked: Path | None, *, missing: type[ClientError], hint: str
) -> Path:
    """The interpreter asked for, or that of an environment that `make` made here or beside the
    source. Raises `missing`, with a hint where there is no environment.
    """
    if asked is not None:
        if not os.access(asked, os.X_OK) or asked.is_dir():
            raise missing(f"--python {asked}: no such program")
        return asked.absolute()
    for folder in (Path.cwd(), _HERE.parent):
        python = folder / environment / "bin" / "python"
        if python.exists():
            return python
    raise missing(f"there is no {environment} here; {hint}")


def variables(python: Path, trainer: Trainer) -> dict[str, str]:
    """The variables with which programs of the environment run."""
    path = os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))
    # LLaMA-Factory imports torchaudio even where nothing is heard.
    stand_ins = [str(_HERE / "stand_ins")] if trainer == "llamafactory" else []
    above = [*stand_ins, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(above),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # TRL tells its authors what was run.
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def look(python: Path, recipe: Recipe) -> Environment:
    """Look around in the environment, and at the models. Raises `RecipeError` where it cannot."""
    _check_model("model", recipe.model)
    command = [str(python), str(_HERE / "inside" / "look.py"), located(recipe.model)]
    if recipe.template is not None:
        command += ["--template", recipe.template]
    if isinstance(recipe.loss, OnPolicyLoss):
        _check_model("loss.teacher", recipe.loss.teacher)
        command += ["--teacher", located(recipe.loss.teacher)]
    try:
        done = subprocess.run(  # noqa: S603 - the user's own interpreter
            command, env=variables(python, recipe.trainer), capture_output=True, check=False
        )
    except OSError as error:
        raise TrainerMissing(f"{python}: {error.strerror}") from error
    lines = done.stdout.splitlines()
    try:
        found = orjson.loads(lines[-1] if lines else b"")
    except orjson.JSONDecodeError as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit code {done.returncode}"
        raise TrainerMissing(f"{python}: cannot be used to train: {reason}") from error
    if "error" in found:
        kind = TrainerMissing if found["error"].startswith("environment:") else RecipeError
        raise kind(found["error"].replace("environment:", f"{python}:", 1))
    return Environment(
        python,
        found["versions"],
        tuple(Gpu(gpu["name"], gpu["bytes"]) for gpu in found["gpus"]),
        found["num_parameters"],
        found["max_positions"],
        found.get("teacher_parameters", 0),
    )


def _check_model(key: str, model: str) -> None:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RecipeError(f"{key}: {model} holds no model: it has no config.json")
    elif model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise RecipeError(f"{key}: {model}: no such folder, nor a Hugging Face name (ORG/NAME)")


def fitted(recipe: Recipe, environment: Environment) -> Hardware:
    """The hardware to train on. Raises where the machine or the environment lacks something."""
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
            f" sees {there}; kind: cpu trains without"
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
    """What a device must hold at the very least; activations come on top of it."""
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
            f" parameters{also} take {needed / 1e9:.1f} GB, {place} has {there / 1e9:.1f};"
            f" take {cure}"
        )
