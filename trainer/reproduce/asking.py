"""Asks the models of a comparison: trials, the data of every arm, and the problems of the test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue
from rich.console import Console

from synth_client.asking.servers import Servers
from synth_client.files.atomic import AtomicFile, output_errors
from synth_client.files.record_file import read_records
from synth_client.files.workspace import Workspace
from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import Synthesis
from synth_client.runs.score import Scoring, score_records
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run, synthesise
from trainer.compare.make_data import check_totals
from trainer.compare.restitch import clean
from trainer.errors import ServerFailed
from trainer.evaluation.benchmark import load_benchmark
from trainer.evaluation.evaluate import RECORDS, Evaluation, evaluate
from trainer.evaluation.pass_at_k import default_ks
from trainer.reproduce.arms import Arm
from trainer.reproduce.plan import Scale, Unit
from trainer.reproduce.servers import SERVED_AS
from trainer.reproduce.task import RULE
from trainer.reproduce.thresholds import Thresholds

_CONCURRENCY: Final = 64
_TRIAL_SEED: Final = 0
_TRIAL: Final[Mapping[str, JsonValue]] = {"method": "motab", "base_threshold": 0.0}


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks for what is not there yet; `proxy` returns the proxy's base URL, and may start it."""

    scale: Scale
    proxy: Callable[[], str]
    console: Console

    def make_trial(self, questions: Path, records: Path) -> None:
        """Make answers of the base student alone, with the teacher's values."""
        self._make(questions, records, _TRIAL, _TRIAL_SEED, 1)

    def has_data(self, unit: Unit) -> bool:
        """Return whether the unit's data is complete."""
        return is_made(unit.records) and is_made(unit.learned)

    def make_data(self, unit: Unit, questions: Path, learned: Thresholds) -> None:
        """Make the records of a unit, and what it learns of them."""
        arm = unit.arm
        self._make(questions, unit.records, params_of(arm, learned), unit.seed, arm.num_tries)
        if is_made(unit.learned):
            return
        if arm.is_clean:
            write_clean(unit.records, unit.learned)
            return
        job = Scoring(
            source=unit.records, output=unit.learned, servers=self._servers(), model=SERVED_AS
        )
        check_totals(run_loop(score_records(job, self.console)), unit.learned)

    def measure(self, model: Path, test: Path, folder: Path, url: str) -> None:
        """Ask a model the problems of the test."""
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        benchmark = load_benchmark(str(test))
        run = Run(
            dataset=benchmark.dataset,
            output=folder / RECORDS,
            servers=Servers(base_urls=(f"{url}/v1",), concurrency=_CONCURRENCY),
            synthesis=Synthesis(
                model=str(model),
                temperature=self.scale.test_temperature,
                max_tokens=self.scale.max_tokens,
                seed=0,
                plain=True,
            ),
            num_samples=self.scale.num_samples,
            verify=RULE,
        )
        ks = default_ks(self.scale.num_samples)
        evaluation = Evaluation(benchmark=benchmark, run=run, ks=ks)
        results = run_loop(evaluate(evaluation, self.console))
        if results.num_failed:
            raise ServerFailed(f"{results.num_failed} answers failed; the same command asks again")
        self.console.print(results.to_markdown(), markup=False)

    def _make(
        self,
        questions: Path,
        records: Path,
        params: Mapping[str, JsonValue],
        seed: int,
        num_samples: int,
    ) -> None:
        if is_made(records):
            return
        run = Run(
            dataset=open_dataset(str(questions)),
            output=records,
            servers=self._servers(),
            synthesis=Synthesis(
                model=SERVED_AS,
                params={**params, "max_total_tokens": self.scale.max_tokens},
                temperature=self.scale.temperature,
                seed=seed,
            ),
            num_samples=num_samples,
            verify=RULE,
        )
        check_totals(run_loop(synthesise(run, self.console)), records)

    def _servers(self) -> Servers:
        return Servers(base_urls=(self.proxy(),), concurrency=_CONCURRENCY)


def params_of(arm: Arm, learned: Thresholds) -> dict[str, JsonValue]:
    """Return the arm's parameters, with the learned thresholds of its boundary if it has one."""
    if arm.params["method"] != "motab":
        return dict(arm.params)
    own = learned.static if arm.params.get("boundary") == "static" else learned.adaptive
    return {
        "base_threshold": own.base_threshold,
        "entropy_scale": own.entropy_scale,
        **arm.params,
    }


def write_clean(records: Path, learned: Path) -> None:
    """Write the records as `stitch: clean` makes them, which differs in the stitching alone."""
    with output_errors(learned), AtomicFile(learned) as output:
        output.file.writelines(clean(record).to_json_line() for record in read_records(records))
        output.publish()


def is_made(records: Path) -> bool:
    """Return whether a file of records is complete."""
    failed = Workspace(records).failed
    return records.exists() and not (failed.exists() and failed.stat().st_size)
