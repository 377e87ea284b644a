"""Divides a plan into stages. A stage's folder bears the hash of its inputs, so that a stage is
done once, whoever needs it, and again only when something that decides its result has changed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Final, Literal

import orjson
from pydantic import JsonValue

from synth_client.files.atomic import output_errors, write_whole
from trainer.compare.plan import Plan, PlannedArm, PlannedBenchmark, recipe_of_plan
from trainer.compare.restitch import DECIDED_BY_THE_TEXT
from trainer.evaluation.evaluate import RECORDS
from trainer.training.recipe import Recipe

Kind = Literal["data", "examples", "score", "train", "eval"]
DONE: Final = "done.json"
STUDENT: Final = "student"
TEACHER: Final = "teacher"
_KEY_BYTES: Final = 6
_MOST_HASHED: Final = 2**20
# What does not change which students come out.
_FREE_OF_A_RECIPE: Final = ("data", "loss", "output", "hardware")


@dataclass(frozen=True)
class Stage:
    """A step of the comparison. `inputs` decide its result; `done.json` says that it is complete.

    `label` is the readable part of the folder's name.
    """

    kind: Kind
    label: str
    inputs: Mapping[str, Any]
    root: Path

    @cached_property
    def key(self) -> str:
        content = orjson.dumps([self.kind, self.inputs], option=orjson.OPT_SORT_KEYS)
        return blake2b(content, digest_size=_KEY_BYTES).hexdigest()

    @property
    def folder(self) -> Path:
        return self.root / self.kind / f"{self.label}-{self.key}"

    @property
    def records(self) -> Path:
        """The records that data, examples, scores and answers are."""
        return self.folder / RECORDS

    @property
    def is_done(self) -> bool:
        return (self.folder / DONE).exists()

    def facts(self) -> dict[str, Any]:
        """Return what was noted when the stage was done."""
        path = self.folder / DONE
        with output_errors(path):
            found: dict[str, Any] = orjson.loads(path.read_bytes())
        return found

    def took(self) -> float:
        """Return the seconds that the session took in which the stage was done, and its servers'
        start.
        """
        facts = self.facts()
        seconds: float = facts["seconds"] + facts["start_seconds"]
        return seconds

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Note that the stage is complete, and what is known about it."""
        said = {"stage": self.kind, "inputs": self.inputs, **facts}
        write_whole(self.folder / DONE, orjson.dumps(said, option=orjson.OPT_INDENT_2))


@dataclass(frozen=True)
class DataStage(Stage):
    """Records of the pair: every question asked `tries` times with `params`."""

    params: Mapping[str, JsonValue]
    tries: int
    seed: int

    @property
    def method(self) -> str:
        return str(self.params["method"])


@dataclass(frozen=True)
class ExamplesStage(Stage):
    """The records that are learned: within the budget, stitched as wanted, past the filters."""

    data: DataStage
    is_clean: bool
    filters: tuple[str, ...]


@dataclass(frozen=True)
class ScoreStage(Stage):
    """The same records with every token's log-probabilities, for a loss that weights tokens."""

    examples: ExamplesStage


@dataclass(frozen=True)
class TrainStage(Stage):
    """A student that learns from records by a loss."""

    source: ExamplesStage | ScoreStage
    loss: Mapping[str, JsonValue]
    seed: int

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def training(self) -> Path:
        return self.folder / "training"

    @property
    def model(self) -> Path:
        return self.training / "model"


@dataclass(frozen=True)
class EvalStage(Stage):
    """The answers of a model to a benchmark's problems.

    `model` is a training's student, or one of the pair itself.
    """

    model: TrainStage | Literal["student", "teacher"]
    name: str
    benchmark: PlannedBenchmark


@dataclass(frozen=True, slots=True)
class ArmUnit:
    """One arm under one seed: its data, its student, and the student's answers by benchmark."""

    name: str
    arm: PlannedArm
    seed: int
    data: DataStage
    examples: ExamplesStage
    score: ScoreStage | None
    train: TrainStage
    evals: Mapping[str, EvalStage]


@dataclass(frozen=True, slots=True)
class Stages:
    """All units seed by seed, and the evaluations of the models of the pair themselves."""

    units: tuple[ArmUnit, ...]
    pair: Mapping[str, Mapping[str, EvalStage]]
    """By model, and by benchmark."""

    def in_order(self) -> Iterator[Stage]:
        """Yield every stage once: all that needs the pair, then the trainings, then the answers."""
        found: dict[Path, Stage] = {}
        for unit in self.units:
            for stage in (unit.data, unit.examples, unit.score):
                if stage is not None:
                    found.setdefault(stage.folder, stage)
        for unit in self.units:
            found.setdefault(unit.train.folder, unit.train)
        for evals in (*self.pair.values(), *(unit.evals for unit in self.units)):
            for one in evals.values():
                found.setdefault(one.folder, one)
        yield from found.values()

    def arms_of(self, stage: Stage) -> list[str]:
        """Return the names of the arms that need a stage; a model's name for the pair's own."""
        names = dict.fromkeys(
            unit.name
            for unit in self.units
            for one in (unit.data, unit.examples, unit.score, unit.train, *unit.evals.values())
            if one is not None and one.folder == stage.folder
        )
        own = (name for name, evals in self.pair.items() if stage in evals.values())
        return [*names, *own]


def stages_of(plan: Plan) -> Stages:
    """Return the stages of a plan, whether they are done or not."""
    maker = _Maker(plan, recipe_of_plan(plan))
    units = [maker.unit(name, arm, seed) for seed in plan.seeds for name, arm in plan.arms.items()]
    pair = {STUDENT: maker.evals(STUDENT, maker.student, STUDENT)}
    if (teacher := plan.pair.teacher) is not None:
        pair[TEACHER] = maker.evals(TEACHER, teacher.model, TEACHER)
    return Stages(tuple(units), pair)


class _Maker:
    """Makes the stages of one plan; what they share is hashed once."""

    def __init__(self, plan: Plan, recipe: Recipe) -> None:
        self._plan, self._root = plan, plan.output
        self.student = fingerprint(recipe.model)
        asked = plan.questions.model_dump(mode="json")
        self._questions = asked | {"content": fingerprint(plan.questions.source)}
        dumped = recipe.model_dump(mode="json")
        self._recipe = {
            **{name: dumped[name] for name in dumped if name not in _FREE_OF_A_RECIPE},
            "model": self.student,
        }
        self._benchmarks = {
            name: one.model_dump(mode="json", exclude={"timeout"})
            | {"content": fingerprint(one.source or name), "data": fingerprint(one.data or "")}
            for name, one in plan.benchmarks.items()
        }

    def unit(self, name: str, arm: PlannedArm, seed: int) -> ArmUnit:
        data = self._data(arm, seed)
        label = data.label
        is_clean = _shares_stitch(arm.params) and arm.params.get("stitch") == "clean"
        budget = self._plan.budget
        limits = None if budget is None else [budget.model_dump(), self._plan.prices]
        examples = ExamplesStage(
            "examples",
            label,
            {"data": data.key, "clean": is_clean, "filters": arm.filters, "budget": limits},
            self._root,
            data,
            is_clean,
            arm.filters,
        )
        score: ScoreStage | None = None
        if arm.loss["kind"] == "weighted":
            inputs = {"examples": examples.key, "model": self._plan.pair.model}
            score = ScoreStage("score", label, inputs, self._root, examples)
        source = score or examples
        learned = {"source": source.key, "loss": arm.loss, "seed": seed, "recipe": self._recipe}
        train = TrainStage("train", label, learned, self._root, source, arm.loss, seed)
        evals = self.evals(train, train.key, label)
        return ArmUnit(name, arm, seed, data, examples, score, train, evals)

    def _data(self, arm: PlannedArm, seed: int) -> DataStage:
        plan = self._plan
        params = dict(arm.params)
        if _shares_stitch(params):
            params.pop("stitch", None)
        budget = None if plan.budget is None else [plan.budget.model_dump(), plan.prices]
        inputs = {
            "questions": self._questions,
            "model": plan.pair.model,
            "params": params,
            "sampling": plan.sampling.model_dump(mode="json", exclude={"timeout"}),
            "seed": seed,
            "tries": arm.tries,
            "budget": budget,
        }
        label = f"{params['method']}-seed-{seed}"
        return DataStage("data", label, inputs, self._root, params, arm.tries, seed)

    def evals(
        self, model: TrainStage | Literal["student", "teacher"], key: JsonValue, label: str
    ) -> dict[str, EvalStage]:
        return {
            name: EvalStage(
                "eval",
                f"{label}-{name}",
                {"model": key, "benchmark": self._benchmarks[name]},
                self._root,
                model,
                name,
                one,
            )
            for name, one in self._plan.benchmarks.items()
        }


def _shares_stitch(params: Mapping[str, JsonValue]) -> bool:
    """Return whether `stitch: clean` can be made from the records of `stitch: flawed`."""
    return params["method"] == "motab" and params.keys().isdisjoint(DECIDED_BY_THE_TEXT)


def fingerprint(source: str | Path) -> JsonValue:
    """Return what identifies a file or folder: its content, or names and sizes of large files.

    Anything else, such as a name on the hub, identifies itself.
    """
    path = Path(source).expanduser()
    if not str(source) or not path.exists():
        return str(source)
    if path.is_file():
        with output_errors(path), path.open("rb") as file:
            digest = sha256()
            while block := file.read(_MOST_HASHED):
                digest.update(block)
        return digest.hexdigest()
    with output_errors(path):
        files = sorted(one for one in path.rglob("*") if one.is_file())
        return [[str(one.relative_to(path)), _identity(one)] for one in files]


def _identity(path: Path) -> JsonValue:
    size = path.stat().st_size
    return size if size > _MOST_HASHED else fingerprint(path)
