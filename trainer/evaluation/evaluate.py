"""Evaluates a model: a plain run of the synthesis client, its answers judged, and pass@k."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import ValidationError
from rich.console import Console

from synth_client.asking.answer import EMPTY_OUTPUT
from synth_client.errors import OutputError
from synth_client.files.atomic import output_errors, write_whole
from synth_client.files.record_file import read_records
from synth_client.files.workspace import Workspace
from synth_client.judging.verifier import name_of
from synth_client.runs.failed_rows import FailedRow
from synth_client.runs.synthesise import Run, synthesise
from trainer.evaluation.benchmark import Benchmark, Problem
from trainer.evaluation.pass_at_k import INTERVAL, Weighted
from trainer.evaluation.results import (
    SCHEMA_VERSION,
    ProblemResult,
    Results,
    Sampling,
    scores_of,
    table_of,
)
from trajectory_records.complaints import complaints_of
from trajectory_records.record import Record

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
        """The folder of all files."""
        return self.run.output.parent


async def evaluate(evaluation: Evaluation, console: Console) -> Results:
    """Ask the remaining questions, then write and return the results.

    Raises `ClientError` as `synthesise` does; finished work is kept.
    """
    await synthesise(evaluation.run, console)
    results = results_of(evaluation)
    write_whole(evaluation.folder / RESULTS, results.to_json())
    write_whole(evaluation.folder / TABLE, results.to_markdown().encode())
    return results


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results of the evaluation in a folder, as they are written."""
    path = folder / RESULTS
    with output_errors(path):
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found


def right_rates(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of right answers of each problem that has judged answers."""
    return {one["id"]: one["c"] / one["n"] for one in results["problems"] if one["n"]}


class _Tally:
    """Adds up the samples of one problem; `counts` has the fields of its result."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._sums: defaultdict[str, float] = defaultdict(float)

    def add(self, record: Record) -> None:
        self.counts["num_truncated"] += record.finish_reason == "length"
        if record.correct is None:
            self.counts["num_unjudged"] += 1
            return
        self.counts["n"] += 1
        self.counts["c"] += record.correct
        if record.verification is not None:
            for name, value in record.verification.scores.items():
                self._sums[name] += value

    def result(self, problem: Problem) -> ProblemResult:
        num_judged = self.counts["n"]
        weights = problem.weights if num_judged else {}
        return ProblemResult(
            id=problem.id,
            level=problem.level,
            subject=problem.subject,
            n=num_judged,
            c=self.counts["c"],
            num_empty=self.counts["num_empty"],
            num_truncated=self.counts["num_truncated"],
            num_unjudged=self.counts["num_unjudged"],
            num_failed=self.counts["num_failed"],
            # An empty answer, which the judge has not seen, has 0 of each score.
            scores={
                name: Weighted(self._sums[name] / num_judged, weight)
                for name, weight in weights.items()
            },
        )


def results_of(evaluation: Evaluation) -> Results:
    """Return the results of a finished run, from its files."""
    run, benchmark = evaluation.run, evaluation.benchmark
    tallies = {problem.id: _Tally() for problem in benchmark.problems}
    served_as: set[str] = set()
    completion_tokens = 0
    for record in read_records(run.output):
        tallies[record.id].add(record)
        served_as.add(record.models.teacher or "")
        completion_tokens += record.usage.completion_tokens or 0
    for failed in _failed_rows(Workspace(run.output).failed):
        # An empty answer is an answer, and a wrong one; a missing answer is none.
        is_empty = failed.error.code == EMPTY_OUTPUT
        tallies[failed.id].counts.update(["n", "num_empty"] if is_empty else ["num_failed"])
    problems = tuple(tallies[problem.id].result(problem) for problem in benchmark.problems)
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
        verify=name_of(run.verify),
        interval=INTERVAL,
        completion_tokens=completion_tokens,
        table=table_of(problems, evaluation.ks, INTERVAL),
        scores=scores_of(problems, INTERVAL),
        problems=problems,
    )


def _failed_rows(path: Path) -> Iterator[FailedRow]:
    if not path.exists():
        return
    with output_errors(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield FailedRow.model_validate_json(line)
            except ValidationError as error:
                raise OutputError(f"{path}, line {number}: {complaints_of(error)}") from error
