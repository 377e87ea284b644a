"""Defines how large a reproduction is, and where its files are."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainer.reproduce.arms import ARMS, Arm
from trainer.reproduce.task import Level
from trainer.training.recipe import (
    CpuHardware,
    DataLoss,
    Recipe,
    RecordsData,
    SftLoss,
    Training,
    WeightedLoss,
)

SHIPPED: Final = Path(__file__).parent / "models"


@dataclass(frozen=True, slots=True)
class Scale:
    """The numbers that define a comparison and identify it. Temperatures are the student's.

    Every student sees `num_steps` batches of `batch_size` examples, however many examples it has.
    The thresholds are learned from `num_trials` answers of the base student.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    num_trials: int
    num_questions: int
    num_test: int
    num_samples: int
    num_steps: int
    batch_size: int
    learning_rate: float
    temperature: float
    test_temperature: float
    max_tokens: int
    level: Level = "hard"


# 225 batches of 32 are six epochs of 1,200 examples.
TINY: Final = Scale(
    arms=ARMS,
    seeds=(1, 2, 3),
    num_trials=500,
    num_questions=1200,
    num_test=300,
    num_samples=8,
    num_steps=225,
    batch_size=32,
    learning_rate=1e-3,
    temperature=1.0,
    test_temperature=0.6,
    max_tokens=128,
)
_IN_MINI: Final = frozenset(
    {"sft", "rft", "motab", "motab-rounds", "motab-best", "motab-clean", "motab-unflawed"}
)
MINI: Final = replace(
    TINY,
    arms=tuple(arm for arm in ARMS if arm.name in _IN_MINI),
    seeds=(1,),
    num_questions=600,
    num_test=200,
    num_samples=4,
    num_steps=113,
)
_IN_SMOKE: Final = frozenset({"sft", "motab", "motab-rounds", "motab-best"})
SMOKE: Final = replace(
    TINY,
    arms=tuple(arm for arm in ARMS if arm.name in _IN_SMOKE),
    seeds=(1,),
    num_trials=48,
    num_questions=24,
    num_test=12,
    num_samples=2,
    num_steps=3,
    batch_size=8,
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A student to be trained: an arm's data, training and evaluation under one seed.

    `root` is the folder of its seed.
    """

    arm: Arm
    seed: int
    root: Path

    @property
    def folder(self) -> Path:
        """The folder of this unit alone."""
        return self.root / self.arm.name

    @property
    def records(self) -> Path:
        """The proxy's records for this unit, or for the arm that it shares them with."""
        return self.root / (self.arm.data_of or self.arm.name) / "records.jsonl"

    @property
    def learned(self) -> Path:
        """The records that are learned: with their log-probabilities where tokens are weighted,
        and without the flawed attempts where an arm is clean.
        """
        if self.arm.weights is not None:
            return self.records.with_name("scored.jsonl")
        return self.records.with_name("clean.jsonl") if self.arm.is_clean else self.records

    @property
    def recipe(self) -> Path:
        """The recipe of `motab train`."""
        return self.folder / "recipe.yaml"

    @property
    def training(self) -> Path:
        """The run folder of `motab train`."""
        return self.folder / "training"

    @property
    def student(self) -> Path:
        """The trained student."""
        return self.training / "model"

    @property
    def evaluation(self) -> Path:
        """The folder of `motab eval`."""
        return self.folder / "eval"


def recipe_of(unit: Unit, scale: Scale, student: Path) -> Recipe:
    """Return the recipe of the unit's student, starting from the base student's folder."""
    return Recipe(
        model=str(student),
        data=RecordsData(kind="records", path=unit.learned, filters=unit.arm.filters),
        loss=_loss_of(unit.arm),
        training=Training(
            max_steps=scale.num_steps,
            batch_size=scale.batch_size,
            max_tokens=scale.max_tokens * 2,
            learning_rate=scale.learning_rate,
            min_learning_rate=scale.learning_rate / 10,
            save_every=scale.num_steps,
            keep=1,
            seed=unit.seed,
        ),
        hardware=CpuHardware(kind="cpu", per_device=scale.batch_size),
        output=unit.training,
    )


def _loss_of(arm: Arm) -> DataLoss:
    if arm.weights is None:
        return SftLoss(kind="sft", mask=arm.mask)
    return WeightedLoss(kind="weighted", mask=arm.mask, level=arm.weights)
