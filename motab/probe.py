"""The command `motab probe`."""

from typing import Annotated

import orjson
import typer
from rich.console import Console

from motab.options import ConfigFile, Wait
from proxy.config import load_config
from proxy.probe.run import probe
from proxy.probe.table import show
from proxy.serving.serve import run


def probe_command(
    config: ConfigFile,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/probe.md) and no table.")
    ] = False,
    wait: Wait = 0.0,
) -> None:
    """Ask every upstream what it can do. Exit code 1 if a configured model cannot work."""
    loaded = load_config(config)
    with Console(stderr=True).status("Asking the upstreams ..."):
        report = run(probe(loaded, wait))
    if as_json:
        typer.echo(orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2))
    else:
        show(report, Console())
    if not report.can:
        raise typer.Exit(1)
