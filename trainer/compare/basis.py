"""Gathers the numbers that estimates rest on: measured by a trial, or assumed by the plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from synth_client.files.atomic import output_errors, write_whole
from synth_client.questions.dataset import Dataset, open_dataset
from trainer.compare.make_data import questions_of
from trainer.compare.plan import Assumptions, MethodTokens, Plan, recipe_of_plan
from trainer.compare.stages import (
    DataStage,
    EvalStage,
    ExamplesStage,
    ScoreStage,
    Stage,
    TrainStage,
    stages_of,
)

TOKENS: Final = ("student", "scored", "teacher")
_TRIAL: Final = "trial"
_TRIAL_STEPS: Final = 12


@dataclass(frozen=True, slots=True)
class AnswerCost:
    """One answer of a pair: its tokens by kind, the calls to its models, and seconds.

    The seconds are of the whole pair: those of a batch, divided by its answers. None: not known.
    """

    tokens: Mapping[str, float]
    calls: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class LearningRate:
    """The tokens that are learned in a second, and the seconds until the trainer learns."""

    tokens: float | None
    start: float


@dataclass(frozen=True, slots=True)
class Basis:
    """Costs by what they depend on; what is missing from a mapping is not known."""

    source: str
    answers: Mapping[str, AnswerCost]
    """By `data_kind`."""
    passing: Mapping[str, float]
    """By `examples_kind`: the share of the records that is learned."""
    example_tokens: Mapping[str, float]
    """By `examples_kind`; by "" where all are alike."""
    score_seconds: float | None
    learning: Mapping[str, LearningRate]
    """By the kind of loss; by "" where all are alike."""
    problems: Mapping[str, AnswerCost]
    """An answer of a student, by benchmark."""
    pair_start: float
    student_start: float


def data_kind(stage: DataStage) -> str:
    """Return what the cost of an answer depends on, whatever the seed."""
    return orjson.dumps(stage.params, option=orjson.OPT_SORT_KEYS).decode()


def examples_kind(stage: ExamplesStage) -> str:
    """Return what decides how many records are learned, and how long they are."""
    rest = orjson.dumps([stage.is_clean, stage.filters]).decode()
    return data_kind(stage.data) + rest


def trial_plan(plan: Plan, num_questions: int) -> Plan:
    """Return the plan of a trial, in a folder of the comparison; its recipe is written there.

    It has a batch of questions at least, because the time of a smaller step would say little.
    """
    num_questions = max(num_questions, recipe_of_plan(plan).training.batch_size)
    output = plan.output / _TRIAL / f"{num_questions}"
    recipe = recipe_of_plan(plan).model_dump(mode="json", exclude_unset=True)
    recipe["training"] = {**recipe.get("training", {}), "max_steps": _TRIAL_STEPS}
    path = output / "recipe.yaml"
    with output_errors(path):
        output.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(recipe, sort_keys=False).encode())
    limit = min(num_questions, plan.questions.limit or num_questions)
    return plan.model_copy(
        update={
            "recipe": path,
            "questions": plan.questions.model_copy(update={"limit": limit}),
            "seeds": plan.seeds[:1],
            "budget": None,
            "benchmarks": {
                name: one.model_copy(
                    update={"limit": min(num_questions, one.limit or num_questions)}
                )
                for name, one in plan.benchmarks.items()
            },
            "output": output,
        }
    )


def trial_stages(trial: Plan) -> list[Stage]:
    """Return the stages of a trial: all data, a training for each kind of loss, and the pair."""
    stages = stages_of(trial)
    trained: dict[str, TrainStage] = {}
    for unit in stages.units:
        trained.setdefault(str(unit.arm.loss["kind"]), unit.train)
    chosen = {one.folder for one in trained.values()}
    return [
        stage
        for stage in stages.in_order()
        if not isinstance(stage, TrainStage | EvalStage)
        or stage.folder in chosen
        or (isinstance(stage, EvalStage) and not isinstance(stage.model, TrainStage))
    ]


def last_trial(plan: Plan) -> Plan | None:
    """Return the largest trial of this plan that is complete, None if there is none."""
    folder = plan.output / _TRIAL
    sizes = [int(one.name) for one in folder.glob("*") if one.name.isdecimal()]
    for size in sorted(sizes, reverse=True):
        trial = trial_plan(plan, size)
        if all(stage.is_done for stage in trial_stages(trial)):
            return trial
    return None


def measured_basis(trial: Plan) -> Basis:
    """Return what a trial has measured."""
    done = trial_stages(trial)
    data = [one for one in done if isinstance(one, DataStage)]
    examples = [one for one in done if isinstance(one, ExamplesStage)]
    scored = [one for one in done if isinstance(one, ScoreStage)]
    evals = [one for one in done if isinstance(one, EvalStage) and one.model == "student"]
    rates = [
        facts["seconds"] / facts["num_records"]
        for facts in (one.facts() for one in scored)
        if facts["num_records"]
    ]
    return Basis(
        source=f"a trial of {trial.questions.limit} questions",
        answers={data_kind(one): _answer_cost(one.facts(), trial.pair.concurrency) for one in data},
        passing={examples_kind(one): _passing(one) for one in examples},
        example_tokens={examples_kind(one): _example_tokens(one) for one in examples},
        score_seconds=max(rates, default=None),
        learning={
            str(one.loss["kind"]): _learning(one, trial)
            for one in done
            if isinstance(one, TrainStage)
        },
        problems={one.name: _answer_cost(one.facts(), trial.serve.concurrency) for one in evals},
        pair_start=_start(data),
        student_start=_start(evals),
    )


def _answer_cost(facts: Mapping[str, Any], concurrency: int) -> AnswerCost:
    num = facts["num_records"]
    # The end of a batch is slow, because few requests are left, and a longer run has it once.
    at_once = min(concurrency, num)
    tokens = facts.get("tokens") or {"student": facts.get("answer_tokens", 0)}
    return AnswerCost(
        {kind: tokens.get(kind, 0) / num for kind in TOKENS},
        facts["calls"] / num if "calls" in facts else None,
        facts["answer_seconds"] / num / at_once,
    )


def _passing(stage: ExamplesStage) -> float:
    made: int = stage.data.facts()["num_records"]
    kept: int = stage.facts()["num_kept"]
    return kept / made


def _example_tokens(stage: ExamplesStage) -> float:
    facts = stage.facts()
    mean: float = facts["example_tokens"] / max(facts["num_kept"], 1)
    return mean


def _learning(stage: TrainStage, trial: Plan) -> LearningRate:
    facts = stage.facts()
    learning: float | None = facts["learning_seconds"]
    if not learning:
        return LearningRate(None, facts["seconds"])
    training = recipe_of_plan(trial).training
    source = stage.source.examples if isinstance(stage.source, ScoreStage) else stage.source
    each = _example_tokens(source)
    at_once = min(training.batch_size, facts["num_examples"]) * each
    if training.packing != "none":
        whole = facts["num_examples"] * each
        at_once = min(training.batch_size * training.max_tokens, whole)
    return LearningRate(facts["num_steps"] * at_once / learning, facts["seconds"] - learning)


def _start(stages: Iterable[Stage]) -> float:
    return max((one.facts()["start_seconds"] for one in stages), default=0.0)


def assumed_basis(plan: Plan) -> Basis:
    """Return what the plan assumes."""
    assume, stages = plan.assume, stages_of(plan)
    answers, passing = {}, {}
    for unit in stages.units:
        tokens = assume.tokens.get(unit.data.method)
        if tokens is not None:
            answers[data_kind(unit.data)] = _assumed_cost(tokens, assume)
        passing[examples_kind(unit.examples)] = assume.passing.get(unit.name, 1.0)
    return Basis(
        source="the plan's assumptions",
        answers=answers,
        passing=passing,
        example_tokens={} if assume.example_tokens is None else {"": assume.example_tokens},
        score_seconds=_over(assume.example_tokens, assume.score_rate),
        learning={"": LearningRate(assume.train_rate, assume.start_seconds)},
        problems={}
        if assume.answer_tokens is None
        else dict.fromkeys(
            plan.benchmarks,
            AnswerCost(
                {"student": assume.answer_tokens},
                None,
                _over(assume.answer_tokens, assume.student_rate),
            ),
        ),
        pair_start=assume.start_seconds,
        student_start=assume.start_seconds,
    )


def _assumed_cost(tokens: MethodTokens, assume: Assumptions) -> AnswerCost:
    """The two models work at the same time, each on other questions."""
    student = _over(tokens.student, assume.student_rate)
    written = _over(tokens.teacher, assume.teacher_rate)
    scored = _over(tokens.scored, assume.score_rate)
    seconds = None
    if student is not None and written is not None and scored is not None:
        seconds = max(student, written + scored)
    return AnswerCost(tokens.model_dump(exclude={"calls"}), tokens.calls, seconds)


def _over(tokens: float | None, rate: float | None) -> float | None:
    if not tokens:
        return 0.0 if tokens == 0 else None
    return None if rate is None else tokens / rate


def num_questions(plan: Plan) -> int | None:
    """Return how many questions there are; None if only asking a hub could tell."""
    limit, found = plan.questions.limit, plan.assume.questions
    if Path(plan.questions.source).exists():
        return _num_rows(questions_of(plan.questions, limit))
    return _least_known(limit, found)


def num_problems(plan: Plan, name: str) -> int | None:
    """Return how many problems a benchmark has; None if only asking a hub could tell."""
    benchmark = plan.benchmarks[name]
    found = plan.assume.problems.get(name)
    source = benchmark.source or name
    if Path(source).exists():
        return _num_rows(open_dataset(source, limit=benchmark.limit, split=benchmark.split))
    return _least_known(benchmark.limit, found)


def _num_rows(dataset: Dataset) -> int:
    counted = dataset.count()
    return sum(1 for _ in dataset.rows()) if counted is None else counted


def _least_known(*numbers: int | None) -> int | None:
    return min((one for one in numbers if one is not None), default=None)
