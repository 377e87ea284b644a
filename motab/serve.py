"""The command `motab serve`."""

import logging
from typing import Annotated, Any

import typer
from rich.console import Console

from motab.answers import JudgedAnswers
from motab.options import ConfigFile, Wait
from proxy.config import Config, load_config
from proxy.serving.logs import LogFormat, show_logs
from proxy.serving.serve import run, serve
from synth_client.judging.rules import MATH, check_rule


def serve_command(
    *,
    config: ConfigFile,
    host: Annotated[str | None, typer.Option(help="The address. Default: server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="The port. Default: server.port.")] = None,
    health_port: Annotated[
        int | None, typer.Option(help="A port for /health alone. Default: server.health_port.")
    ] = None,
    wait: Wait = 0.0,
    records: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Append every trajectory as a record. Default: server.records."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that serve the one address (above 1: on Linux).")
    ] = 1,
    verify: Annotated[
        str,
        typer.Option(
            help="The rule that reads answers, where one of several corrections is chosen: math,"
            " exact, choice, number or MODULE:FUNCTION."
        ),
    ] = MATH,
    log_format: Annotated[
        LogFormat, typer.Option(help="The log's lines; json has a line for every request, too.")
    ] = LogFormat.TEXT,
) -> None:
    """Serve the configured models behind an OpenAI-compatible API."""
    if log_format is LogFormat.JSON:
        show_logs(Console(stderr=True), logging.getLogger("proxy").level, log_format=LogFormat.JSON)
    asked = {"host": host, "port": port, "health_port": health_port}
    changes: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}

    def read() -> Config:
        loaded = load_config(config)
        if records is None:
            return loaded.with_server(changes)
        kept = loaded.server.records
        file = {**(kept.model_dump() if kept else {}), "file": records}
        return loaded.with_server({**changes, "records": file})

    loaded, rule = read(), check_rule(verify)
    if workers == 1:
        with JudgedAnswers(rule) as reader:
            run(serve(loaded, wait, reader, read))
        return
    from proxy.serving.supervisor import supervise  # noqa: PLC0415 - one process needs nothing of it

    supervise(loaded, wait, workers, ("motab.worker", rule), read)
