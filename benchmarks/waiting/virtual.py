"""Runs motab's monitor and schedule in simulated time, against servers of known speeds.

It follows `Known`: no other trajectory, no network but the trip. So what the rule costs can be
counted exactly, and thousands of tokens a millisecond.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.waiting.optimum import Cost, Known
from proxy.core.monitor import MotabMonitor
from proxy.core.params import Params
from proxy.core.types import (
    Breached,
    Command,
    Judged,
    Pause,
    Resume,
    Score,
    Scored,
    StepScore,
    Wrote,
)
from proxy.engine.schedule import BreachRate, ComputingSpeed, Line, MeasuredSchedule, WritingSpeed


@dataclass(slots=True)
class Learned:
    """Keeps what a pair has measured, from one trajectory to the next."""

    known: Known
    now: float = 0.0
    writing: WritingSpeed = field(init=False)
    computing: ComputingSpeed = field(init=False)
    hazard: BreachRate = field(init=False, default_factory=BreachRate)
    answering: Line = field(init=False, default_factory=Line)

    def __post_init__(self) -> None:
        self.writing = WritingSpeed(self.clock)
        self.computing = ComputingSpeed(self.clock)

    def clock(self) -> float:
        """Return the simulated time."""
        return self.now

    def schedule(self) -> MeasuredSchedule:
        """Return a trajectory's schedule. The price is given for the tokens of one stream."""
        return MeasuredSchedule(
            self.writing,
            self.computing,
            self.hazard,
            self.answering,
            self.known.price * self.known.prefill / self.known.rate,
            recomputes=self.known.recomputes,
            clock=self.clock,
        )


@dataclass(slots=True)
class _Trajectory:
    """One trajectory, until its breach is found."""

    known: Known
    learned: Learned
    breach: int
    schedule: MeasuredSchedule = field(init=False)
    monitor: MotabMonitor = field(init=False)
    written: int = 0
    computed: int = 0
    waited_s: float = 0.0
    is_over: bool = False
    _next_event_at: float = field(init=False)
    """When the student's next event comes if it does not wait."""
    _paused_at: float | None = None
    _answer_at: float | None = None
    _call: Score | None = None
    _writing: ExitStack = field(init=False, default_factory=ExitStack)
    _pausing: ExitStack = field(init=False, default_factory=ExitStack)
    _computing: ExitStack = field(init=False, default_factory=ExitStack)

    def run(self) -> Cost:
        """Return the cost until the breach is found."""
        self.schedule = self.learned.schedule()
        self.monitor = MotabMonitor(Params(max_total_tokens=10**6), self.schedule)
        self._next_event_at = self.learned.now + 1 / self.known.rate
        with self._writing, self._computing, self._pausing:
            self._writing.enter_context(self.learned.writing.writing())
            self._obey(self.monitor.start())
            while not self.is_over:
                self._advance()
            if self._paused_at is not None:
                self._resume()
        kept = (self.breach + 1) * self.known.step_tokens
        waited = self.waited_s * self.known.rate
        return Cost(kept, self.written - kept, self.computed, waited)

    def _advance(self) -> None:
        """Let the next thing happen."""
        writes = self._paused_at is None
        if self._answer_at is None or (writes and self._next_event_at <= self._answer_at):
            self._write()
        else:
            self._answer(self._answer_at)

    def _write(self) -> None:
        self.learned.now = self._next_event_at
        num = self.known.interval if self.written else 1
        pieces = tuple(self._piece(place) for place in range(self.written, self.written + num))
        self.written += num
        self.learned.writing.count(num)
        self._next_event_at += self.known.interval / self.known.rate
        self._obey(self.monitor.handle(Wrote(0, pieces)))

    def _piece(self, place: int) -> str:
        return ".\n\n" if (place + 1) % self.known.step_tokens == 0 else "a "

    def _answer(self, at: float) -> None:
        call, self._call, self._answer_at = self._call, None, None
        if call is None:
            raise RuntimeError("nothing was asked")
        self.learned.now = at
        self._computing.close()
        last = len(call.steps)
        self.schedule.num_context = self._context(last)
        values = (float(step != self.breach) for step in range(last - call.num_new, last))
        scores = tuple(StepScore(value, 0.0, self.known.step_tokens) for value in values)
        self._obey(self.monitor.handle(Scored(scores, 0.0)))

    def _context(self, num_steps: int) -> int:
        return self.known.question_tokens + num_steps * self.known.step_tokens

    def _obey(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Judged(_, step):
                    self.learned.hazard.judged(step.student_tokens, safe=step.safe is True)
                case Score():
                    self._ask(command)
                case Pause():
                    self._paused_at = self.learned.now
                    self._pausing.enter_context(self.learned.writing.pausing())
                case Resume():
                    self._resume()
                case Breached():
                    self.is_over = True
                case _:
                    pass

    def _ask(self, call: Score) -> None:
        last = len(call.steps)
        num = self.known.computed(last - call.num_new, last)
        self.computed += num
        self._call = call
        self._computing.enter_context(self.learned.computing.computing(self._context(last)))
        self._answer_at = self.learned.now + self.known.trip_s + num / self.known.prefill

    def _resume(self) -> None:
        if self._paused_at is None:
            raise RuntimeError("nothing waits")
        waited_s, self._paused_at = self.learned.now - self._paused_at, None
        self.waited_s += waited_s
        self._next_event_at += waited_s
        self._pausing.close()


def cost_of_motab(known: Known, breaches: Iterable[int], learned: Learned | None = None) -> Cost:
    """Return the cost of trajectories one after another, whose pair learns on the way."""
    learned = Learned(known) if learned is None else learned
    costs = [_Trajectory(known, learned, breach).run() for breach in breaches]
    return Cost(
        sum(cost.kept for cost in costs),
        sum(cost.wasted for cost in costs),
        sum(cost.computed for cost in costs),
        sum(cost.waited for cost in costs),
    )
