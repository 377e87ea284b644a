"""Defines the results of a scenario: figures, some with a target, and curves for the plot."""

from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """A figure's limit."""

    sense: Literal["at most", "at least"]
    value: float

    def is_met_by(self, value: float) -> bool:
        """Return whether a value meets the target."""
        return value <= self.value if self.sense == "at most" else value >= self.value

    def __str__(self) -> str:
        return f"{'<=' if self.sense == 'at most' else '>='} {self.value:g}"


def at_most(value: float) -> Target:
    """An upper limit."""
    return Target("at most", value)


def at_least(value: float) -> Target:
    """A lower limit."""
    return Target("at least", value)


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table. A figure without a target is there for comparison."""

    name: str
    value: float
    unit: str = ""
    target: Target | None = None
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """True if the target is met; None without a target."""
        return None if self.target is None else self.target.is_met_by(self.value)


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves by name over the same axes."""

    title: str
    x: str
    y: str
    curves: dict[str, tuple[Point, ...]]
    log: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of a scenario; `conditions` describes the circumstances of the measurement."""

    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...] = ()
    conditions: dict[str, str | float] = field(default_factory=dict)


class Scenario(Protocol):
    """One of `benchmarks.scenarios`."""

    async def __call__(self, *, quick: bool) -> Findings:
        """Measure. `quick` is for development: smaller, and its figures mean little."""
        ...


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
