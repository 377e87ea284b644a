"""Defines the options that several commands of the trainer take."""

from typing import Any

import typer


def python_option(variable: str, packages: str, found_in: str) -> Any:  # noqa: ANN401 - as Typer has it
    """Return the option for the interpreter of an environment that holds `packages`."""
    return typer.Option(
        envvar=variable,
        help=f"The Python of an environment with {packages}.",
        show_default=found_in,
    )
