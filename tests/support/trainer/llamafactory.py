"""Runs scripts in the trainer's environment, and `motab train`."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import psutil

from tests.support.paths import ROOT
from tests.support.records import record_of, unbroken
from tests.support.synth_client.exports import written

PYTHON = ROOT / ".venv-trainer" / "bin" / "python"


def in_trainer(script: str, *arguments: Path | str, python: Path = PYTHON) -> str:
    """Return what a script of tests/trainer prints in the trainer's environment, offline."""
    settings = {"PYTHONPATH": str(ROOT / "trainer" / "stand_ins"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, ROOT / "tests" / "trainer" / script, *arguments],
        env={**os.environ, **settings},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def recipe_of(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    records = [
        record_of(unbroken(id=f"{i}", messages=[{"role": "user", "content": f"{i} + {i}?"}]))
        for i in range(12)
    ]
    fields: dict[str, Any] = {
        "model": str(model),
        "data": {"kind": "records", "path": str(written(folder / "records.jsonl", records))},
        "training": {
            "epochs": 8,
            "batch_size": 4,
            "max_tokens": 256,
            "learning_rate": 5e-3,
            "save_every": 6,
        },
        "hardware": {"kind": "cpu", "per_device": 4},
        "output": str(folder / "out"),
    }
    return fields | changes


class Motab:
    """`motab train`, with this folder's recipe."""

    def __init__(self, folder: Path, python: Path = PYTHON) -> None:
        self.output = folder / "out"
        self._log = folder / "said"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "motab",
                    "train",
                    str(folder / "recipe.yaml"),
                    "--python",
                    str(python),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def log(self) -> list[dict[str, Any]]:
        path = self.output / "model" / "trainer_log.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [orjson.loads(line) for line in lines]

    def wait(self) -> int:
        return self.process.wait(timeout=1100)

    def trainer(self) -> psutil.Process:
        """The trainer once it has made a checkpoint."""
        while not list(self.output.glob("model/checkpoint-*/trainer_state.json")):
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        (child,) = psutil.Process(self.process.pid).children()
        return child
