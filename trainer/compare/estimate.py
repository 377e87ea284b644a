"""Estimates what the stages of a plan cost, and says what is not known."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil

from trainer.compare.basis import (
    TOKENS,
    Basis,
    LearningRate,
    assumed_basis,
    data_kind,
    examples_kind,
    last_trial,
    measured_basis,
    num_problems,
    num_questions,
)
from trainer.compare.plan import Plan, TokenBudget, recipe_of_plan
from trainer.compare.stages import (
    DataStage,
    EvalStage,
    ExamplesStage,
    ScoreStage,
    Stage,
    Stages,
    TrainStage,
    stages_of,
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a stage; None is not known, and `missing` names the numbers that would tell."""

    requests: float | None = None
    calls: float | None = None
    tokens: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Estimated:
    """All stages in order, and where the numbers come from."""

    source: str
    stages: tuple[tuple[Stage, Estimate], ...]

    @property
    def seconds(self) -> float | None:
        """The sum over all stages; None if it is not known of one."""
        found = [one.seconds for _, one in self.stages]
        known = [one for one in found if one is not None]
        return sum(known) if len(known) == len(found) else None

    def tokens(self, kind: str) -> float:
        """The sum of the known tokens of a kind."""
        return sum(one.tokens.get(kind, 0.0) for _, one in self.stages)


def estimated(plan: Plan) -> Estimated:
    """Estimate from a trial where there is a complete one, else from the plan's assumptions."""
    trial = last_trial(plan)
    basis = assumed_basis(plan) if trial is None else measured_basis(trial)
    return Estimated(basis.source, tuple(_Estimator(plan, basis).all_of(stages_of(plan))))


class _Estimator:
    def __init__(self, plan: Plan, basis: Basis) -> None:
        self._plan, self._basis = plan, basis
        self._num_questions = num_questions(plan)
        self._recipe = recipe_of_plan(plan)
        self._is_pair_up = False
        self._served: set[str] = set()

    def all_of(self, stages: Stages) -> Iterator[tuple[Stage, Estimate]]:
        for stage in stages.in_order():
            match stage:
                case DataStage():
                    yield stage, self._data(stage)
                case ExamplesStage():
                    yield stage, Estimate(seconds=0.0)
                case ScoreStage():
                    yield stage, self._score(stage)
                case TrainStage():
                    yield stage, self._train(stage)
                case EvalStage():
                    yield stage, self._eval(stage)

    def _num_answers(self, stage: DataStage) -> float | None:
        """Return how many answers the budget pays for, at most all."""
        cost, budget = self._basis.answers.get(data_kind(stage)), self._plan.budget
        if self._num_questions is None:
            return None
        most = float(self._num_questions * stage.tries)
        if budget is None:
            return most
        if cost is None:
            return None
        if isinstance(budget, TokenBudget):
            each, limit = cost.tokens.get("teacher", 0.0), float(budget.teacher_tokens)
        else:
            each, limit = self._money(cost.tokens), budget.amount
        return min(most, limit / each) if each else most

    def _money(self, tokens: Mapping[str, float]) -> float:
        return (
            sum(tokens.get(kind, 0.0) * self._plan.prices.get(kind, 0.0) for kind in TOKENS) / 1e6
        )

    def _data(self, stage: DataStage) -> Estimate:
        num, cost = self._num_answers(stage), self._basis.answers.get(data_kind(stage))
        if cost is None:
            return Estimate(num, missing=f"assume.tokens.{stage.method}")
        if num is None:
            return Estimate(missing="assume.questions")
        start = 0.0 if self._is_pair_up else self._basis.pair_start
        self._is_pair_up = True
        return Estimate(
            num,
            None if cost.calls is None else num * cost.calls,
            {kind: num * cost.tokens.get(kind, 0.0) for kind in TOKENS},
            None if cost.seconds is None else start + num * cost.seconds,
            "" if cost.seconds is not None else "assume.student_rate, teacher_rate, score_rate",
        )

    def _num_examples(self, stage: ExamplesStage) -> float | None:
        num = self._num_answers(stage.data)
        passing = self._basis.passing.get(examples_kind(stage))
        return None if num is None or passing is None else num * passing

    def _score(self, stage: ScoreStage) -> Estimate:
        num, each = self._num_examples(stage.examples), self._basis.score_seconds
        if num is None or each is None:
            return Estimate(num, missing="assume.example_tokens, score_rate")
        return Estimate(num, None, {}, num * each)

    def _train(self, stage: TrainStage) -> Estimate:
        training = self._recipe.training
        source = stage.source.examples if isinstance(stage.source, ScoreStage) else stage.source
        lengths, rates = self._basis.example_tokens, self._basis.learning
        each = lengths.get(examples_kind(source), lengths.get(""))
        rate = rates.get(str(stage.loss["kind"]), rates.get("", LearningRate(None, 0.0)))
        num = self._num_examples(source)
        if each is None or rate.tokens is None:
            return Estimate(missing="assume.example_tokens, train_rate")
        per_step = training.batch_size * each
        if training.packing != "none":
            per_step = float(training.batch_size * training.max_tokens)
        if training.max_steps is not None:
            tokens = training.max_steps * per_step
        elif num is None:
            return Estimate(missing="assume.questions")
        else:
            tokens = ceil(training.epochs * num) * each
        return Estimate(None, None, {}, rate.start + tokens / rate.tokens)

    def _eval(self, stage: EvalStage) -> Estimate:
        num, cost = num_problems(self._plan, stage.name), self._basis.problems.get(stage.name)
        if num is None:
            return Estimate(missing=f"assume.problems.{stage.name}")
        num *= stage.benchmark.samples
        if cost is None or cost.seconds is None:
            return Estimate(num, missing="assume.answer_tokens, student_rate")
        start = 0.0
        model = stage.model.key if isinstance(stage.model, TrainStage) else stage.model
        if model not in self._served and model != "teacher":
            start = self._basis.student_start
        self._served.add(model)
        student = cost.tokens.get("student", 0.0)
        tokens = {"teacher" if model == "teacher" else "student": num * student}
        return Estimate(num, None, tokens, start + num * cost.seconds)


def outline(plan: Plan) -> str:
    """Return the stages as a table in Markdown, with estimates, what is done, and the sums."""
    found = estimated(plan)
    heads = ("stage", "arms", "folder", "state", "requests", "calls", *TOKENS, "hours")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|" + "---:|" * (len(heads) - 4)]
    stages = stages_of(plan)
    lines += [f"| {' | '.join(_cells(plan, stages, stage, one))} |" for stage, one in found.stages]
    missing = dict.fromkeys(one.missing for _, one in found.stages if one.missing)
    said = [f"All numbers with ~ are estimates, from {found.source}."]
    said += [f"Not known (?), because the plan does not have {one}." for one in missing]
    if missing:
        said.append("--trial 20 measures instead, on 20 questions or a batch.")
    return "\n".join([*lines, "", *_sums(plan, found), *said])


def _cells(plan: Plan, stages: Stages, stage: Stage, one: Estimate) -> Iterator[str]:
    yield stage.kind
    yield ", ".join(stages.arms_of(stage))
    yield str(stage.folder.relative_to(plan.output))
    yield f"done in {stage.took() / 3600:.3g} h" if stage.is_done else "to do"
    nothing = stage.kind == "examples"
    asks = stage.kind in {"data", "score", "eval"}
    yield _number(one.requests) if asks else ""
    yield _number(one.calls) if stage.kind == "data" else ""
    for kind in TOKENS:
        shown = stage.kind == "data" or (stage.kind == "eval" and kind in one.tokens)
        yield _number(one.tokens.get(kind)) if shown else ""
    yield "" if nothing else _hours(one.seconds)


def _sums(plan: Plan, found: Estimated) -> Iterator[str]:
    hours, tokens = (
        _hours(found.seconds),
        ", ".join(f"{kind} {_number(found.tokens(kind))}" for kind in TOKENS),
    )
    known = sum(one.seconds or 0.0 for _, one in found.stages)
    more = "" if found.seconds is not None else f" (what is known: {_hours(known)})"
    yield f"Together: {hours} hours{more}; tokens: {tokens}."
    done = [(stage.took(), one.seconds) for stage, one in found.stages if stage.is_done]
    if done:
        took = sum(seconds for seconds, _ in done)
        guessed = sum(seconds or 0.0 for _, seconds in done)
        yield f"Done are {took / 3600:.3g} hours, which were estimated at {_hours(guessed)}."
    if plan.prices:
        data = [one for stage, one in found.stages if isinstance(stage, DataStage)]
        money = sum(
            one.tokens.get(kind, 0.0) * plan.prices.get(kind, 0.0) / 1e6
            for one in data
            for kind in TOKENS
        )
        yield f"The data costs ~{money:,.2f} by the plan's prices, questions not counted."


def _number(number: float | None) -> str:
    return "?" if number is None else f"~{number:,.0f}"


def _hours(seconds: float | None) -> str:
    return "?" if seconds is None else f"~{seconds / 3600:,.3g}"
