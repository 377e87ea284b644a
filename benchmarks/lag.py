"""Checks whether the machine was free enough for measurements by the clock."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from benchmarks.figures import quantile

TOO_LATE_MS: Final = 20.0
"""Above this lag, times say more about the machine's other work than about ours."""
_BEAT_S = 0.02


@dataclass(slots=True)
class Lag:
    """Records how late this process woke up: it does little itself, so others had the processor."""

    _late_ms: list[float] = field(default_factory=list)

    async def watch(self) -> None:
        """Measure until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self._late_ms.append((clock() - due) * 1000)

    def p99_ms(self) -> float:
        """The 99th percentile so far."""
        return quantile(self._late_ms, 0.99) if self._late_ms else 0.0
