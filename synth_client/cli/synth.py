"""The command `motab synth`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import orjson
import typer
from pydantic import JsonValue

from synth_client.cli import options
from synth_client.cli.shared import (
    check_output,
    log_console,
    parse_prices,
    say_dropped,
    say_failed,
    servers_of,
)
from synth_client.cluster.executor import Cluster, require_ray
from synth_client.files.workspace import Workspace
from synth_client.judging.rules import MATH, check_rule
from synth_client.judging.verifier import Limits
from synth_client.questions.dataset import open_dataset
from synth_client.questions.layout import Columns
from synth_client.questions.question import TOP_LEVEL, Synthesis
from synth_client.runs.outputs import Totals
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run, synthesise
from synth_client.training_data.filters import Filters

T = TypeVar("T")
_OPTIONS: Final = {"temperature": "--temperature", "top_p": "--top-p", "seed": "--seed"}
Executor = Literal["local", "ray"]


def synth_command(
    *,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A JSONL, JSON, CSV or Parquet file, a dataset's folder, or a Hugging Face name.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="The records, as JSON lines (OUT.jsonl).")
    ],
    base_url: options.BaseUrls,
    model: options.Model,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of every question.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The number of rows to take. Default: all.")
    ] = None,
    split: options.Split = "train",
    subset: options.Subset = None,
    question_column: options.QuestionColumn = None,
    answer_column: options.AnswerColumn = None,
    id_column: options.IdColumn = None,
    concurrency: options.Concurrency = 64,
    min_concurrency: options.MinConcurrency = 1,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A field of the motab object, such as teacher.top_p=0.9, or one of the request's"
            f" own: {', '.join(sorted(TOP_LEVEL))}. Repeat it.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The server is not motab's: no motab object, no trace.")
    ] = False,
    api_key: options.ApiKey = None,
    timeout: options.Timeout = 3600.0,
    executor: Annotated[
        Executor, typer.Option(help="Ask from this process, or from actors on a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the cluster, or auto. Default: RAY_ADDRESS, or a Ray of its own."
        ),
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option(min=1, help="The number of actors. Default: one on every node.")
    ] = None,
    resume: options.Resume = True,
    price: options.Prices = None,
    verify: Annotated[str, typer.Option(help=options.RULE_HELP)] = MATH,
    verify_timeout: options.JudgingSeconds = 10.0,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Only matching records stay; the others go to OUT.dropped.jsonl. "
            + options.FILTER_HELP,
        ),
    ] = None,
    progress_file: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Write the progress to this file, one JSON line a second."
        ),
    ] = None,
) -> None:
    """Synthesise trajectories for every row of a dataset. Run it again to resume."""
    cluster = _cluster(executor, ray_address, ray_workers)
    servers = servers_of(base_url, api_key, concurrency, min_concurrency)
    check_output(output, Path(source))
    params, fields = _params(param or ())
    if plain and params:
        message = f"--plain sends no motab object, so there is no --param {next(iter(params))}"
        raise typer.BadParameter(message)
    run = Run(
        dataset=open_dataset(
            source,
            limit=limit,
            split=split,
            subset=subset,
            columns=Columns(question_column, answer_column, id_column),
        ),
        output=output,
        servers=servers,
        synthesis=Synthesis(
            model=model,
            params=params,
            fields=fields,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
            plain=plain,
            timeout_s=timeout,
        ),
        num_samples=n,
        cluster=cluster,
        fresh=not resume,
        prices=parse_prices(price),
        progress_file=progress_file,
        verify=check_rule(verify),
        verify_limits=Limits(seconds=verify_timeout),
        filters=Filters(filters or ()),
    )
    _say(run_loop(synthesise(run, log_console())), Workspace(output))


def _cluster(executor: Executor, address: str | None, num_workers: int | None) -> Cluster | None:
    if executor == "local":
        for name, value in (("--ray-address", address), ("--ray-workers", num_workers)):
            if value is not None:
                raise typer.BadParameter(f"{name} needs --executor ray")
        return None
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        raise typer.BadParameter(
            f"--ray-address {address}: Ray Client cannot read this machine's files;"
            " run motab on a node of the cluster, with HOST:PORT or auto"
        )
    require_ray()
    return Cluster(address, num_workers)


def _say(totals: Totals, workspace: Workspace) -> None:
    records = "record" if totals.num_records == 1 else "records"
    typer.echo(f"{totals.num_records:,} {records} in {workspace.output}")
    if totals.kept.num_dropped:
        say_dropped(totals.kept)
        typer.echo(f"the {totals.kept.num_dropped:,} dropped records are in {workspace.dropped}")
    say_failed(totals.num_failed, workspace.failed)
    if not totals.num_records:
        raise typer.Exit(1)


def _params(texts: Iterable[str]) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """Return the fields of the `motab` object, and those next to it. A.B is the field B of A."""
    params: dict[str, JsonValue] = {}
    fields: dict[str, JsonValue] = {}
    for text in texts:
        path, value = _param(text)
        if path in _OPTIONS:
            raise typer.BadParameter(f"--param {text}: write {_OPTIONS[path]} {value}")
        if path == "reference":
            raise typer.BadParameter(f"--param {text}: a row's answer is sent as its reference")
        name, _, inner = path.partition(".")
        place = fields if name in TOP_LEVEL else params
        if not inner:
            place[name] = value
            continue
        outer = place.setdefault(name, {})
        if not isinstance(outer, dict):
            raise typer.BadParameter(f"--param {text}: {name} is {outer!r} already")
        outer[inner] = value
    if not isinstance(kwargs := fields.get("chat_template_kwargs", {}), dict):
        message = f"chat_template_kwargs is {kwargs!r}: write chat_template_kwargs.NAME=VALUE"
        raise typer.BadParameter(f"--param {message}")
    if not isinstance(effort := fields.get("reasoning_effort", ""), str):
        raise typer.BadParameter(f"--param reasoning_effort is {effort!r}, and must be a word")
    return params, fields


def _param(text: str) -> tuple[str, JsonValue]:
    """A value that is no JSON is a text."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise typer.BadParameter(f"--param {text}: write NAME=VALUE")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
