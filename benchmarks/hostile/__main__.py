"""Runs the attacks on the proxy and shows what each cost it: `python -m benchmarks.hostile`.

To add attacks, write a module of this package as `before_authentication` and add its `ATTACKS`
below; attacks by files are functions of `reader`, named in `own_process`.
"""

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console

from benchmarks.hostile import before_authentication, hostile_bodies, own_process
from benchmarks.hostile.attack import Attack
from benchmarks.hostile.meter import Row, measure
from benchmarks.hostile.own_process import FileAttack
from benchmarks.hostile.table import failed, markdown

_ATTACKS: Final[tuple[Attack, ...]] = (
    *before_authentication.ATTACKS,
    *hostile_bodies.ATTACKS,
)
_NAMES: Final = [*(a.name for a in _ATTACKS), *(a.name for a in own_process.ATTACKS)]
_HERE: Final = Path(__file__).resolve().parents[2]
_MOST_MEMORY: Final = 1.5
_LATEST_MS: Final = 250.0
_console = Console(width=170, highlight=False)


def main(
    *,
    only: Annotated[list[str] | None, typer.Option(help="An attack; may be repeated.")] = None,
    code: Annotated[Path, typer.Option(help="The folder whose proxy is attacked.")] = _HERE,
    before: Annotated[
        Path | None, typer.Option(help="Results of an earlier proxy, for the table.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path(
        "runs/hostile/results.json"
    ),
    num_bytes: Annotated[int, typer.Option("--bytes", help="Sent in each attack.")] = 10_000_000,
) -> None:
    """Attack the proxy while others use it. Exit code 1 if it misses a target."""
    if unknown := set(only or ()) - set(_NAMES):
        raise typer.BadParameter(
            f"no {', '.join(unknown)}: attacks are {', '.join(_NAMES)}", param_hint="--only"
        )
    logging.basicConfig(level=logging.WARNING)
    chosen = [attack for attack in _ATTACKS if only is None or attack.name in only]
    by_file = [attack for attack in own_process.ATTACKS if only is None or attack.name in only]
    rows = asyncio.run(_all(chosen, by_file, num_bytes, code.resolve()))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(orjson.dumps([r.to_json() for r in rows], option=orjson.OPT_INDENT_2))
    earlier = [] if before is None else _read(before)
    typer.echo(markdown(earlier, rows))
    if missed := failed(rows, most_memory=_MOST_MEMORY, latest_ms=_LATEST_MS):
        typer.echo("\n".join(missed), err=True)
        raise typer.Exit(1)


async def _all(
    attacks: list[Attack], by_file: list[FileAttack], num_bytes: int, code: Path
) -> list[Row]:
    rows = []
    for attack in attacks:
        for access in attack.access:
            row = await measure(attack, access, num_bytes, code)
            _show(row)
            rows.append(row)
    for reading in by_file:
        row = await reading.measure(num_bytes, code)
        _show(row)
        rows.append(row)
    return rows


def _show(row: Row) -> None:
    line = f"{row.attack} ({row.access}): {row.answer}, {row.seconds:.1f} s"
    _console.print(f"{line}, {row.memory_ratio:.2f} times the memory", style="dim")


def _read(path: Path) -> list[Row]:
    return [Row.from_json(row) for row in orjson.loads(path.read_bytes())]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
