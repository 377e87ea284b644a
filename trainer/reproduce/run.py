"""Runs a reproduction from the pair to the table. After an interruption it continues."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson
from pydantic import JsonValue
from rich.console import Console

from synth_client.asking.servers import Servers
from synth_client.files.atomic import output_errors, write_whole
from synth_client.files.workspace import Workspace
from synth_client.judging.rules import MATH
from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import Synthesis
from synth_client.report.page import require_plotly, write_page
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run, synthesise
from trainer.errors import RunExists, ServerFailed
from trainer.evaluation.benchmark import load_benchmark
from trainer.evaluation.cost_plot import cost_plots
from trainer.evaluation.evaluate import RECORDS, RESULTS, Evaluation, evaluate
from trainer.evaluation.pass_at_k import default_ks
from trainer.reproduce.arms import Arm
from trainer.reproduce.curve import curve
from trainer.reproduce.plan import Scale, Unit, recipe_of
from trainer.reproduce.results import Comparison, comparison
from trainer.reproduce.servers import SERVED_AS, find_vllm, proxy, vllm
from trainer.reproduce.table import COMPARISON, TABLE, cost_points, to_markdown
from trainer.reproduce.task import first_mistake, problems
from trainer.reproduce.tiny_pair import Pair
from trainer.training.train import train

CURVE: Final = "curve.html"
_TEST: Final = "test"
_CONCURRENCY: Final = 32


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A comparison of `scale` on `pair`, all of it in `folder`."""

    scale: Scale
    pair: Pair
    folder: Path
    console: Console

    @property
    def units(self) -> Iterator[Unit]:
        """Yield units seed by seed, so that early results are comparable."""
        for seed in self.scale.seeds:
            for arm in self.scale.arms:
                yield Unit(arm, seed, self.folder / f"seed-{seed}")

    @property
    def test(self) -> Path:
        """The problems of the evaluation."""
        return self.folder / "test.jsonl"

    def base(self, name: str) -> Path:
        """The evaluation of a model of the pair itself."""
        return self.folder / name

    @property
    def curve(self) -> Path:
        """Records for the curve of breach rates."""
        return self.folder / "curve" / "records.jsonl"

    def params(self, arm: Arm) -> dict[str, JsonValue]:
        """Return the arm's parameters, with thresholds if it has any."""
        if arm.params["method"] != "motab":
            return dict(arm.params)
        thresholds = {
            "base_threshold": self.scale.base_threshold,
            "entropy_scale": self.scale.entropy_scale,
        }
        return {**arm.params, **thresholds}

    def questions(self, seed: int) -> Path:
        """The questions asked under a seed."""
        return self.folder / f"seed-{seed}" / "questions.jsonl"


@dataclass(frozen=True, slots=True)
class _DataSet:
    """The data that one run of `motab synth` makes."""

    name: str
    seed: int
    records: Path
    params: Mapping[str, JsonValue]


def reproduce(job: Reproduction) -> Comparison:
    """Do the remaining work, then write and return the tables.

    Raises `RunExists` if the folder has another comparison, `TrainerMissing` and `ServerFailed` if
    something cannot run here, and the errors of synthesis, training and evaluation.
    """
    python = find_vllm()
    require_plotly()
    _claim(job)
    _write_problems(job)
    _make_data(job, python)
    for name in ("teacher", "student"):
        _evaluate(job, python, getattr(job.pair, name), job.base(name), name)
    for unit in job.units:
        name = f"{unit.arm.label}, seed {unit.seed}"
        if not (unit.evaluation / RESULTS).exists():
            with _timed(job, "train", unit.arm.name, unit.seed):
                job.console.rule(f"training: {name}")
                recipe = recipe_of(unit, job.scale, job.pair.student)
                train(recipe, python=None, resume=True, console=job.console)
        _evaluate(job, python, unit.student, unit.evaluation, unit.arm.name, unit.seed)
    rates = curve(job.curve)
    pair = {name: job.base(name) for name in ("teacher", "student")}
    asked = {one.id: one for one in problems(_TEST, job.scale.num_test, job.scale.num_terms)}
    results = comparison(
        list(job.units),
        pair,
        rates,
        lambda record: first_mistake(asked[record.id], record.output),
    )
    _draw(job, results)
    write_whole(job.folder / COMPARISON, results.to_json())
    write_whole(job.folder / TABLE, to_markdown(results).encode())
    return results


def _draw(job: Reproduction, results: Comparison) -> None:
    # It imports Plotly, which is slow.
    from synth_client.report.rescore_page import rescore_page  # noqa: PLC0415

    more = [cost_plots(cost_points(results))]
    own = (job.scale.base_threshold, job.scale.entropy_scale)
    with output_errors(job.folder / CURVE):
        write_page(rescore_page(results.curve.rows, own, (), more), job.folder / CURVE)


def _claim(job: Reproduction) -> None:
    plan = orjson.dumps(
        {"scale": asdict(job.scale), "pair": {"student": str(job.pair.student)}},
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
    scale = job.scale
    wanted = {job.test: (_TEST, scale.num_test)}
    wanted |= {job.questions(seed): (f"seed-{seed}", scale.num_questions) for seed in scale.seeds}
    for path, (name, num) in wanted.items():
        lines = b"".join(
            orjson.dumps(
                {
                    "id": problem.id,
                    "problem": problem.text,
                    "answer": str(problem.answer),
                    "level": f"{len(problem.terms)} terms",
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for problem in problems(name, num, scale.num_terms)
        )
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lines)


def _make_data(job: Reproduction, python: Path) -> None:
    """Make all data at once, because starting the servers takes longer than making some data."""
    sets = [
        _DataSet(unit.arm.name, unit.seed, unit.records, job.params(unit.arm))
        for unit in job.units
        if unit.arm.data_of is None
    ]
    seed = job.scale.seeds[0]
    sets.append(_DataSet("curve", seed, job.curve, {"method": "motab", "base_threshold": 0.0}))
    left = [one for one in sets if not _is_made(one.records)]
    if not left:
        return
    job.console.rule("starting both models and the proxy")
    pair = {"student": job.pair.student, "teacher": job.pair.teacher}
    with ExitStack() as stack:
        with _timed(job, "start", "pair", None):
            student, teacher = [
                stack.enter_context(vllm(python, model, job.folder / f"{name}.log"))
                for name, model in pair.items()
            ]
            url = stack.enter_context(proxy(student, teacher, pair, job.folder))
        for one in left:
            job.console.rule(f"data: {one.name}, seed {one.seed}")
            with _timed(job, "data", one.name, one.seed):
                totals = run_loop(synthesise(_synthesis(job, one, url), job.console))
            if totals.num_failed:
                raise ServerFailed(
                    f"{totals.num_failed} of {totals.num_records + totals.num_failed} questions"
                    f" failed; {Workspace(one.records).failed} says why, and the same command"
                    " tries them again"
                )


def _is_made(records: Path) -> bool:
    failed = Workspace(records).failed
    return records.exists() and not (failed.exists() and failed.stat().st_size)


def _synthesis(job: Reproduction, data: _DataSet, url: str) -> Run:
    return Run(
        dataset=open_dataset(str(job.questions(data.seed))),
        output=data.records,
        servers=Servers(base_urls=(url,), concurrency=_CONCURRENCY),
        synthesis=Synthesis(
            model=SERVED_AS,
            params={**data.params, "max_total_tokens": job.scale.max_tokens},
            temperature=job.scale.temperature,
            seed=data.seed,
        ),
        verify=MATH,
    )


def _evaluate(
    job: Reproduction, python: Path, model: Path, folder: Path, name: str, seed: int | None = None
) -> None:
    if (folder / RESULTS).exists():
        return
    scale = job.scale
    job.console.rule(f"evaluation: {name}" + ("" if seed is None else f", seed {seed}"))
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        _timed(job, "eval", name, seed),
        vllm(python, model, folder.with_name(f"{folder.name}.log")) as url,
    ):
        benchmark = load_benchmark(str(job.test))
        run = Run(
            dataset=benchmark.dataset,
            output=folder / RECORDS,
            servers=Servers(base_urls=(f"{url}/v1",), concurrency=_CONCURRENCY),
            synthesis=Synthesis(
                model=str(model),
                temperature=scale.test_temperature,
                max_tokens=scale.max_tokens,
                seed=0,
                plain=True,
            ),
            num_samples=scale.num_samples,
            verify=MATH,
        )
        ks = default_ks(scale.num_samples)
        evaluation = Evaluation(benchmark=benchmark, run=run, ks=ks)
        results = run_loop(evaluate(evaluation, job.console))
        if results.num_failed:
            raise ServerFailed(f"{results.num_failed} answers failed; the same command asks again")
    job.console.print(results.to_markdown(), markup=False)


@contextmanager
def _timed(job: Reproduction, stage: str, name: str, seed: int | None) -> Iterator[None]:
    """Note how long a stage took, if it finished."""
    begin = time.monotonic()
    yield
    line = {"stage": stage, "name": name, "seed": seed, "seconds": time.monotonic() - begin}
    path = job.folder / "times.jsonl"
    with output_errors(path), path.open("ab") as file:
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
