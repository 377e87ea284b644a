"""A reproduction from the pair to the table. Stopped anywhere, it goes on where it was."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from rich.console import Console

from synth_client.aside import AsideFile
from synth_client.cli import run_loop
from synth_client.dataset import open_dataset
from synth_client.journal import reported
from synth_client.question import Synthesis
from synth_client.rules import MATH
from synth_client.run import Run, synthesise
from trainer.benchmark import load_benchmark
from trainer.errors import RunExists, ServerFailed
from trainer.evaluate import RECORDS, RESULTS, Evaluation, evaluate
from trainer.reproduce.pair import Pair
from trainer.reproduce.plan import Scale, Unit, recipe_of
from trainer.reproduce.servers import SERVED_AS, find_vllm, proxy, vllm
from trainer.reproduce.table import COMPARISON, TABLE, Comparison, comparison
from trainer.reproduce.task import problems
from trainer.train import train

_PLAN: Final = "plan.json"
_TIMES: Final = "times.jsonl"
_KS: Final = (1, 4, 8)
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
        """Seed by seed, so that what is there early is comparable."""
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

    def questions(self, seed: int) -> Path:
        """What is asked under a seed."""
        return self.folder / f"seed-{seed}" / "questions.jsonl"


def reproduce(job: Reproduction) -> Comparison:
    """Do what is not done yet, then write the tables, which are also returned.

    Raises `RunExists` where the folder has another comparison, `TrainerMissing` and `ServerFailed`
    for what cannot run here, and what synthesis, training and evaluation raise.
    """
    python = find_vllm()
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
    found = comparison(list(job.units), {name: job.base(name) for name in ("teacher", "student")})
    for name, content in ((COMPARISON, found.to_json()), (TABLE, found.to_markdown().encode())):
        with reported(job.folder / name):
            _publish(job.folder / name, content)
    return found


def _claim(job: Reproduction) -> None:
    plan = orjson.dumps(
        {"scale": job.scale.to_json(), "pair": {"student": str(job.pair.student)}},
        option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS,
    )
    path = job.folder / _PLAN
    with reported(path):
        job.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _publish(path, plan)
        elif path.read_bytes() != plan:
            raise RunExists(f"{job.folder} holds another comparison; choose another --output")


def _publish(path: Path, content: bytes) -> None:
    with AsideFile(path) as aside:
        aside.file.write(content)
        aside.publish()


def _write_problems(job: Reproduction) -> None:
    scale = job.scale
    wanted = {job.test: ("test", scale.num_test)}
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
        with reported(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _publish(path, lines)


def _make_data(job: Reproduction, python: Path) -> None:
    """All data at once, for the servers take longer to start than some of it to make."""
    left = [unit for unit in job.units if unit.arm.data_of is None and not unit.records.exists()]
    if not left:
        return
    job.console.rule("starting both models and the proxy")
    pair = {"student": job.pair.student, "teacher": job.pair.teacher}
    with ExitStack() as stack:
        with _timed(job, "start", "pair", None):
            urls = _both(stack, python, pair, job.folder)
            url = stack.enter_context(proxy(urls["student"], urls["teacher"], pair, job.folder))
        for unit in left:
            job.console.rule(f"data: {unit.arm.label}, seed {unit.seed}")
            with _timed(job, "data", unit.arm.name, unit.seed):
                totals = run_loop(synthesise(_synthesis(job, unit, url), job.console))
            if totals.num_failed:
                raise ServerFailed(
                    f"{totals.num_failed} of {totals.num_records + totals.num_failed} questions"
                    f" failed; {unit.records.with_suffix('.failed.jsonl')} says why, and the same"
                    " command tries them again"
                )


def _both(stack: ExitStack, python: Path, pair: dict[str, Path], folder: Path) -> dict[str, str]:
    return {
        name: stack.enter_context(vllm(python, model, folder / f"{name}.log"))
        for name, model in pair.items()
    }


def _synthesis(job: Reproduction, unit: Unit, url: str) -> Run:
    scale = job.scale
    thresholds = {
        "base_threshold": scale.base_threshold,
        "entropy_scale": scale.entropy_scale,
    }
    params = {
        **unit.arm.params,
        **(thresholds if unit.arm.params["method"] == "motab" else {}),
        "max_total_tokens": scale.max_tokens,
    }
    return Run(
        dataset=open_dataset(str(job.questions(unit.seed))),
        output=unit.records,
        base_urls=(url,),
        synthesis=Synthesis(
            model=SERVED_AS, params=params, temperature=scale.temperature, seed=unit.seed
        ),
        concurrency=_CONCURRENCY,
        verify=MATH,
    )


def _evaluate(
    job: Reproduction, python: Path, model: Path, folder: Path, name: str, seed: int | None = None
) -> None:
    if (folder / RESULTS).exists():
        return
    scale = job.scale
    job.console.rule(f"evaluation: {name}" + ("" if seed is None else f", seed {seed}"))
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        _timed(job, "eval", name, seed),
        vllm(python, model, folder.with_name(f"{folder.name}.log")) as url,
    ):
        benchmark = load_benchmark(str(job.test))
        run = Run(
            dataset=benchmark.dataset,
            output=folder / RECORDS,
            base_urls=(f"{url}/v1",),
            synthesis=Synthesis(
                model=str(model),
                temperature=scale.test_temperature,
                max_tokens=scale.max_tokens,
                seed=0,
                plain=True,
            ),
            num_samples=scale.num_samples,
            concurrency=_CONCURRENCY,
            verify=MATH,
        )
        ks = tuple(k for k in _KS if k <= scale.num_samples)
        evaluation = Evaluation(benchmark=benchmark, run=run, ks=ks)
        results = run_loop(evaluate(evaluation, job.console))
        if results.num_failed:
            raise ServerFailed(f"{results.num_failed} answers failed; the same command asks again")
    job.console.print(results.to_markdown(), markup=False)


@contextmanager
def _timed(job: Reproduction, stage: str, name: str, seed: int | None) -> Iterator[None]:
    """Note how long it took, of stages that came to their end."""
    begin = time.monotonic()
    yield
    line = {"stage": stage, "name": name, "seed": seed, "seconds": time.monotonic() - begin}
    path = job.folder / _TIMES
    with reported(path), path.open("ab") as file:
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
