"""`motab demo`: the proxy with two small models, asked the bundled questions over HTTP."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from motab.answers import JudgedAnswers
from proxy.config import Config, load_config
from proxy.errors import MotabError
from proxy.serving.serve import run, running
from synth_client.asking.client import SynthClient
from synth_client.asking.errors import SynthesisError
from synth_client.files.atomic import AtomicFile, output_errors
from synth_client.judging.verifier import Verifier
from synth_client.questions.question import Question, Synthesis, units_of
from synth_client.report.report import write_report
from synth_client.report.terminal import legend, render_trajectory
from trajectory_records.record import Message, Record

MODEL = "motab/demo"
_RULE = "number"
# Two trajectories keep both cores busy; more would only share them.
_CONCURRENCY = 2
_NUM_OFFERED = 4


class DemoPair(StrEnum):
    """Who writes and who corrects: models trained for the bundled questions, or pretrained ones."""

    TINY = "tiny"
    PRETRAINED = "pretrained"


_STEMS = {DemoPair.TINY: "demo", DemoPair.PRETRAINED: "demo_pretrained"}
# Said before somebody asks a question of another kind, and takes the answer for a fault.
_CAN = {
    DemoPair.TINY: "These two do sums of five to seven numbers, such as 5 plus 83 less 5 - 7 + 11.",
    DemoPair.PRETRAINED: "These two write ordinary text, and are too small to be right.",
}
_TEMPERATURES = {DemoPair.TINY: 1.0, DemoPair.PRETRAINED: 0.6}


def demo_config(pair: DemoPair = DemoPair.TINY) -> Config:
    """The pair's configuration, on any free port."""
    with as_file(files("configs") / f"{_STEMS[pair]}.yaml") as path:
        return load_config(path).with_server({"port": 0})


def _dataset(pair: DemoPair) -> str:
    """The name of the file of the pair's bundled questions."""
    return f"{_STEMS[pair]}_questions.jsonl"


def demo_questions(pair: DemoPair = DemoPair.TINY) -> list[Question]:
    """The pair's bundled questions, with their answers."""
    bundled = files("configs") / _dataset(pair)
    lines = bundled.read_text(encoding="utf-8").splitlines()
    return [
        Question(
            id=row["id"],
            messages=(Message(role="user", content=row["question"]),),
            answer=row["answer"],
        )
        for row in map(json.loads, lines)
    ]


@dataclass(slots=True)
class _Tally:
    """The outcome of the questions so far."""

    records: list[Record]
    """What the pair wrote."""
    alone: list[Record]
    """What the student wrote with the same seed, without the teacher."""
    errors: list[str]


async def demo(
    pair: DemoPair, output: Path, limit: int | None, console: Console, *, serves: bool = False
) -> None:
    """Synthesise the questions into `output`: `records.jsonl` and `report.html`. With `serves` the
    proxy and its page stay until a signal.

    Raises `MotabError` where a question failed; the others' records are kept.
    """
    questions = demo_questions(pair)[:limit]
    page = {"runs": str(output), "questions": _offered(pair)}
    console.print("Starting the student and the teacher ...", style="dim")
    config = demo_config(pair).with_server({"page": page})
    with JudgedAnswers(_RULE) as reader:
        async with running(config, reader) as base_url:
            console.print(f"The proxy serves {MODEL} at {base_url}", style="dim")
            console.print(legend())
            with _progress(len(questions), console) as step:
                synthesis = Synthesis(model=MODEL, temperature=_TEMPERATURES[pair], seed=0)
                tally = await _synthesise(base_url, questions, synthesis, output, console, step)
            _finish(tally, output, _dataset(pair), console)
            if serves:
                url = base_url.removesuffix("/v1")
                console.print(f"\n{_CAN[pair]}", highlight=False)
                console.print(f"[bold]open {url} to watch[/] (Ctrl+C ends it)", highlight=False)
                await _until_signal()


def _offered(pair: DemoPair) -> list[str]:
    """The questions that the page offers."""
    return [question.messages[0].content for question in demo_questions(pair)[:_NUM_OFFERED]]


async def _until_signal() -> None:
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    await signalled.wait()


async def _synthesise(
    base_url: str,
    questions: Sequence[Question],
    synthesis: Synthesis,
    output: Path,
    console: Console,
    step: Callable[[int], None],
) -> _Tally:
    tally = _Tally([], [], [])
    waiting = iter([unit for asked in questions for unit in units_of(asked, synthesis, 1)])
    path = output / "records.jsonl"
    verifier = Verifier(_RULE)
    alone = replace(synthesis, params={"method": "student"})
    async with SynthClient(base_url, synthesis) as client, SynthClient(base_url, alone) as solo:
        # Whole or not at all: a demo that is stopped leaves the last complete one as it was.
        with output_errors(path), AtomicFile(path) as records:

            async def worker() -> None:
                for unit in waiting:
                    try:
                        record = verifier.verify(await client.synthesise(unit))
                        tally.alone.append(verifier.verify(await solo.synthesise(unit)))
                    except SynthesisError as error:
                        tally.errors.append(f"{unit.question.id}: {error}")
                        console.print(tally.errors[-1], style="red", markup=False)
                    else:
                        records.file.write(record.to_json_line())
                        tally.records.append(record)
                        console.print(render_trajectory(record, record.question))
                    step(sum(record.breach is not None for record in tally.records))

            async with asyncio.TaskGroup() as group:
                for _ in range(_CONCURRENCY):
                    group.create_task(worker())
            records.publish()
    return tally


@contextmanager
def _progress(total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Yield a function for the end of each question; it takes how many have strayed so far."""
    columns = (
        TextColumn("[bold]trajectories"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[strayed]} strayed"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, strayed=0)
        yield lambda strayed: progress.update(task, advance=1, strayed=strayed)


def _finish(tally: _Tally, output: Path, dataset: str, console: Console) -> None:
    records = sorted(tally.records, key=lambda record: record.id)
    write_report(records, output / "report.html", name=dataset, baseline=tally.alone)
    strayed = sum(record.breach is not None for record in records)
    went_back = sum(record.went_back for record in records)
    correct, alone = (
        sum(record.correct is True for record in written) for written in (records, tally.alone)
    )
    console.print(
        f"\n{len(records)} trajectories: {strayed} strayed and were corrected "
        f"({went_back} from a step before the breach).\n"
        f"{correct} end in the right answer; of what the student writes alone, {alone} do.\n"
        f"Records: {output / 'records.jsonl'}\nReport:  {output / 'report.html'}",
        highlight=False,
    )
    if tally.errors:
        raise MotabError(f"{len(tally.errors)} questions failed: {'; '.join(tally.errors)}")


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
    serve: Annotated[  # noqa: FBT002
        bool, typer.Option("--serve", help="Stay, and serve the page on which to watch the pair.")
    ] = False,
) -> None:
    """Synthesise the bundled questions with two small real models and show the trajectories."""
    output.mkdir(parents=True, exist_ok=True)
    run(demo(pair, output, limit, Console(), serves=serve))
