"""Defines the results of a scenario: figures, some with a target, and curves for the plot."""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table. A figure without a limit is there for comparison."""

    name: str
    value: float
    detail: str = ""
    unit: str = field(default="", kw_only=True)
    at_most: float | None = field(default=None, kw_only=True)
    at_least: float | None = field(default=None, kw_only=True)

    @property
    def target(self) -> str | None:
        """The limit in words; None without a limit."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return None if self.at_least is None else f">= {self.at_least:g}"

    @property
    def reached(self) -> bool | None:
        """True if the value keeps to the limit; None without a limit."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


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

    __name__: str

    async def __call__(self, *, quick: bool) -> Findings:
        """Measure. `quick` is for development: smaller, and its figures mean little."""
        ...


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
