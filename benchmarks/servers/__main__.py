"""Measures servers that a user runs: `make bench-servers STUDENT_URL=... TEACHER_URL=...`."""

from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.report import show
from benchmarks.servers.found import CannotMeasure
from benchmarks.servers.measure import Wanted, measure

app = typer.Typer(pretty_exceptions_enable=False)
_LEVELS = (1, 16, 64, 256)


@app.command()
def main(
    *,
    student_url: Annotated[str, typer.Option(help="The student's server, without /v1.")],
    teacher_url: Annotated[str, typer.Option(help="The teacher's server, without /v1.")],
    student_model: Annotated[
        str | None, typer.Option(help="The student's name there. Default: the only one.")
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="The teacher's name there. Default: the only one.")
    ] = None,
    student_tokenizer: Annotated[
        str | None,
        typer.Option(help="Its folder or Hugging Face name. Default: what the server names."),
    ] = None,
    teacher_tokenizer: Annotated[str | None, typer.Option(help="The teacher's, likewise.")] = None,
    level: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Trajectories at once; may be repeated. Default: 1, 16, 64, 256."),
    ] = None,
    at_least: Annotated[
        int, typer.Option(min=1, help="Trajectories of a level that has fewer at once.")
    ] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a trajectory.")] = 512,
    base_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The threshold of the part with breaches.")
    ] = 0.2,
    simulators: Annotated[
        bool,
        typer.Option("--simulators", help="Repeat each level on simulators of the same speeds."),
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(
        "runs/bench-servers"
    ),
) -> None:
    """Measure plain student, motab and the published loop on servers that run."""
    wanted = Wanted(
        {"student": student_url, "teacher": teacher_url},
        {"student": student_model, "teacher": teacher_model},
        {"student": student_tokenizer, "teacher": teacher_tokenizer},
        level or _LEVELS,
        at_least,
        max_tokens,
        base_threshold,
        output,
        simulators=simulators,
    )
    try:
        found = uvloop.run(measure(wanted))
    except CannotMeasure as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    console = Console(width=170)
    show(found, console)
    console.print(", ".join(str(output / f"bench.{ext}") for ext in ("json", "html")))


if __name__ == "__main__":
    app()
