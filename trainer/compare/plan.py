"""Reads and checks a plan in YAML. Unknown keys are errors; every message names file and key."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from proxy.core.params import Params
from proxy.core.types import Scoring
from proxy.near_names import did_you_mean
from synth_client.errors import InputError
from synth_client.judging.rules import MATH, check_rule
from synth_client.prices import PRICED
from synth_client.questions.dataset import SUFFIXES
from synth_client.training_data.filters import Filters
from trainer.compare.processes import START_TIMEOUT_S
from trainer.errors import PlanError, RecipeError
from trainer.evaluation.benchmark import PLACE
from trainer.evaluation.evalscope import NAMES
from trainer.training.recipe import Recipe, load_recipe, mapping_in, recipe_with
from trajectory_records.complaints import complaints_of

MODEL_PLACE: Final = "{model}"
PORT_PLACE: Final = "{port}"
_UNIONS: Final = {"budget"}
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Name = Annotated[str, Field(pattern=_NAME, max_length=80)]
"""A name that can be a folder's, too."""
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class _PlanSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Server(_PlanSection):
    """A server that the command starts, and ends when it is no longer needed."""

    command: str = Field(min_length=1)
    """The command line. `{python}` is motab's own; a student's has `{model}` and `{port}`, too."""
    ready: str = Field(min_length=1)
    """The URL that answers 200 once the server is up; of a student, its path."""
    environment: Mapping[str, str] = {}
    timeout: float = Field(START_TIMEOUT_S, gt=0)
    """The seconds that it may take until it is up."""


class StudentServer(Server):
    """The server of a student; it listens at 127.0.0.1 and the port that it is given."""

    name: str = Field(MODEL_PLACE, min_length=1)
    """The name by which the server knows the model."""
    concurrency: Count = 64

    @model_validator(mode="after")
    def _is_a_template(self) -> Self:
        for place in (MODEL_PLACE, PORT_PLACE):
            if place not in self.command:
                raise ValueError(f"command: has no {place}, which each student replaces")
        if not self.ready.startswith("/"):
            raise ValueError(f"ready: must be a path, such as /health, not {self.ready}")
        return self


class Teacher(_PlanSection):
    """The teacher alone, to be measured like the students."""

    base_url: str = Field(pattern=r"^https?://[^/]")
    model: str = Field(min_length=1)


class AskedPair(_PlanSection):
    """A pair behind a proxy, which makes the data."""

    base_url: str = Field(pattern=r"^https?://[^/]")
    """The proxy's address, with /v1."""
    model: str = Field(min_length=1)
    """The pair's name there."""
    servers: tuple[Server, ...] = ()
    """Started in this order, and stopped before anything is trained; none if they run already."""
    concurrency: Count = 64
    teacher: Teacher | None = None

    @model_validator(mode="after")
    def _servers_have_addresses(self) -> Self:
        for index, server in enumerate(self.servers):
            if not server.ready.startswith(("http://", "https://")):
                raise ValueError(
                    f"servers.{index}.ready: must be a URL, such as http://127.0.0.1:30012/health,"
                    f" not {server.ready}"
                )
        return self


class Questions(_PlanSection):
    """The questions with their answers, in any form that `motab synth` reads."""

    source: str = Field(min_length=1)
    split: str = "train"
    subset: str | None = None
    limit: Count | None = None
    question_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    verify: str = MATH
    allowed_failures: float = Field(0.0, ge=0, lt=1)
    """The share of the answers of an arm that may fail; they are left out."""


class Asked(_PlanSection):
    """The sampling of all data; the student's in a pair. The server decides what is left out."""

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: Count | None = None
    timeout: float = Field(3600.0, gt=0)


class PlannedArm(_PlanSection):
    """A student: what its data is made with, which of it is learned, and by which loss."""

    label: str | None = Field(None, min_length=1, pattern=r"^[^|\r\n]+$")
    """The name in tables. Default: the arm's key."""
    params: dict[str, JsonValue]
    """The `motab` object of the requests."""
    tries: Count = 1
    """The number of answers to each question."""
    filters: tuple[str, ...] = ()
    loss: dict[str, JsonValue] = {"kind": "sft"}
    """A recipe's `loss`."""


class PlannedBenchmark(_PlanSection):
    """Problems that all students answer, as `motab eval` reads them."""

    source: str | None = Field(None, min_length=1)
    """Default: the benchmark's key, which is then one of EvalScope's names."""
    data: Path | None = None
    """The folder with the problems of one of EvalScope's benchmarks."""
    prompt: str = PLACE
    limit: Count | None = None
    split: str = "test"
    subset: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    verify: str | None = None
    samples: Count = 8
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: Count | None = None
    timeout: float = Field(3600.0, gt=0)

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if PLACE not in self.prompt:
            raise ValueError(f"prompt: has no {PLACE}, so it would ask nothing")
        return self


class TokenBudget(_PlanSection):
    """The data of an arm, under one seed, ends when the teacher has written that many tokens."""

    kind: Literal["tokens"]
    teacher_tokens: Count


class MoneyBudget(_PlanSection):
    """The data of an arm, under one seed, ends when it has cost that much by the plan's prices."""

    kind: Literal["money"]
    amount: float = Field(gt=0)


class MethodTokens(_PlanSection):
    """The tokens that one answer by a method is assumed to take, and the calls to both models."""

    student: float = Field(0, ge=0)
    scored: float = Field(0, ge=0)
    teacher: float = Field(0, ge=0)
    calls: float | None = Field(None, ge=0)


class Assumptions(_PlanSection):
    """The numbers from which `--dry-run` estimates what no trial has measured."""

    questions: Count | None = None
    """The number of questions, where the source cannot be counted here."""
    problems: Mapping[str, Count] = {}
    """The number of problems of each benchmark."""
    tokens: Mapping[str, MethodTokens] = {}
    """By method."""
    passing: Mapping[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """By arm: the share of the records that its filters let through. Default: all."""
    example_tokens: Rate | None = None
    """Of a question with its answer, as it is learned."""
    answer_tokens: Rate | None = None
    """Of a student's answer to a problem."""
    student_rate: Rate | None = None
    """Tokens a second that the student writes, all requests together."""
    teacher_rate: Rate | None = None
    score_rate: Rate | None = None
    """Tokens a second that the teacher scores."""
    train_rate: Rate | None = None
    """Tokens a second that are learned."""
    start_seconds: float = Field(0, ge=0)
    """Until a server is up, and until a trainer learns."""


class Plan(_PlanSection):
    """A comparison: a pair, questions, arms, benchmarks, seeds, and the folder of all results."""

    recipe: Path
    """A recipe of `motab train`. Its data, loss and output are replaced by those of each arm."""
    pair: AskedPair
    questions: Questions
    sampling: Asked = Asked()
    arms: dict[Name, PlannedArm] = Field(min_length=1)
    baseline: str = "sft"
    """The arm with which the others are compared."""
    serve: StudentServer
    benchmarks: dict[Name, PlannedBenchmark] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((1,), min_length=1)
    budget: Annotated[TokenBudget | MoneyBudget, Field(discriminator="kind")] | None = None
    prices: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Of a million tokens, by the kinds of `motab synth --price`."""
    assume: Assumptions = Assumptions()
    output: Path

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline: {self.baseline} is no arm; the arms are {', '.join(self.arms)}"
                f"{did_you_mean(self.baseline, self.arms)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: names a seed twice")
        for kind in self.prices.keys() - PRICED.keys():
            raise ValueError(
                f"prices.{kind}: must be one of {', '.join(PRICED)}{did_you_mean(kind, PRICED)}"
            )
        if isinstance(self.budget, MoneyBudget) and not any(self.prices.values()):
            raise ValueError("budget: kind: money needs prices above 0, or it would never be spent")
        for name in self.assume.problems.keys() - self.benchmarks.keys():
            raise ValueError(f"assume.problems.{name}: is no benchmark of this plan")
        methods = {str(arm.params.get("method")) for arm in self.arms.values()}
        for name in self.assume.tokens.keys() - methods:
            raise ValueError(f"assume.tokens.{name}: is the method of no arm of this plan")
        for name in self.assume.passing.keys() - self.arms.keys():
            raise ValueError(f"assume.passing.{name}: is no arm of this plan")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArmParams(Params):
    """The parameters of an arm, checked as the proxy checks a request's."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    scoring: Scoring | Literal["auto"] = "auto"


_PARAMS: Final = TypeAdapter(_ArmParams)


def load_plan(path: Path) -> Plan:
    """Read a file. Raises `PlanError` with one line that names the file, the key and the cure."""
    raw = mapping_in(path, PlanError, "recipe, pair, questions, arms, serve, benchmarks and output")
    try:
        plan = Plan.model_validate(raw)
    except ValidationError as error:
        complaint = complaints_of(error, most=1, unions=_UNIONS, model=Plan)
        raise PlanError(f"{path}: {complaint}") from error
    try:
        _check(plan)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    return plan


def recipe_of_plan(plan: Plan) -> Recipe:
    """Return the recipe of the plan. Raises `PlanError`."""
    try:
        return load_recipe(plan.recipe)
    except RecipeError as error:
        raise PlanError(f"recipe: {error}") from error


def _check(plan: Plan) -> None:
    """Check what takes more than one section to know. Raises `PlanError` that names the key."""
    recipe = recipe_of_plan(plan)
    _check_command("serve.command", plan.serve.command)
    for index, server in enumerate(plan.pair.servers):
        _check_command(f"pair.servers.{index}.command", server.command)
    _check_source("questions.source", plan.questions.source)
    _check_rule("questions.verify", plan.questions.verify)
    for name, benchmark in plan.benchmarks.items():
        source = benchmark.source or name
        if source not in NAMES:
            _check_source(f"benchmarks.{name}.source", source)
        if benchmark.verify is not None:
            _check_rule(f"benchmarks.{name}.verify", benchmark.verify)
    for name, arm in plan.arms.items():
        key = f"arms.{name}"
        try:
            Filters(arm.filters)
        except InputError as error:
            raise PlanError(f"{key}.filters: {str(error).removeprefix('--filter ')}") from error
        try:
            _PARAMS.validate_json(orjson.dumps(arm.params))
        except ValidationError as error:
            complaint = complaints_of(error, most=1, model=_ArmParams)
            raise PlanError(f"{key}.params.{complaint}") from error
        if "method" not in arm.params:
            raise PlanError(f"{key}.params.method is missing")
        try:
            recipe_with(recipe, loss=arm.loss, data=Path("records.jsonl"), output=plan.output)
        except RecipeError as error:
            raise PlanError(f"{key}.{error}") from error


def _check_rule(key: str, rule: str) -> None:
    try:
        check_rule(rule)
    except InputError as error:
        raise PlanError(f"{key}: {error}") from error


def _check_command(key: str, command: str) -> None:
    try:
        shlex.split(command)
    except ValueError as error:
        raise PlanError(f"{key}: {error}") from error


def _check_source(key: str, source: str) -> None:
    """Raise `PlanError` for what is neither there nor a name on the hub (ORG/NAME)."""
    path = Path(source)
    is_a_path = source.startswith(("/", ".", "~")) or path.suffix.lower() in SUFFIXES
    if not path.exists() and (is_a_path or source.count("/") != 1):
        known = f"; EvalScope's are {', '.join(NAMES)}" if key.startswith("benchmarks") else ""
        raise PlanError(
            f"{key}: {source}: no such file or folder, and no ORG/NAME on Hugging Face{known}"
            f"{did_you_mean(source, NAMES)}"
        )
