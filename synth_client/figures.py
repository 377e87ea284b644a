"""The figures of a run at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests under way, trajectories that wait for another attempt, the limit, and its cuts."""

    num_active: int = 0
    num_waiting: int = 0
    limit: int = 0
    num_cuts: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(
            num_active=self.num_active + other.num_active,
            num_waiting=self.num_waiting + other.num_waiting,
            limit=self.limit + other.limit,
            num_cuts=self.num_cuts + other.num_cuts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A line of the progress file.

    Units are trajectories: one sample of one question. `done` counts those of earlier sessions of
    the run, too; all other figures are of this session, and rates of its last minute. `total` and
    `eta_s` are None where the input does not tell its length, `breach_rate` and `mean_bifurcation`
    (the step gone back to, from 0, over trajectories with a breach) where there is nothing to count
    yet, `cost` without prices. `errors` counts failed attempts by class, `concurrency` is the
    current limit and `cuts` how often it was cut. Tokens per second are those written by the
    student, scored by the teacher, and written by the teacher.
    """

    seconds: float
    total: int | None
    done: int
    failed: int
    in_flight: int
    waiting: int
    concurrency: int
    cuts: int
    trajectories_per_s: float
    tokens_per_s: Mapping[str, float]
    breach_rate: float | None
    mean_bifurcation: float | None
    errors: Mapping[str, int]
    cost: float | None
    eta_s: float | None

    def facts(self) -> list[tuple[str, str]]:
        """Labels and values, as people read them."""
        total = "" if self.total is None else f" of {self.total:,}"
        tokens = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.tokens_per_s.items())
        errors = ", ".join(f"{name} {number:,}" for name, number in sorted(self.errors.items()))
        cuts = "once" if self.cuts == 1 else f"{self.cuts:,} times"
        concurrency = f"{self.in_flight:,} under way, limit {self.concurrency:,}, cut {cuts}"
        facts = [
            ("trajectories", f"{self.done:,}{total}, {self.failed:,} failed"),
            ("per second", f"{self.trajectories_per_s:,.2f}"),
            ("tokens per second", tokens),
            ("breach rate", _percent(self.breach_rate)),
            ("mean bifurcation", _number(self.mean_bifurcation)),
            ("concurrency", f"{concurrency}; {self.waiting:,} wait for another attempt"),
            ("errors", errors or "none"),
        ]
        if self.cost is not None:
            facts.append(("cost", f"{self.cost:,.2f}"))
        facts.append(("time", f"{_clock(self.seconds)}, {_clock(self.eta_s)} to go"))
        return facts

    def line(self) -> str:
        """The same in one line."""
        return "; ".join(f"{label}: {value}" for label, value in self.facts())


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _clock(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))
