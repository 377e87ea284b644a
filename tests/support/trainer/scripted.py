"""Stands in for a training environment with shell scripts."""

from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from tests.support.records import breached, record_of, unbroken
from trainer.training.recipe import Recipe
from trainer.training.train import Trained, train

FOUND = {
    "versions": {"llamafactory": "0.9.5", "torch": "2.13.0"},
    "gpus": [],
    "num_parameters": 1000,
    "max_positions": 4096,
}
# Writes a checkpoint and tells a loss, as LLaMA-Factory does.
STEP = """mkdir -p model/checkpoint-3
echo '{"current_steps": 3, "total_steps": 6, "loss": 1.5}' >> model/trainer_log.jsonl
echo '{}' > model/checkpoint-3/trainer_state.json
"""


class ScriptedTrainer:
    """An environment whose programs are shell scripts, and a recipe for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.python.parent.mkdir()
        self.output = folder / "out"
        self.records = folder / "records.jsonl"
        self.records.write_bytes(
            record_of(breached()).to_json_line() + record_of(unbroken()).to_json_line()
        )
        model = folder / "model"
        model.mkdir()
        (model / "config.json").touch()
        self.finds(FOUND)
        self.trains(STEP)

    def finds(self, found: dict[str, Any]) -> None:
        self._write("python", f"echo noise; echo '{orjson.dumps(found).decode()}'")

    def distils(self, script: str) -> None:
        """The same Python is asked what is there, and runs TRL."""
        asked = f"echo '{orjson.dumps(FOUND).decode()}'"
        self._write("python", f"case $1 in *inspect_models.py) {asked};; *) {script};; esac")

    def trains(self, script: str) -> None:
        self._write("llamafactory-cli", script)

    def _write(self, name: str, script: str) -> None:
        path = self.python.with_name(name)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def recipe(self, **changes: Any) -> Recipe:
        fields: dict[str, Any] = {
            "model": str(self.folder / "model"),
            "data": {"kind": "records", "path": str(self.records)},
            "training": {"max_tokens": 512},
            "hardware": {"kind": "cpu"},
            "output": str(self.output),
        }
        return Recipe.model_validate(fields | changes)

    def on_policy(self, **changes: Any) -> dict[str, Any]:
        """The changes that make a recipe distil."""
        teacher = str(self.folder / "model")
        loss = {"kind": "on_policy", "teacher": teacher, "max_new_tokens": 64}
        return {"loss": loss, "training": {"max_tokens": 512, "batch_size": 2}} | changes

    def train(self, *, resume: bool = True, **changes: Any) -> Trained:
        with (self.folder / "said").open("a", encoding="utf-8") as file:
            console = Console(file=file)
            recipe = self.recipe(**changes)
            return train(recipe, python=self.python, resume=resume, console=console)

    @property
    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((self.output / "run.json").read_bytes())
        return found
