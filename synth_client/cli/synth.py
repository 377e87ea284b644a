"""The command `motab synth`."""

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import orjson
import typer
from pydantic import JsonValue

from synth_client.cli.shared import (
    FILTER_HELP,
    RULE_HELP,
    check_url,
    log_console,
    parse_prices,
    say_dropped,
)
from synth_client.cluster.executor import Cluster, require_ray
from synth_client.files.workspace import Workspace
from synth_client.judging.rules import MATH, check_rule
from synth_client.judging.verifier import Limits
from synth_client.prices import PRICED
from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import Synthesis
from synth_client.runs.outputs import Totals
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run, synthesise
from synth_client.training_data.filters import Filters

T = TypeVar("T")
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
    base_url: Annotated[
        list[str], typer.Option(help="The proxy, with /v1. Repeat it for more than one.")
    ],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of every question.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows.")] = None,
    split: Annotated[str, typer.Option(help="The split of a dataset.")] = "train",
    subset: Annotated[str | None, typer.Option(help="The configuration of a dataset.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="The most requests at a time.")] = 64,
    min_concurrency: Annotated[int, typer.Option(min=1, help="The fewest, when it is cut.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="The student's. Left out, as the server has it.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Likewise.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of an output. Likewise.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Sample i is asked with this plus i.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A field of the motab object; repeat it."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The server is not motab's: no motab object, no trace.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=["MOTAB_API_KEY", "OPENAI_API_KEY"], show_envvar=True, help="The server's key."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one trajectory.")] = 3600.0,
    executor: Annotated[
        Executor, typer.Option(help="Ask from this process, or from actors on a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the cluster, or auto; else RAY_ADDRESS, else Ray is started here."
        ),
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option(min=1, help="The actors; by default one on every node.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh", help="Go on where the journal ends, or move all aside and start."
        ),
    ] = True,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=PRICE",
            help=f"For a million tokens; {', '.join(PRICED)}. Repeat it.",
        ),
    ] = None,
    verify: Annotated[str, typer.Option(help=RULE_HELP)] = MATH,
    verify_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for judging one answer.")
    ] = 10.0,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="What stays in the output; the rest goes to OUT.dropped.jsonl. " + FILTER_HELP,
        ),
    ] = None,
    progress_file: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="The progress as JSON lines, one a second."),
    ] = None,
) -> None:
    """Synthesise trajectories for every row of a dataset. Stopped, it goes on where it was."""
    cluster = _cluster(executor, ray_address, ray_workers)
    if min_concurrency > concurrency:
        raise typer.BadParameter("--min-concurrency is larger than --concurrency")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise typer.BadParameter("--output is the input itself")
    params = dict(_param(text) for text in param or [])
    if plain and params:
        raise typer.BadParameter("--plain sends no motab object, so there is no --param")
    run = Run(
        dataset=open_dataset(source, limit=limit, split=split, subset=subset),
        output=output,
        base_urls=tuple(check_url(url) for url in base_url),
        synthesis=Synthesis(
            model=model,
            params=params,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
            plain=plain,
            timeout_s=timeout,
        ),
        num_samples=n,
        concurrency=concurrency,
        min_concurrency=min_concurrency,
        api_key=api_key,
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
        typer.echo(f"the {totals.kept.num_dropped:,} that were dropped are in {workspace.dropped}")
    if totals.num_failed:
        typer.echo(
            f"{totals.num_failed:,} failed: {workspace.failed} says why, and the same command"
            " tries them again"
        )
    if not totals.num_records:
        raise typer.Exit(1)


def _param(text: str) -> tuple[str, JsonValue]:
    """A value that is no JSON is a text."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise typer.BadParameter(f"--param {text}: wanted is NAME=VALUE")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
