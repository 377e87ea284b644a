"""Defines the options that several commands of the trainer take."""

from pathlib import Path
from typing import Annotated, Any

import typer


def python_option(variable: str, packages: str, found_in: str) -> Any:  # noqa: ANN401 - as Typer has it
    """Return the option for the interpreter of an environment that holds `packages`."""
    return typer.Option(
        envvar=variable,
        help=f"The Python of an environment with {packages}.",
        show_default=found_in,
    )


TrainerPython = Annotated[
    Path | None,
    python_option(
        "MOTAB_TRAINER_PYTHON",
        "llamafactory, or with trl for on_policy",
        ".venv-trainer/bin/python, or .venv-reference/bin/python",
    ),
]
EvalScopePython = Annotated[
    Path | None,
    python_option("MOTAB_EVALSCOPE_PYTHON", "evalscope", ".venv-evalscope/bin/python"),
]
