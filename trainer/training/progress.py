"""Follows a training in the `trainer_log.jsonl` that LLaMA-Factory writes as it runs."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG: Final = "trainer_log.jsonl"
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 60


@dataclass(slots=True)
class Losses:
    """Losses by step, and the total number of steps; each read continues where the last stopped."""

    path: Path
    by_step: dict[int, float] = field(default_factory=dict)
    total: int | None = None
    _offset: int = 0

    @property
    def step(self) -> int:
        """The last step in the log, 0 before the first."""
        return max(self.by_step, default=0)

    def read(self) -> bool:
        """Read new lines, return whether there are any. A line without its newline has to wait."""
        if not self.path.exists():
            return False
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return bool(whole)

    def _take(self, line: bytes) -> None:
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:  # torn by a run that was killed while writing
            return
        self.total = entry.get("total_steps", self.total)
        if "loss" in entry:
            self.by_step[entry["current_steps"]] = entry["loss"]

    def forget_after(self, step: int) -> None:
        """Drop the steps after the checkpoint from which the next run starts."""
        self.by_step = {one: loss for one, loss in self.by_step.items() if one <= step}


def sparkline(losses: list[float], width: int = _WIDTH) -> str:
    """Return the losses as bars, each the mean of equally many steps."""
    if not losses:
        return ""
    count = min(width, len(losses))
    bounds = [index * len(losses) // count for index in range(count + 1)]
    means = [sum(losses[start:end]) / (end - start) for start, end in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


class Display:
    """A bar and the curve in a terminal; elsewhere a line after every tenth of the steps."""

    def __init__(self, console: Console, losses: Losses) -> None:
        self._console = console
        self._losses = losses
        self._said = -1
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("Loading", total=None)
        self._live = Live(
            self._bar, console=console, transient=True, auto_refresh=console.is_terminal
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def update(self) -> None:
        """Show the losses read since the last update."""
        losses = self._losses
        if not losses.by_step or losses.total is None:
            return
        loss = losses.by_step[losses.step]
        if not self._console.is_terminal:
            tenth = 10 * losses.step // losses.total
            if tenth != self._said:
                self._said = tenth
                self._console.print(f"step {losses.step} of {losses.total}, loss {loss:.4f}")
            return
        self._bar.update(
            self._task,
            description=f"Training, loss {loss:.4f}",
            completed=losses.step,
            total=losses.total,
        )
        curve = sparkline([losses.by_step[step] for step in sorted(losses.by_step)])
        self._live.update(Group(self._bar, Text(curve, style="cyan")))
