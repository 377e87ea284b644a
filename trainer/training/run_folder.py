"""Manages the output folder: the settings of a run next to its results.

`run.json`, `recipe.yaml`, `llamafactory.yaml` or `trl.yaml`, `data/`, `train.log`, and under
`model/` the trainer's output: the student, its checkpoints, `trainer_log.jsonl`.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from synth_client.errors import OutputError
from synth_client.files.atomic import output_errors, write_whole
from trainer.environments import Trainer
from trainer.errors import RunExists
from trainer.training.dataset import Dataset
from trainer.training.hardware import Environment
from trainer.training.llamafactory import ZERO3, ZERO3_FILE, settings_of
from trainer.training.recipe import GpuHardware, Hardware, OnPolicyLoss, Recipe
from trainer.training.trl import distillation_of

SETTINGS_FILES: Final[dict[Trainer, str]] = {"llamafactory": "llamafactory.yaml", "trl": "trl.yaml"}
_RUN_FILE: Final = "run.json"
_LOCK_FILE: Final = ".lock"
_LOOK_EVERY_S: Final = 0.2
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
# How often checkpoints are written does not change what is learned.
_FREE: Final = {"output", "hardware"}
_FREE_TRAINING: Final = {"save_every", "keep"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint; `step` is the last step in it."""

    path: Path
    step: int


@contextmanager
def opened(output: Path) -> Iterator["RunFolder"]:
    """Open the folder, created if needed, for this process and the programs that it starts.

    Raises `RunExists` if something else is there, or another process is training. A new folder is
    removed again if the body fails before anything was run.
    """
    is_new = not output.exists()
    if not is_new and not output.is_dir():
        raise OutputError(f"{output} is a file, not a folder")
    folder = RunFolder(output.resolve())
    if not is_new and any(output.iterdir()) and not (output / _LOCK_FILE).exists():
        raise RunExists(f"{output} is not empty and is not a training; choose another output")
    try:
        with output_errors(output):
            output.mkdir(parents=True, exist_ok=True)
        with locked(
            folder.path / _LOCK_FILE, busy=f"{folder.path}: another process trains there"
        ) as folder.lock:
            yield folder
    finally:
        if is_new and output.is_dir() and folder.read() is None:
            shutil.rmtree(output)


class RunFolder:
    """`path` is absolute. `lock` is the descriptor that programs writing here inherit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.log = path / "train.log"
        self.lock = -1

    def read(self) -> dict[str, Any] | None:
        """Return the earlier run, None if there was none."""
        path = self.path / _RUN_FILE
        if not path.exists():
            return None
        with output_errors(path):
            content = path.read_bytes()
        try:
            found: dict[str, Any] = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise OutputError(f"{path}: not JSON: {error}") from error
        return found

    def write(self, run: Mapping[str, Any]) -> None:
        write_whole(self.path / _RUN_FILE, orjson.dumps(run, option=orjson.OPT_INDENT_2))

    def checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, and remove the incomplete ones."""
        best: Checkpoint | None = None
        for path in sorted(self.model.glob("checkpoint-*")):
            match = _CHECKPOINT.fullmatch(path.name)
            if match is None:
                continue
            if not _is_whole(path):
                with output_errors(path):
                    shutil.rmtree(path)
            elif best is None or int(match[1]) > best.step:
                best = Checkpoint(path, int(match[1]))
        return best

    def clear(self) -> None:
        """Remove all results so far."""
        with output_errors(self.path):
            shutil.rmtree(self.model, ignore_errors=True)
            self.log.unlink(missing_ok=True)

    def write_settings(
        self, recipe: Recipe, hardware: Hardware, dataset: Dataset, checkpoint: Checkpoint | None
    ) -> None:
        """Write the files that the trainer reads, and the recipe with all its defaults."""
        settings = trainer_settings(recipe, hardware, dataset, self.model)
        if checkpoint is not None:
            settings["resume_from_checkpoint"] = str(checkpoint.path)
        self._yaml(SETTINGS_FILES[recipe.trainer], settings)
        self._yaml("recipe.yaml", recipe.model_dump(mode="json"))
        if isinstance(hardware, GpuHardware) and hardware.zero3:
            write_whole(self.path / ZERO3_FILE, orjson.dumps(ZERO3, option=orjson.OPT_INDENT_2))

    def _yaml(self, name: str, content: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
        write_whole(self.path / name, text.encode())


def trainer_settings(
    recipe: Recipe, hardware: Hardware, dataset: Dataset, model_folder: Path
) -> dict[str, Any]:
    """Return the settings that LLaMA-Factory or TRL reads; the student goes to `model_folder`."""
    if isinstance(recipe.loss, OnPolicyLoss):
        return distillation_of(recipe, recipe.loss, hardware, dataset, model_folder)
    return settings_of(recipe, hardware, dataset, model_folder)


def run_of(
    recipe: Recipe, hardware: Hardware, dataset: Dataset, environment: Environment
) -> dict[str, Any]:
    """Return the content of `run.json`, except for the sessions."""
    return {
        "motab_version": version("motab"),
        "recipe": recipe.model_dump(mode="json"),
        "hardware": hardware.model_dump(mode="json"),
        "data": {
            "source": str(dataset.source.resolve()),
            "sha256": dataset.sha256,
            "num_examples": dataset.num_examples,
            "dropped": dict(dataset.dropped),
        },
        "python": str(environment.python),
        "versions": dict(environment.versions),
        "gpus": [asdict(gpu) for gpu in environment.gpus],
        "num_parameters": environment.num_parameters,
        "sessions": [],
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first key by which two runs differ too much for one to continue the other."""
    old, new = _decisive(before), _decisive(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key)}, is {new.get(key)}"
    return None


def _decisive(run: Mapping[str, Any]) -> dict[str, Any]:
    recipe = dict(run["recipe"])
    training = recipe.pop("training")
    found = {key: value for key, value in recipe.items() if key not in _FREE}
    found |= {f"training.{key}": training[key] for key in training.keys() - _FREE_TRAINING}
    found |= {f"hardware.{key}": value for key, value in run["hardware"].items()}
    return found | {"sha256 of the data": run["data"]["sha256"]}


def now() -> str:
    """Return the time in the format of `run.json`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete: the trainer's state is written last."""
    try:
        orjson.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return True


@contextmanager
def locked(path: Path, *, busy: str, patience_s: float = 0.0) -> Iterator[int]:
    """Hold the lock until every process that inherited it has ended.

    Raises `RunExists` that says what is `busy` if another process still has it after that time.
    """
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise RunExists(busy) from error
        time.sleep(_LOOK_EVERY_S)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
