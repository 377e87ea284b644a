"""Finds the Python environments that `make` builds, and asks scripts that run in them.

LLaMA-Factory pins other versions of transformers than serving and TRL need, so each library lives
in its own virtual environment and is reached through the scripts of `trainer.foreign`.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from synth_client.errors import ClientError
from trainer.errors import TrainerMissing

Trainer = Literal["llamafactory", "trl"]

_SOURCE: Final = Path(__file__).parent
FOREIGN: Final = _SOURCE / "foreign"
"""The scripts that run in other environments."""
_FOLDERS: Final[dict[Trainer, str]] = {"llamafactory": ".venv-trainer", "trl": ".venv-reference"}
_TARGETS: Final[dict[Trainer, str]] = {"llamafactory": "train-env", "trl": "distill-env"}
_TAIL_LINES: Final = 30


class ScriptFailed(Exception):
    """A script printed no JSON. `exit_code` is never 0, `tail` holds its last words."""

    def __init__(self, exit_code: int, stderr: str) -> None:
        lines = stderr.strip().splitlines()
        self.exit_code = exit_code or 1
        self.reason = lines[-1] if lines else f"exit code {exit_code}"
        self.tail = "\n".join(lines[-_TAIL_LINES:])
        super().__init__(self.reason)


def ask_script(command: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Run a script and return the JSON object on the last line that it prints.

    Raises `ScriptFailed` if there is none, OSError if the program cannot be started.
    """
    done = subprocess.run(  # noqa: S603 - the user's own interpreter
        command, env=dict(variables), capture_output=True, check=False
    )
    lines = done.stdout.splitlines()
    try:
        found: dict[str, Any] = orjson.loads(lines[-1] if lines else b"")
    except orjson.JSONDecodeError as error:
        raise ScriptFailed(done.returncode, done.stderr.decode(errors="replace")) from error
    return found


def trainer_python(asked: Path | None, trainer: Trainer = "llamafactory") -> Path:
    """Return the given interpreter, or the one in the trainer's environment.

    Raises `TrainerMissing` with instructions to make the environment.
    """
    hint = (
        f"make {_TARGETS[trainer]} in motab's source makes it, or name the Python of an environment"
        f" with {trainer} by --python or MOTAB_TRAINER_PYTHON"
    )
    return python_in(_FOLDERS[trainer], asked, missing=TrainerMissing, hint=hint)


def python_in(
    environment: str, asked: Path | None, *, missing: type[ClientError], hint: str
) -> Path:
    """Return the given interpreter, or the one of an environment that `make` built in the current
    folder or next to the source. Raises `missing` with the hint if there is no environment.
    """
    if asked is not None:
        if not os.access(asked, os.X_OK) or asked.is_dir():
            raise missing(f"--python {asked}: no such program")
        return asked.absolute()
    for folder in (Path.cwd(), _SOURCE.parent):
        python = folder / environment / "bin" / "python"
        if python.exists():
            return python
    raise missing(f"there is no {environment} here; {hint}")


def trainer_variables(python: Path, trainer: Trainer) -> dict[str, str]:
    """Return the environment variables for programs of a trainer's environment."""
    path = os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))
    # LLaMA-Factory imports torchaudio even if no audio is used.
    stand_ins = [str(_SOURCE / "stand_ins")] if trainer == "llamafactory" else []
    above = [*stand_ins, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(above),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # TRL reports every run to its authors.
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
