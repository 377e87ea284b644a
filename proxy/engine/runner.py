"""Runs one trajectory, from the rendered question to the stitched text.

The student writes one streaming completion from start to end while its steps are scored. All
decisions are the monitor's: this module obeys its commands and reports what happened as events.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from proxy.backends.base import Call, Context, Draft, Question, Sampling, Scorer, Scores
from proxy.core.lookahead import AT_ONCE
from proxy.core.monitor import monitor_for
from proxy.core.params import Params
from proxy.core.stitch import quality_of
from proxy.core.thinking import Translator, first_logprobs
from proxy.core.types import (
    NO_PROBABILITIES,
    Author,
    Breached,
    ChoosingMonitor,
    Command,
    Emit,
    Event,
    Finish,
    Halt,
    Judged,
    Keep,
    Monitor,
    Party,
    Pause,
    ReadAnswers,
    Resume,
    Score,
    Scoring,
    ScoringMonitor,
    Trajectory,
    Write,
    WriteEnded,
    Wrote,
)
from proxy.engine.borders import MAX_AHEAD, ahead_of
from proxy.engine.budget import BudgetedWrite, LimitedBy
from proxy.engine.corrections.candidates import Candidates
from proxy.engine.fitting import StepsToScore, score_what_fits
from proxy.engine.ladder import score_by_ladder
from proxy.engine.model_context import ModelContext, Prompts, about_tokens
from proxy.engine.outlet import Observer, Outlet, WideOutlet
from proxy.engine.pair import Pair
from proxy.engine.schedule import MeasuredSchedule
from proxy.engine.seeds import sampling_of_write, seed_of_draws
from proxy.engine.upstream import Gate, Upstream, num_revise_tokens
from proxy.engine.usage import Outcome, Usage, WriteMeter
from proxy.errors import MotabError, UpstreamError, UpstreamMalformed, first_error
from proxy.tracing.attributes import INPUT_TOKENS
from proxy.tracing.tracer import TraceSpan

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrajectoryRun:
    """One trajectory in the making; `run` it once."""

    pair: Pair
    question: Question
    params: Params
    sampling: Sampling
    """The student's sampling; the teacher writes with `params.teacher_temperature`,
    `params.teacher` and the same seed. The seed of an author's later write is derived from it."""
    call: Call
    observer: Observer
    scorer: Scorer | None = None
    """One of the pair's scorers, if the method scores."""
    prompts: Prompts = field(default_factory=Prompts)
    """Shared by all trajectories of the question."""
    outlet: Outlet = field(default_factory=WideOutlet)
    """Where the observer's text goes."""
    streams: bool = True
    """Whether the observer's text is sent at once, so that it cannot be taken back."""
    fallbacks: tuple[Scorer, ...] = ()
    """The scorers for steps of which `scorer` makes no sense twice, best first."""
    candidates: Candidates = field(default_factory=Candidates)
    _monitor: Monitor = field(init=False)
    _scoring_monitor: ScoringMonitor | None = field(init=False, default=None)
    """`_monitor`, if it has steps scored."""
    _group: asyncio.TaskGroup = field(init=False)
    usage: Usage = field(init=False, default_factory=Usage)
    """The cost so far; `completion_tokens` are those of the text that the observer has."""
    _contexts: dict[Party, ModelContext] = field(init=False, default_factory=dict)
    _first_step: str = field(init=False, default="")
    """The first step that was scored."""
    _before: str = field(init=False, default="")
    """That step, once a correction stands in its place: the text begins with it all the same."""
    _num_read: int = field(init=False, default=0)
    """The tokens of the context that was read last."""
    _limited_by: LimitedBy | None = field(init=False, default=None)
    """The limit that ended the last text, if one did."""
    _limits: dict[int, LimitedBy | None] = field(init=False, default_factory=dict)
    _writes: dict[int, asyncio.Task[None]] = field(init=False, default_factory=dict)
    _places: dict[int, asyncio.Future[None]] = field(init=False, default_factory=dict)
    _halted: set[int] = field(init=False, default_factory=set)
    _gates: dict[int, Gate] = field(init=False, default_factory=dict)
    _wrote: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    """Set at every event: a text may have grown."""
    _schedule: MeasuredSchedule | None = field(init=False, default=None)
    """None: nothing is scored."""
    _authors: dict[int, Author] = field(init=False, default_factory=dict)
    _num_writes: dict[Author, int] = field(init=False, default_factory=dict)
    _revise_tokens: int = field(init=False, default=0)
    _ways: deque[Scoring] = field(init=False, default_factory=deque)
    """The way in which each step was scored that the last call was for and that has no verdict."""
    _fell_back: dict[Scoring, tuple[int, ...]] = field(init=False, default_factory=dict)
    _trajectory: Trajectory | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        seed = seed_of_draws(self.sampling.seed, self.question)
        if self.scorer is not None:
            self._schedule = self.pair.schedule(self.params.method, self.scorer)
        schedule = self._schedule or AT_ONCE
        self._monitor = monitor_for(self.params, seed, schedule, self._has_room)
        # isinstance against a protocol takes 20 us, so it is done once, and only where it matters.
        if self.params.scores and isinstance(self._monitor, ScoringMonitor):
            self._scoring_monitor = self._monitor

    async def run(self) -> Outcome:
        """Run to the end. Cancelling this cancels every request to an upstream.

        Raises the first error of such a request unchanged, never in a group.
        """
        with about_tokens(self.question), self.call.stay.kept():
            try:
                async with asyncio.TaskGroup() as self._group:
                    self._obey(self._monitor.start())
            except BaseExceptionGroup as errors:
                raise first_error(errors) from None
            finally:  # in cycles with this run, which would hold its text until they are collected
                del self._monitor, self._scoring_monitor, self._writes
        if self._trajectory is None:
            raise MotabError("the trajectory ended without a result; please report this")
        return self._outcome(self._trajectory)

    def abandoned(self) -> Usage:
        """Return what a trajectory that failed or was cancelled has cost until then."""
        self.usage.abandon()
        return self.usage

    def _obey(self, commands: list[Command]) -> None:  # noqa: C901 - one for each command
        for command in commands:
            match command:
                case Emit(text, num_tokens):  # the most frequent first
                    self.usage.completion_tokens += num_tokens
                    self.observer.text(text)
                case Write():
                    self._begin(command)
                case Halt(write_id):
                    self._halt(write_id)
                case Pause(write_id):
                    self._gates[write_id].pause()
                case Resume(write_id):
                    self._gates[write_id].resume()
                case Score():
                    self._group.create_task(self._score(command))
                case ReadAnswers(texts):
                    self._group.create_task(self._read(texts))
                case Keep(write_id, chosen):
                    self._limited_by = self._limits[write_id]
                    self.observer.notice(chosen)
                case Judged() | Breached():
                    self._notice(command)
                case Finish(trajectory):
                    self._trajectory = trajectory

    def _begin(self, command: Write) -> None:
        self._authors[command.write_id] = command.author
        upstream = self.pair.of(command.author)
        self._gates[command.write_id] = Gate(upstream, self.outlet)
        task = self._group.create_task(self._write(command))
        place = upstream.writing.ask(continues=command.write_id > 0)
        task.add_done_callback(lambda _task: upstream.writing.leave(place))
        self._places[command.write_id] = place
        self._writes[command.write_id] = task

    def _notice(self, notice: Judged | Breached) -> None:
        self.observer.notice(notice)
        if isinstance(notice, Breached):
            if self.params.stitch == "flawed":
                self._group.create_task(self._count_revise())
                if notice.bifurcation == 0:
                    self._before = self._first_step
            return
        way, step = self._ways.popleft(), notice.step
        if self.scorer is not None and way != self.scorer.scoring:
            self._fell_back[way] = (*self._fell_back.get(way, ()), notice.index)
        if self._schedule is not None:
            self._schedule.hazard.judged(step.student_tokens, safe=step.safe is True)

    def _tell(self, event: Event, upstream: Upstream) -> None:
        try:
            commands = self._monitor.handle(event)
        except ValueError as error:
            raise UpstreamMalformed(upstream.name, str(error)) from error
        self._obey(commands)
        self._wrote.set()

    def _halt(self, write_id: int) -> None:
        self._halted.add(write_id)
        task = self._writes[write_id]
        if self._authors[write_id] == "teacher":  # its end, which has the count, will not come
            self.usage.count_cached(None)
        # A write that halts itself, at a token cap, ends by returning.
        if task is not asyncio.current_task():
            task.cancel()

    async def _write(self, command: Write) -> None:
        corrects = command.author == "teacher" and self.params.method == "motab"
        upstream = self.pair.of(command.author)
        try:
            with upstream.span(self.call, "correction" if corrects else "draft") as span:
                await self._write_in(span, command)
        except UpstreamError as error:
            if not (command.is_candidate and isinstance(self._monitor, ChoosingMonitor)):
                raise
            self.candidates.lose(self.call.session_id, error)
            self._obey(self._monitor.lost(command.write_id))

    async def _read(self, texts: tuple[str, ...]) -> None:
        answers = await self.candidates.read(texts)
        if not isinstance(self._monitor, ChoosingMonitor):
            raise MotabError("nothing chooses among these texts; please report this")
        self._obey(self._monitor.read(answers))

    async def _write_in(self, span: TraceSpan, command: Write) -> None:
        upstream = self.pair.of(command.author)
        model_context = self._model_context(command.author)
        sampling = self._sampling_of(command, model_context)
        with span.queued():
            await self._places[command.write_id]
        at = partial(model_context.at, command.steps, self._before)
        context = await (self.candidates.context(at) if command.is_candidate else at())
        translator = model_context.translator(command.steps, self._before)
        num_prompt = self._num_read = len(context.token_ids)
        self._limited_by = None
        write = BudgetedWrite(
            upstream.budget,
            command.author,
            num_prompt,
            command.max_tokens,
            is_first=command.write_id == 0,
            is_scored=command.author == "student" and self.scorer is not None,
        )
        if write.can_begin:
            self.usage.count_call(command.author, self._num_read)
            span.set({INPUT_TOKENS: self._num_read})
        call = self.call if span is self.call.span else replace(self.call, span=span)
        gate = self._gates[command.write_id]
        draft = partial(upstream.drafts, context, sampling, call, gate)
        meter = WriteMeter(command.author, self.usage, upstream.writing_speed, span)
        with meter.writing():
            async with aclosing(write.drafts(draft)) as drafts:
                await self._take(command, write, meter, drafts, translator)

    async def _take(
        self,
        command: Write,
        write: BudgetedWrite,
        meter: WriteMeter,
        drafts: AsyncGenerator[Draft],
        translator: Translator,
    ) -> None:
        """Report the written text to the monitor, to the end or until the write is halted."""
        upstream = self.pair.of(command.author)
        logprobs: deque[tuple[float, ...]] = deque()
        was_full = upstream.gated_writer is None
        async for draft in drafts:
            meter.count(draft)
            logprobs.extend(draft.logprobs or ())
            pieces = translator.feed(draft.pieces)
            if draft.end is not None:
                pieces += translator.end()
            if pieces:
                piece_logprobs = first_logprobs(logprobs, len(pieces)) if command.logprobs else None
                self._tell(Wrote(command.write_id, pieces, piece_logprobs), upstream)
            if draft.end is not None:
                self._limited_by = self._limits[command.write_id] = write.limited_by
                self._tell(WriteEnded(command.write_id, draft.end), upstream)
            if draft.end is not None or command.write_id in self._halted:
                return
            if not self.outlet.is_full:
                was_full = upstream.gated_writer is None
            elif was_full:
                # Its server cannot be stopped, at least not here; what it writes is not read.
                with upstream.writing_speed.pausing():
                    await self.outlet.has_room()
            else:  # the gate is closed now, and the writer stops at it if the text allows
                was_full = True
        raise UpstreamMalformed(upstream.name, "its text ended without a reason")

    async def _score(self, command: Score) -> None:
        if self.scorer is None:
            raise MotabError("nothing scores this trajectory; please report this")
        self._first_step = command.steps[0]
        self._ways.clear()
        is_cut = self.scorer.scoring not in NO_PROBABILITIES
        following = await self._following(command.steps) if is_cut else ""
        party = self.pair.scored_by(self.scorer)
        server = self.pair.of(party)
        wanted = StepsToScore(command.steps, command.num_new, command.entropy_known)

        async def context_at(steps: tuple[str, ...]) -> Context:
            rest = "".join(command.steps[len(steps) :]) + following
            return await self._model_context(party).at(steps, self._before, rest)

        async with server.place_to_score(self.call) as call:
            score = partial(self._scores_of, self.scorer, call)
            scored = await score_what_fits(wanted, server.budget, context_at, score)
        if scored.is_full:
            limit = server.budget.limits.context_tokens
            self._limited_by = LimitedBy(party, "context_tokens", limit)
        self._tell(scored, server)

    async def _scores_of(
        self, scorer: Scorer, call: Call, context: Context, steps: StepsToScore
    ) -> Scores:
        """Make one scoring call."""
        server = self.pair.of(self.pair.scored_by(scorer))
        with server.computing_speed.computing(len(context.token_ids)):
            found = await score_by_ladder(
                (scorer, *self.fallbacks),
                context,
                steps.num_new,
                self.params.entropy_top_k,
                call,
                entropy_known=steps.entropy_known,
            )
        self._num_read = len(context.token_ids)
        if self._schedule is not None:
            self._schedule.num_context = self._num_read
        self._ways.extend([found.scoring] * steps.num_new)
        self.usage.count_scoring(found.scores)
        return found.scores

    def _has_room(self) -> bool:
        """Return whether text may be sent before its verdict, which can surely be given."""
        most = min(self.params.max_step_tokens, self.params.max_total_tokens)
        server = self.pair.of(self.pair.scored_by(self.scorer))
        return self.streams and server.budget.has_room(self._num_read, most)

    async def _following(self, steps: Sequence[str]) -> str:
        """Wait until the text after the steps shows which tokens end in them; return that text."""
        if (monitor := self._scoring_monitor) is None:
            raise MotabError("this method has nothing scored; please report this")
        blank_lines_end = await self.pair.of("teacher").blank_lines_end(self.call)
        while True:
            following = monitor.following(len(steps), MAX_AHEAD)
            ahead = ahead_of(steps[-1], following.text, blank_lines_end=blank_lines_end)
            if following.is_all or ahead is not None:
                return following.text
            gate = self._gates[max(self._gates)]  # a student that is ahead must write a bit more
            with gate.held_open():
                self._wrote.clear()
                await self._wrote.wait()

    def _model_context(self, party: Party) -> ModelContext:
        """The party's context, which grows with the trajectory."""
        if party not in self._contexts:
            made = self._formats().context(party, self.question, self.call, self.prompts)
            self._contexts[party] = made
        return self._contexts[party]

    def _formats(self) -> Pair:
        """The pair whose formats count: a teacher that writes everything writes in its own."""
        alone = self.params.method == "teacher"
        return replace(self.pair, student=None) if alone else self.pair

    def _sampling_of(self, command: Write, model_context: ModelContext) -> Sampling:
        num_before = self._num_writes.get(command.author, 0)
        self._num_writes[command.author] = num_before + 1
        sampling = sampling_of_write(command, self.sampling, self.params, num_before)
        if model_context.bridge.own.kind == "harmony":
            sampling = replace(sampling, special_tokens=True)
        return sampling

    async def _count_revise(self) -> None:
        num = await num_revise_tokens(self.pair.of("student"), self.params, self.call)
        if num is None:
            _log.warning("%s: completion_tokens lacks the revise token's", self.call.session_id)
        self._revise_tokens += num or 0

    def _outcome(self, trajectory: Trajectory) -> Outcome:
        self.usage.conclude(trajectory, self._revise_tokens)
        scoring = None if self.scorer is None else self.scorer.scoring
        in_thought = self._formats().begins_in_thought(self.question)
        quality = quality_of(trajectory, self.params, in_thought=in_thought)
        limited_by = self._limited_by if trajectory.finish_reason == "length" else None
        return Outcome(trajectory, self.usage, scoring, quality, self._fell_back, limited_by)
