"""Counts the rounds of a campaign, of which each draws from a seed of its own."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

WHOLE_S = 600
"""The campaign for which the least counts of the tests are meant; a shorter one needs fewer."""


@dataclass
class Campaign:
    """Rounds for a time. To repeat a round, give its seed as MOTAB_CHAOS_SEED: it comes first."""

    seconds: float
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    """Everything that the test counted, such as kills."""
    num_rounds: int = 0
    began: float = field(default_factory=time.monotonic)

    def rounds(self, share: float, **least: int) -> Iterator[random.Random]:
        """The random numbers of each round, until this share of the time is over and as much is
        done as `least` says: a slow machine takes longer, and does not fail.
        """
        until = time.monotonic() + share * self.seconds
        while time.monotonic() < until or any(
            self.done[name] < self.scaled(count) for name, count in least.items()
        ):
            yield random.Random(self.seed + self.num_rounds)
            self.num_rounds += 1

    def scaled(self, count: int) -> int:
        """The part of a whole campaign's count that falls to this one."""
        return max(1, round(count * min(1.0, self.seconds / WHOLE_S)))

    def summary(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items()))
        took = time.monotonic() - self.began
        last = f"the last round's MOTAB_CHAOS_SEED={self.seed + max(0, self.num_rounds - 1)}"
        return f"{counts}; {took:.0f} s, from MOTAB_CHAOS_SEED={self.seed}, {last}"
