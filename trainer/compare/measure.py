"""Trains the students of a comparison, serves them, and has them answer the benchmarks."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import yaml
from rich.console import Console

from synth_client.asking.servers import Servers
from synth_client.files.atomic import output_errors, write_whole
from synth_client.files.record_file import read_records
from synth_client.questions.layout import Columns
from synth_client.questions.question import Synthesis
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run
from trainer.compare.plan import (
    MODEL_PLACE,
    PORT_PLACE,
    Plan,
    PlannedBenchmark,
    recipe_of_plan,
)
from trainer.compare.processes import (
    Starting,
    child_process,
    free_port,
    is_up,
    server_process,
    tail_of,
    wait_until_ready,
)
from trainer.compare.stages import EvalStage, TrainStage
from trainer.errors import ServerFailed, TrainingFailed
from trainer.evaluation.benchmark import Benchmark, load_benchmark
from trainer.evaluation.evalscope import NAMES, Source, named_benchmark
from trainer.evaluation.evaluate import RECORDS, Evaluation, evaluate
from trainer.evaluation.pass_at_k import default_ks
from trainer.training.progress import LOG, Losses
from trainer.training.recipe import Recipe, recipe_with

_PYTHON_PLACE: Final = "{python}"
_EVAL_SEED: Final = 0
_TIMES: Final = "all_results.json"


@dataclass(frozen=True, slots=True)
class Measuring:
    """Trains and measures. `lock` is held until everything that was started has ended."""

    plan: Plan
    console: Console
    lock: int
    python: Path | None
    """The trainer's Python, None for the one in its environment."""
    evalscope: Path | None
    api_key: str | None

    def train(self, stage: TrainStage) -> dict[str, Any]:
        """Run `motab train`; it continues where it was stopped. Raises `TrainingFailed`."""
        recipe = training_recipe(self.plan, stage)
        said = recipe.model_dump(mode="json", exclude_unset=True)
        with output_errors(stage.recipe):
            stage.folder.mkdir(parents=True, exist_ok=True)
        write_whole(stage.recipe, yaml.safe_dump(said, sort_keys=False).encode())
        command = [sys.executable, "-m", "motab", "train", str(stage.recipe)]
        if self.python is not None:
            command += ["--python", str(self.python)]
        log = stage.folder / "train.log"
        with (
            self.console.status(f"Training; log in {log}"),
            child_process(command, {}, log, lock=self.lock) as process,
        ):
            code = process.wait()
        if code:
            tail = tail_of(log)
            raise TrainingFailed(
                f"a training ended with code {code}: {tail}", exit_code=code, tail=tail
            )
        return training_facts(stage)

    @contextmanager
    def pair(self) -> Iterator[float]:
        """Run the servers of the pair, started at once; yields the seconds that this took."""
        began = time.monotonic()
        servers = self.plan.pair.servers
        for server in servers:
            if is_up(server.ready):
                raise ServerFailed(
                    f"{server.ready} answers before its server is started: end what runs there, or"
                    " leave the server out of pair.servers"
                )
        with ExitStack() as stack:
            started = []
            for number, server in enumerate(servers):
                log = self.plan.output / f"server-{number}.log"
                self.console.print(f"Starting {server.command}", markup=False, highlight=False)
                words = _words(server.command)
                child = child_process(words, server.environment, log, lock=self.lock)
                process = stack.enter_context(child)
                started.append(Starting(process, log, server.ready, server.timeout))
            wait_until_ready(started)
            yield time.monotonic() - began

    @contextmanager
    def student(self, model: str) -> Iterator[str]:
        """Serve a student; yields the base URL, with /v1."""
        server, port = self.plan.serve, free_port()
        url = f"http://127.0.0.1:{port}"
        command = server.command.replace(PORT_PLACE, str(port))
        words = _words(command.replace(MODEL_PLACE, shlex.quote(model)))
        log, settings = self.plan.output / "student.log", server.environment
        ready, limit = url + server.ready, server.timeout
        with server_process(words, settings, log, ready, lock=self.lock, timeout_s=limit):
            yield f"{url}/v1"

    def evaluate(self, stage: EvalStage, url: str, model: str) -> dict[str, Any]:
        """Have a served model answer a benchmark. Raises `ServerFailed` if answers are missing."""
        asked = stage.benchmark
        with output_errors(stage.folder):
            stage.folder.mkdir(parents=True, exist_ok=True)
        concurrency = self.plan.serve.concurrency
        with ExitStack() as stack:
            benchmark = stack.enter_context(self._benchmark(stage.name, asked))
            run = Run(
                dataset=benchmark.dataset,
                output=stage.folder / RECORDS,
                servers=Servers(base_urls=(url,), api_key=self.api_key, concurrency=concurrency),
                synthesis=Synthesis(
                    model=model,
                    temperature=asked.temperature,
                    top_p=asked.top_p,
                    max_tokens=asked.max_tokens,
                    seed=_EVAL_SEED,
                    plain=True,
                    timeout_s=asked.timeout,
                ),
                num_samples=asked.samples,
                verify=asked.verify or benchmark.rule,
            )
            evaluation = Evaluation(benchmark=benchmark, run=run, ks=default_ks(asked.samples))
            results = run_loop(evaluate(evaluation, self.console))
        if results.num_failed:
            raise ServerFailed(f"{results.num_failed} answers failed; the same command asks again")
        records = list(read_records(run.output))
        return {
            "num_records": len(records),
            "num_problems": len(results.problems),
            "answer_tokens": results.completion_tokens,
            "answer_seconds": sum(record.seconds for record in records),
        }

    @contextmanager
    def _benchmark(self, name: str, asked: PlannedBenchmark) -> Iterator[Benchmark]:
        source = asked.source or name
        if source in NAMES:
            with named_benchmark(Source(source, asked.data, asked.limit), self.evalscope) as found:
                yield found
        else:
            yield load_benchmark(
                source,
                prompt=asked.prompt,
                limit=asked.limit,
                split=asked.split,
                subset=asked.subset,
                columns=Columns(asked.question_column, asked.answer_column, asked.id_column),
            )


def _words(command: str) -> list[str]:
    return shlex.split(command.replace(_PYTHON_PLACE, shlex.quote(sys.executable)))


def training_recipe(plan: Plan, stage: TrainStage) -> Recipe:
    """Return the recipe of a student."""
    return recipe_with(
        recipe_of_plan(plan),
        loss=stage.loss,
        data=stage.source.records,
        output=stage.training,
        training={"seed": stage.seed},
    )


def training_facts(stage: TrainStage) -> dict[str, Any]:
    """Return how many examples were learned, in how many steps, and in how many seconds.

    The seconds are None where the trainer does not note them, or was interrupted.
    """
    run = _json(stage.training / "run.json")
    losses = Losses(stage.model / LOG)
    losses.read()
    noted = stage.model / _TIMES
    whole = len(run["sessions"]) == 1 and noted.exists()
    return {
        "num_examples": run["data"]["num_examples"],
        "num_steps": losses.total or losses.step,
        "learning_seconds": _json(noted).get("train_runtime") if whole else None,
    }


def _json(path: Path) -> dict[str, Any]:
    with output_errors(path):
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found
