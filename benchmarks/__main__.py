"""`python -m benchmarks`: runs the scenarios and says what was reached."""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.figures import Findings, Scenario
from benchmarks.load import together
from benchmarks.report import show, write
from benchmarks.scenarios.fleet import fleet
from benchmarks.scenarios.growth import growth
from benchmarks.scenarios.latency import latency
from benchmarks.scenarios.memory import memory
from benchmarks.scenarios.single import single
from benchmarks.scenarios.waste import waste

# Those of a group run one after another, the groups of a stage at the same time. A single
# trajectory mostly waits, so what needs few streams can run beside it; the rest has the machine.
_STAGES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("single",), ("growth", "waste")),
    (("fleet",),),
    (("latency",),),
    (("memory",),),
)
_SCENARIOS: dict[str, Scenario] = {
    "single": single,
    "growth": growth,
    "waste": waste,
    "fleet": fleet,
    "latency": latency,
    "memory": memory,
}
_console = Console(width=170)


def main(
    *,
    only: Annotated[list[str] | None, typer.Option(help="A scenario; may be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/bench"),
    quick: Annotated[bool, typer.Option("--quick", help="Small, for development.")] = False,
) -> None:
    """Measure the proxy against simulated upstreams and beside the published loop."""
    unknown = set(only or ()) - set(_SCENARIOS)
    if unknown:
        raise typer.BadParameter(f"there are {', '.join(_SCENARIOS)}", param_hint="--only")
    logging.basicConfig(level=logging.WARNING)
    started = time.perf_counter()
    failures: list[str] = []
    findings = uvloop.run(_run(set(only or _SCENARIOS), failures, quick=quick))
    seconds = time.perf_counter() - started
    show(findings, _console)
    write(findings, output, quick=quick, seconds=seconds)
    _console.print(f"{seconds:.0f} s; {output / 'bench.json'}, {output / 'bench.html'}")
    if failures:
        raise typer.Exit(1)


async def _run(wanted: set[str], failures: list[str], *, quick: bool) -> dict[str, Findings]:
    """What the scenarios found; one that fails is shown and does not cost the others' figures."""
    found: dict[str, Findings] = {}

    async def group(names: tuple[str, ...]) -> None:
        for name in names:
            if name in wanted:
                started = time.perf_counter()
                try:
                    found[name] = await _SCENARIOS[name](quick=quick)
                except Exception:  # noqa: BLE001 - whatever it was, the exit code tells, too
                    failures.append(name)
                    _console.print_exception()
                _console.print(f"{name}: {time.perf_counter() - started:.0f} s", style="dim")

    for stage in _STAGES:
        await together(group(names) for names in stage)
    return {name: found[name] for name in _SCENARIOS if name in found}


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
