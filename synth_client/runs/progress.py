"""Shows the figures of a run: in the terminal, in the log, and as JSON lines."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final

import orjson
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from synth_client.asking.errors import SynthesisError
from synth_client.asking.limiter import wait_for
from synth_client.asking.pool import Failed, Load, Outcome
from synth_client.files.atomic import output_errors
from synth_client.prices import costs_of, priced_tokens

_log = logging.getLogger(__name__)

_WINDOW_S: Final = 60.0
_TICK_S: Final = 1.0
_LOG_EVERY: Final = 30
_FEW: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """A line of the progress file.

    Units are trajectories: one sample of one question. `done` includes earlier sessions of the run;
    all other figures cover this session, and rates its last minute. `total` and `eta_s` are None if
    the length of the input is unknown, `breach_rate` and `mean_bifurcation` (the bifurcation step,
    from 0, over trajectories with a breach) if there is nothing to count yet, `cost` without
    prices. `errors` counts failed attempts by class, `concurrency` is the current limit and `cuts`
    the number of its cuts. Tokens per second are written by the student, scored by the teacher, and
    written by the teacher.
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
        """Return labels and values for people to read."""
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
        """Return the same in one line."""
        return "; ".join(f"{label}: {value}" for label, value in self.facts())


@dataclass(slots=True)
class Tally:
    """Counts of one session. `prices` are per million tokens, by what the tokens are for."""

    prices: Mapping[str, float] = field(default_factory=dict)
    counts_trajectories: bool = True
    """False where records are only scored: others wrote them and paid for their tokens."""
    total: int | None = None
    num_kept: int = 0
    """Units done in an earlier session, or by another unit with the same key."""
    num_done: int = 0
    num_failed: int = 0
    num_breached: int = 0
    sum_bifurcation: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count a finished unit."""
        record = outcome.result
        if isinstance(record, Failed):
            self.num_failed += 1
            return
        self.num_done += 1
        if not self.counts_trajectories:
            return
        if record.bifurcation is not None:
            self.num_breached += 1
            self.sum_bifurcation += record.bifurcation
        self.tokens.update(priced_tokens(record.usage))

    def add_error(self, error: SynthesisError) -> None:
        """Count a failed attempt, and its cost."""
        self.errors[error.trouble.value] += 1
        if error.spent is not None:
            self.tokens.update(priced_tokens(error.spent))

    def cost(self) -> float | None:
        """Return the cost of the session so far, None without prices."""
        if not self.prices:
            return None
        costs = (one.cost for one in costs_of(self.tokens, self.prices))
        return sum(cost for cost in costs if cost is not None)


@dataclass(frozen=True, slots=True)
class _Mark:
    time: float
    num_done: int
    num_ended: int
    tokens: Counter[str]


class Progress:
    """Shows the figures every second until it is stopped. Use `run` as a task."""

    def __init__(
        self,
        tally: Tally,
        load: Callable[[], Load],
        *,
        console: Console,
        file: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tally, self._load = tally, load
        self._console, self._path, self._clock = console, file, clock
        self._stopped = asyncio.Event()
        self._started = clock()
        self._marks: deque[_Mark] = deque([self._mark()])

    def stop(self) -> None:
        """Show the figures once more and end `run`."""
        self._stopped.set()

    async def run(self) -> None:
        """Show the figures until `stop`. Raises `OutputError` if the file cannot be written."""
        with ExitStack() as stack:
            file = None
            if self._path is not None:
                with output_errors(self._path):
                    file = stack.enter_context(self._path.open("ab", buffering=0))
            live = None
            if self._console.is_terminal:
                live = stack.enter_context(
                    Live(console=self._console, auto_refresh=False, transient=False)
                )
            num_ticks = 0
            while True:
                is_last = self._stopped.is_set()
                self._show(live, file, log=is_last or num_ticks % _LOG_EVERY == _LOG_EVERY - 1)
                if is_last:
                    return
                await wait_for(self._stopped, _TICK_S)
                num_ticks += 1

    def figures(self) -> ProgressLine:
        """Return the present figures. Rates cover the last minute."""
        now, tally, load = self._mark(), self._tally, self._load()
        while len(self._marks) > 1 and now.time - self._marks[0].time > _WINDOW_S:
            self._marks.popleft()
        before = self._marks[0]
        self._marks.append(now)
        span_s = max(now.time - before.time, 1e-9)
        rate = (now.num_done - before.num_done) / span_s
        ended_rate = (now.num_ended - before.num_ended) / span_s
        num_ended = tally.num_kept + now.num_ended
        if now.num_ended - before.num_ended < _FEW:
            # Trajectories may take longer than the window.
            ended_rate = now.num_ended / max(now.time - self._started, 1e-9)
        left = None if tally.total is None else max(tally.total - num_ended, 0)
        return ProgressLine(
            seconds=now.time - self._started,
            total=tally.total,
            done=tally.num_kept + tally.num_done,
            failed=tally.num_failed,
            in_flight=load.num_active,
            waiting=load.num_waiting,
            concurrency=load.limit,
            cuts=load.num_cuts,
            trajectories_per_s=rate,
            tokens_per_s={
                name: (now.tokens[name] - before.tokens[name]) / span_s
                for name in ("student", "scored", "teacher")
            },
            breach_rate=_share(tally.num_breached, tally.num_done),
            mean_bifurcation=_share(tally.sum_bifurcation, tally.num_breached),
            errors=dict(tally.errors),
            cost=tally.cost(),
            eta_s=left / ended_rate if left is not None and ended_rate > 0 else None,
        )

    def _mark(self) -> _Mark:
        tally = self._tally
        ended = tally.num_done + tally.num_failed
        return _Mark(self._clock(), tally.num_done, ended, Counter(tally.tokens))

    def _show(self, live: Live | None, file: BinaryIO | None, *, log: bool) -> None:
        figures = self.figures()
        if live is not None:
            live.update(render_progress(figures), refresh=True)
        elif log:
            _log.info("%s", figures.line())
        if file is not None:
            with output_errors(self._path or Path()):
                file.write(orjson.dumps(asdict(figures), option=orjson.OPT_APPEND_NEWLINE))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _clock(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


def render_progress(figures: ProgressLine) -> RenderableType:
    """Return a panel with all figures, and a bar if the total is known."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for label, value in figures.facts():
        facts.add_row(Text(label), Text(value))
    ended = figures.done + figures.failed
    shown = Table.grid(expand=True)
    if figures.total is not None:
        shown.add_row(ProgressBar(total=max(figures.total, ended), completed=ended))
    shown.add_row(facts)
    return Panel(shown, title="motab synth", title_align="left")
