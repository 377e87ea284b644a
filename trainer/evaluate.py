"""An evaluation: a plain run of the synthesis client, its answers judged, and pass@k of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from rich.console import Console

from synth_client.answer import EMPTY_OUTPUT
from synth_client.aside import AsideFile
from synth_client.errors import OutputError
from synth_client.failed import FailedRow
from synth_client.journal import reported
from synth_client.record import Record, faults_of, read_records
from synth_client.run import Run, synthesise
from synth_client.workspace import Workspace
from trainer.benchmark import Benchmark, Problem
from trainer.estimate import INTERVAL
from trainer.results import SCHEMA_VERSION, ProblemResult, Results, Sampling, table_of

RECORDS: Final = "records.jsonl"
RESULTS: Final = "results.json"
TABLE: Final = "results.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`run` asks `benchmark`, plainly, and writes the folder's records; `ks` are at most its n."""

    benchmark: Benchmark
    run: Run
    ks: Sequence[int]

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.run.output.parent


async def evaluate(evaluation: Evaluation, console: Console) -> Results:
    """Ask what is not asked yet, then write the results, which are also returned.

    Raises `ClientError` as `synthesise` does; what is done then stays done.
    """
    await synthesise(evaluation.run, console)
    results = results_of(evaluation)
    for name, content in (
        (RESULTS, results.to_json()),
        (TABLE, results.to_markdown().encode()),
    ):
        path = evaluation.folder / name
        with reported(path), AsideFile(path) as aside:
            aside.file.write(content)
            aside.publish()
    return results


def results_of(evaluation: Evaluation) -> Results:
    """The results of a run that has ended, from its files."""
    run, benchmark = evaluation.run, evaluation.benchmark
    counts: dict[str, Counter[str]] = {problem.id: Counter() for problem in benchmark.problems}
    served_as: set[str] = set()
    completion_tokens = 0
    for record in read_records(run.output):
        _add_record(counts[record.id], record)
        served_as.add(record.models.teacher or "")
        completion_tokens += record.usage.completion_tokens
    for failed in _failed_rows(Workspace(run.output).failed):
        # To say nothing is an answer, and a wrong one; no answer is none.
        is_empty = failed.error.code == EMPTY_OUTPUT
        counts[failed.id].update(["n", "num_empty"] if is_empty else ["num_failed"])
    problems = tuple(_result(problem, counts[problem.id]) for problem in benchmark.problems)
    synthesis = run.synthesis
    return Results(
        schema_version=SCHEMA_VERSION,
        motab_version=version("motab"),
        benchmark=benchmark.name,
        digest=benchmark.digest,
        model=synthesis.model,
        served_as=tuple(sorted(served_as)),
        sampling=Sampling(
            n=run.num_samples,
            temperature=synthesis.temperature,
            top_p=synthesis.top_p,
            max_tokens=synthesis.max_tokens,
            seed=synthesis.seed,
            prompt=benchmark.prompt,
        ),
        verify=run.verify,
        interval=INTERVAL,
        completion_tokens=completion_tokens,
        table=table_of(problems, evaluation.ks, INTERVAL),
        problems=problems,
    )


def _add_record(counts: Counter[str], record: Record) -> None:
    counts["num_truncated"] += record.finish_reason == "length"
    if record.correct is None:
        counts["num_unjudged"] += 1
    else:
        counts["n"] += 1
        counts["c"] += record.correct


def _failed_rows(path: Path) -> Iterator[FailedRow]:
    if not path.exists():
        return
    with reported(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield FailedRow.model_validate_json(line)
            except ValidationError as error:
                raise OutputError(f"{path}, line {number}: {faults_of(error)}") from error


def _result(problem: Problem, counts: Counter[str]) -> ProblemResult:
    return ProblemResult(
        id=problem.id,
        level=problem.level,
        subject=problem.subject,
        n=counts["n"],
        c=counts["c"],
        num_empty=counts["num_empty"],
        num_truncated=counts["num_truncated"],
        num_unjudged=counts["num_unjudged"],
        num_failed=counts["num_failed"],
    )
