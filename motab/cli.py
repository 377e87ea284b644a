"""The command `motab`."""

import logging
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from motab.demo import DemoPair, demo
from proxy import __version__
from proxy.config import Config, load_config
from proxy.errors import MotabError
from proxy.probe.run import probe
from proxy.probe.table import show
from proxy.serving.logs import show_logs
from proxy.serving.serve import run, serve
from synth_client.cli.records import export_command, filter_command, verify_command
from synth_client.cli.report import report_command, rescore_command
from synth_client.cli.score import score_command
from synth_client.cli.synth import synth_command
from synth_client.errors import ClientError
from trainer.cli.evaluate import eval_command
from trainer.cli.reproduce import reproduce_command
from trainer.cli.train import train_command

app = typer.Typer(
    help="Distil reasoning without exposure bias: MOTAB decoding in front of any LLM servers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)


def main() -> None:
    """Run the command. Exit code 0, 1 failed, 2 usage."""
    try:
        app()
    except (MotabError, ClientError) as error:
        _errors.print(f"motab: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from error


def _version(wanted: bool) -> None:  # noqa: FBT001
    if wanted:
        typer.echo(f"motab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log everything, the embedded servers' output too.")
    ] = False,
) -> None:
    show_logs(_errors, logging.DEBUG if verbose else logging.INFO)


@app.command("serve")
def serve_command(
    config: Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")],
    host: Annotated[str | None, typer.Option(help="The address. Default: server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="The port. Default: server.port.")] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for upstreams that are still starting.")
    ] = 0.0,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that serve the one address (above 1: on Linux).")
    ] = 1,
) -> None:
    """Serve the configured models behind an OpenAI-compatible API."""
    loaded = _with_address(load_config(config), host, port)
    if workers == 1:
        run(serve(loaded, wait))
        return
    from proxy.serving.supervisor import supervise  # noqa: PLC0415 - one process needs nothing of it

    supervise(loaded, wait, workers)


def _with_address(config: Config, host: str | None, port: int | None) -> Config:
    """The configuration with the command line's address, checked like the file's."""
    asked = {"host": host, "port": port}
    changes = {key: value for key, value in asked.items() if value is not None}
    return config.with_server(changes)


@app.command("probe")
def probe_command(
    config: Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/probe.md) and no table.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for upstreams that are still starting.")
    ] = 0.0,
) -> None:
    """Ask every upstream what it can do. Exit code 1 if a configured model cannot work."""
    loaded = load_config(config)
    with _errors.status("Asking the upstreams ..."):
        report = run(probe(loaded, wait))
    if as_json:
        typer.echo(orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2))
    else:
        show(report, Console())
    if not report.can:
        raise typer.Exit(1)


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option(help="The folder for records and report.")] = Path(
        "runs/demo"
    ),
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="The number of bundled questions to take. Default: all."),
    ] = None,
    pair: Annotated[
        DemoPair, typer.Option(help="The models: two made for the questions, or pretrained ones.")
    ] = DemoPair.TINY,
) -> None:
    """Synthesise the bundled questions with two small real models and show the trajectories."""
    output.mkdir(parents=True, exist_ok=True)
    run(demo(pair, output, limit, Console()))


app.command("synth")(synth_command)
app.command("verify")(verify_command)
app.command("filter")(filter_command)
app.command("export")(export_command)
app.command("report")(report_command)
app.command("rescore")(rescore_command)
app.command("score")(score_command)
app.command("eval")(eval_command)
app.command("train")(train_command)
app.command("reproduce")(reproduce_command)
