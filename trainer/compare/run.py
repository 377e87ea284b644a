"""Carries out a plan, stage by stage. After an interruption at any place it continues."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from synth_client.files.atomic import output_errors
from synth_client.report.page import require_plotly
from trainer.compare.compared import Compared, compared
from trainer.compare.make_data import DataMaker
from trainer.compare.measure import Measuring
from trainer.compare.page import write_results
from trainer.compare.plan import MODEL_PLACE, Plan, recipe_of_plan
from trainer.compare.stages import (
    TEACHER,
    DataStage,
    EvalStage,
    ExamplesStage,
    ScoreStage,
    Stage,
    TrainStage,
    stages_of,
)
from trainer.training.run_folder import locked

_LOCK: Final = ".lock"
# What a killed comparison has started ends within 20 seconds.
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan with what only this run of the command needs."""

    plan: Plan
    console: Console
    python: Path | None = None
    """The trainer's Python; `evalscope` is the Python of EvalScope."""
    evalscope: Path | None = None
    api_key: str | None = None


def compare(job: Job) -> Compared:
    """Do the remaining stages, then write and return the results.

    Raises the errors of synthesis, training and evaluation, and `ServerFailed` for a server that
    does not start; what is done stays.
    """
    require_plotly()
    stages = stages_of(job.plan)
    carry_out(job, list(stages.in_order()))
    found = compared(job.plan, stages)
    write_results(job.plan, stages, found)
    return found


def carry_out(job: Job, stages: Sequence[Stage]) -> None:
    """Do those of the stages that are not done."""
    output = job.plan.output
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    busy = f"{output}: another motab compare works there"
    with locked(output / _LOCK, busy=busy, patience_s=_PATIENCE_S) as lock:
        measuring = Measuring(job.plan, job.console, lock, job.python, job.evalscope, job.api_key)
        left = [stage for stage in stages if not stage.is_done]
        _ask_pair(job, measuring, left)
        for stage in left:
            if isinstance(stage, TrainStage):
                _do(job, stage, partial(measuring.train, stage))
        _measure_students(job, measuring, left)


def _ask_pair(job: Job, measuring: Measuring, left: Sequence[Stage]) -> None:
    """Make all data, and measure the teacher, while the servers of the pair run."""
    maker = DataMaker(job.plan, job.api_key, job.console)
    of_teacher = [one for one in left if isinstance(one, EvalStage) and one.model == TEACHER]
    needs_pair = any(isinstance(one, DataStage | ScoreStage) for one in left) or of_teacher
    with measuring.pair() if needs_pair else nullcontext(0.0) as start_seconds:
        # The first stage that needs the servers bears what their start took.
        waited = iter([start_seconds])
        for stage in left:
            match stage:
                case DataStage():
                    _do(job, stage, partial(maker.make, stage), next(waited, 0.0))
                case ExamplesStage():
                    _do(job, stage, partial(maker.select, stage))
                case ScoreStage():
                    _do(job, stage, partial(maker.score, stage), next(waited, 0.0))
        teacher = job.plan.pair.teacher
        for one in of_teacher:
            if teacher is not None:
                _do(job, one, partial(measuring.evaluate, one, teacher.base_url, teacher.model))


def _measure_students(job: Job, measuring: Measuring, left: Sequence[Stage]) -> None:
    """Serve one student after the other, each for all benchmarks that it has not answered."""
    by_model: dict[str, list[EvalStage]] = {}
    for stage in left:
        if isinstance(stage, EvalStage) and stage.model != TEACHER:
            by_model.setdefault(_model_of(job.plan, stage), []).append(stage)
    for model, stages in by_model.items():
        began = time.monotonic()
        with measuring.student(model) as url:
            waited = iter([time.monotonic() - began])
            name = job.plan.serve.name.replace(MODEL_PLACE, model)
            for stage in stages:
                act = partial(measuring.evaluate, stage, url, name)
                _do(job, stage, act, next(waited, 0.0))


def _model_of(plan: Plan, stage: EvalStage) -> str:
    if isinstance(stage.model, TrainStage):
        return str(stage.model.model)
    return recipe_of_plan(plan).model


def _do(
    job: Job,
    stage: Stage,
    act: Callable[[], Mapping[str, Any]],
    start_seconds: float = 0.0,
) -> None:
    """Do a stage, and note that it is done and how long this session took."""
    job.console.rule(f"{stage.kind}: {stage.label}")
    with output_errors(stage.folder):
        is_resumed = stage.folder.exists()
        stage.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    facts = act()
    seconds = time.monotonic() - began
    times = {"start_seconds": start_seconds, "seconds": seconds, "resumed": is_resumed}
    stage.finish({**facts, **times})
