"""Words means and differences for tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from trainer.evaluation.paired import Difference


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds and its standard deviation, which is None for one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        """Summarise at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)

    def percent(self) -> str:
        """Format for a table."""
        mean = f"{self.mean * 100:.1f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation * 100:.1f}"


def against(difference: Difference | None) -> str:
    """Return a difference in points with its interval; nothing if there is none."""
    if difference is None:
        return ""
    mean = f"{difference.mean * 100:+.1f}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{difference.low * 100:.1f}, {difference.high * 100:.1f}]"


def smallest(differences: Sequence[Difference | None], baseline: str = "SFT") -> str:
    """Say in a sentence how small a difference the design can see; nothing if it is not known."""
    found = [one.smallest for one in differences if one is not None and one.smallest is not None]
    if not found:
        return ""
    low, high = f"{min(found) * 100:.1f}", f"{max(found) * 100:.1f}"
    points = f"{low} points" if low == high else f"{low} to {high} points, by arm"
    return (
        "In brackets: 95% intervals, paired over problems and seeds. A difference from"
        f" {baseline} is found in 80% of the cases, at the 5% level, if it is at least"
        f" {points}."
    )
