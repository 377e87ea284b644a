"""Defines the options that several of the proxy's commands take, with their help."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for upstreams that are still starting.")
]
KeyVariable = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The environment variable with the server's API key."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="A Hugging Face name, a folder or tiktoken:NAME. Default: the server's."),
]
ModelName = Annotated[
    str | None, typer.Option(help="The model's name at its server. Default: the only one.")
]
