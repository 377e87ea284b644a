"""Runs the benchmark's scenarios and shows the results: `python -m benchmarks`."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.figures import Findings, Scenario
from benchmarks.lag import TOO_LATE_MS, Lag
from benchmarks.load import together
from benchmarks.report import show, write
from benchmarks.scenarios.crowd import crowd
from benchmarks.scenarios.edges import edges
from benchmarks.scenarios.fleet import fleet
from benchmarks.scenarios.growth import growth
from benchmarks.scenarios.latency import latency
from benchmarks.scenarios.linear import linear
from benchmarks.scenarios.liveness import liveness
from benchmarks.scenarios.memory import held, memory
from benchmarks.scenarios.processor import processor
from benchmarks.scenarios.replicas import replicas
from benchmarks.scenarios.single import single
from benchmarks.scenarios.waste import waste

# Scenarios of a group run one after another, the groups of a stage at the same time. A single
# trajectory mostly waits, so scenarios with few streams can run alongside; the others run alone.
_STAGES: tuple[tuple[tuple[Scenario, ...], ...], ...] = (
    ((single,), (growth, waste)),
    ((fleet,),),
    ((processor,),),
    ((replicas,),),
    ((linear, edges),),
    ((latency,),),
    ((liveness,),),
    ((memory,),),
    ((held,),),
    ((crowd,),),
)
_NAMES = [scenario.__name__ for stage in _STAGES for group in stage for scenario in group]
_ONLY_IF_NAMED = {"crowd", "held"}
_console = Console(width=170)


def main(
    *,
    only: Annotated[list[str] | None, typer.Option(help="A scenario; may be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/bench"),
    quick: Annotated[bool, typer.Option("--quick", help="Small, for development.")] = False,
) -> None:
    """Measure the proxy against simulated upstreams and next to the published loop."""
    unknown = set(only or ()) - set(_NAMES)
    if unknown:
        raise typer.BadParameter(f"scenarios are {', '.join(_NAMES)}", param_hint="--only")
    logging.basicConfig(level=logging.WARNING)
    run = _Run(set(only or set(_NAMES) - _ONLY_IF_NAMED), output, quick=quick)
    uvloop.run(run.all())
    show(run.findings, _console)
    _console.print(f"{run.seconds:.0f} s; {output / 'bench.json'}, {output / 'bench.html'}")
    if run.failures:
        raise typer.Exit(1)


@dataclass(slots=True)
class _Run:
    """Runs the chosen scenarios and writes the findings after each of them."""

    wanted: set[str]
    output: Path
    quick: bool = field(kw_only=True)
    findings: dict[str, Findings] = field(init=False, default_factory=dict)
    failures: list[str] = field(init=False, default_factory=list)
    _started: float = field(init=False, default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    async def all(self) -> None:
        """Run one stage after another."""
        for stage in _STAGES:
            await together(self._group(scenarios) for scenarios in stage)

    async def _group(self, scenarios: tuple[Scenario, ...]) -> None:
        for scenario in scenarios:
            if scenario.__name__ in self.wanted:
                await self._one(scenario.__name__, scenario)

    async def _one(self, name: str, scenario: Scenario) -> None:
        """Run a scenario; a failure is shown, and does not cost the figures of the others."""
        began, lag = self.seconds, Lag()
        watching = asyncio.create_task(lag.watch())
        try:
            self.findings[name] = await scenario(quick=self.quick)
        except Exception:  # noqa: BLE001 - any failure is shown, and sets the exit code
            self.failures.append(name)
            _console.print_exception()
            return
        finally:
            watching.cancel()
        late = self.findings[name].conditions["late wake-ups, p99 ms"] = lag.p99_ms()
        if late > TOO_LATE_MS:
            message = f"{name}: the machine was busy (wake-ups {late:.0f} ms late): measure again"
            _console.print(message, style="yellow")
        _console.print(f"{name}: {self.seconds - began:.0f} s", style="dim")
        write(self.findings, self.output, quick=self.quick, seconds=self.seconds)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
