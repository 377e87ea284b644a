"""Runs a comparison from the pair to the table. After an interruption it continues."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import orjson
import yaml
from rich.console import Console

from synth_client.files.atomic import output_errors, write_whole
from synth_client.files.record_file import read_records
from synth_client.report.page import require_plotly, write_page
from synth_client.report.rescore import thresholds
from trainer.errors import GateFailed, RunExists
from trainer.evaluation.cost_plot import cost_plots
from trainer.evaluation.evaluate import RECORDS, RESULTS
from trainer.reproduce.asking import Asking, is_made
from trainer.reproduce.curve import curve
from trainer.reproduce.gates import Gate, check_pair, check_sft, gates_table
from trainer.reproduce.plan import Scale, Unit, recipe_of
from trainer.reproduce.results import Comparison, comparison
from trainer.reproduce.servers import PairServer, Trainings, find_vllm, vllm
from trainer.reproduce.table import COMPARISON, TABLE, cost_points, to_markdown
from trainer.reproduce.task import Exercise, Task
from trainer.reproduce.thresholds import Thresholds, learn_thresholds
from trainer.reproduce.tiny_pair import Pair
from trajectory_records.record import Record

CURVE: Final = "curve.html"
GATES: Final = "gates.md"
_TEST: Final = "test"
_TRIAL: Final = "trial"
_SFT: Final = "sft"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A comparison of `scale` on `task`, with `pair`, all of it in `folder`."""

    scale: Scale
    task: Task
    pair: Pair
    folder: Path
    console: Console
    needs_gates: bool = True
    """The comparison ends where a gate fails."""

    @property
    def units(self) -> Iterator[Unit]:
        """Yield units seed by seed, so that early results are comparable."""
        for seed in self.scale.seeds:
            for arm in self.scale.arms:
                yield Unit(arm, seed, self.folder / _name_of(seed))

    def questions(self, name: str) -> Path:
        """The file of the problems that are asked under a name."""
        return self.folder / f"{name}.jsonl"

    def base(self, name: str) -> Path:
        """The evaluation of a model of the pair itself."""
        return self.folder / name

    @property
    def trial(self) -> Path:
        """Answers of the base student at its temperature, with values, and without a breach."""
        return self.folder / _TRIAL / RECORDS

    @property
    def sizes(self) -> dict[str, int]:
        """The number of problems that are asked under each name."""
        scale = self.scale
        seeds = {_name_of(seed): scale.num_questions for seed in scale.seeds}
        return {_TRIAL: scale.num_trials, _TEST: scale.num_test, **seeds}

    def problems(self, name: str) -> dict[str, Exercise]:
        """Return the problems of a name by their ids."""
        drawn = self.task.problems(name, self.sizes[name], self.scale.level)
        return {problem.id: problem for problem in drawn}


def _name_of(seed: int) -> str:
    return f"seed-{seed}"


def reproduce(job: Reproduction) -> Comparison:
    """Do the remaining work, then write and return the tables.

    Raises `RunExists` if the folder has another comparison, `GateFailed` if the pair cannot show a
    difference, `TrainerMissing` and `ServerFailed` if something cannot run here, and the errors of
    synthesis, training and evaluation.
    """
    python = find_vllm()
    require_plotly()
    _claim(job)
    _write_problems(job)
    with Trainings() as trainings:
        with PairServer(python, asdict(job.pair), job.folder) as served:
            asking = Asking(job.scale, partial(served.url_of, "proxy"), job.console)
            trial = _try_pair(job, served, asking)
            learned = _learn(job, trial)
            gates = check_pair(job.base("teacher"), job.base("student"), trial, learned)
            _check(job, gates)
            for unit in job.units:
                if not asking.has_data(unit):
                    with _timed(job, "data", unit.arm.name, unit.seed):
                        asking.make_data(unit, job.questions(_name_of(unit.seed)), learned)
                if not (unit.evaluation / RESULTS).exists():
                    _write_recipe(job, unit)
                    trainings.start(unit.recipe)
        for unit in job.units:
            _measure(job, unit, python, asking, trainings)
            if unit.arm.name == _SFT:
                found = [one.evaluation for one in job.units if one.arm.name == _SFT]
                there = [folder for folder in found if (folder / RESULTS).exists()]
                _check(job, (*gates, check_sft(there, job.base("student"))))
    rates = curve(job.trial)
    pair = {name: job.base(name) for name in ("teacher", "student")}
    asked = job.problems(_TEST)
    results = comparison(
        list(job.units),
        pair,
        rates,
        lambda record: job.task.judged(asked[record.id], record.output).first_mistake,
    )
    _draw(job, results, learned)
    write_whole(job.folder / COMPARISON, results.to_json())
    write_whole(job.folder / TABLE, to_markdown(results).encode())
    return results


def _try_pair(job: Reproduction, served: PairServer, asking: Asking) -> list[Record]:
    """Make the trial, and measure both models."""
    if not is_made(job.trial):
        job.console.rule("trial of the base student")
        with _timed(job, "data", _TRIAL, None):
            asking.make_trial(job.questions(_TRIAL), job.trial)
    for name, model in asdict(job.pair).items():
        if not (job.base(name) / RESULTS).exists():
            job.console.rule(f"the {name} itself")
            with _timed(job, "eval", name, None):
                asking.measure(model, job.questions(_TEST), job.base(name), served.url_of(name))
    return list(read_records(job.trial))


def _learn(job: Reproduction, trial: Sequence[Record]) -> Thresholds:
    problems = job.problems(_TRIAL)
    return learn_thresholds(
        trial,
        lambda record: job.task.labels(
            problems[record.id], [record.output[step.start : step.end] for step in record.steps]
        ),
    )


def _check(job: Reproduction, gates: Sequence[Gate]) -> None:
    table = gates_table(gates)
    write_whole(job.folder / GATES, f"{table}\n".encode())
    job.console.print(table, markup=False, highlight=False)
    failed = [gate.name for gate in gates if not gate.holds]
    if failed and job.needs_gates:
        raise GateFailed(
            f"{job.task.name}: this pair cannot tell methods apart ({'; '.join(failed)});"
            f" {job.folder / GATES} has all gates, and --despite-gates compares all the same"
        )


def _write_recipe(job: Reproduction, unit: Unit) -> None:
    recipe = recipe_of(unit, job.scale, job.pair.student)
    with output_errors(unit.recipe):
        unit.recipe.parent.mkdir(parents=True, exist_ok=True)
    said = recipe.model_dump(mode="json", exclude_unset=True)
    write_whole(unit.recipe, yaml.safe_dump(said, sort_keys=False).encode())


def _measure(
    job: Reproduction, unit: Unit, python: Path, asking: Asking, trainings: Trainings
) -> None:
    if (unit.evaluation / RESULTS).exists():
        return
    job.console.rule(f"{unit.arm.label}, seed {unit.seed}")
    with _timed(job, "wait", unit.arm.name, unit.seed):
        trainings.wait(unit.recipe)
    log = unit.folder / "vllm.log"
    with _timed(job, "eval", unit.arm.name, unit.seed), vllm(python, unit.student, log) as url:
        asking.measure(unit.student, job.questions(_TEST), unit.evaluation, url)


def _draw(job: Reproduction, results: Comparison, learned: Thresholds) -> None:
    # It imports Plotly, which is slow.
    from synth_client.report.rescore_page import rescore_page  # noqa: PLC0415

    more = [cost_plots(cost_points(results))]
    own = thresholds(learned.adaptive.base_threshold, learned.adaptive.entropy_scale)
    with output_errors(job.folder / CURVE):
        write_page(rescore_page(results.curve.rows, own, (), more), job.folder / CURVE)


def _claim(job: Reproduction) -> None:
    plan = orjson.dumps(
        {
            "task": job.task.name,
            "scale": asdict(job.scale),
            "pair": {"student": str(job.pair.student)},
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS,
    )
    path = job.folder / "plan.json"
    with output_errors(path):
        job.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, plan)
        elif path.read_bytes() != plan:
            raise RunExists(f"{job.folder} holds another comparison; choose another --output")


def _write_problems(job: Reproduction) -> None:
    for name in job.sizes:
        lines = b"".join(
            orjson.dumps(
                {
                    "id": problem.id,
                    "problem": problem.text,
                    "answer": problem.answer,
                    "level": f"{job.task.num_steps(problem)} steps",
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for problem in job.problems(name).values()
        )
        write_whole(job.questions(name), lines)


@contextmanager
def _timed(job: Reproduction, stage: str, name: str, seed: int | None) -> Iterator[None]:
    """Note how long a stage took, if it finished."""
    begin = time.monotonic()
    yield
    line = {"stage": stage, "name": name, "seed": seed, "seconds": time.monotonic() - begin}
    path = job.folder / "times.jsonl"
    with output_errors(path), path.open("ab") as file:
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
