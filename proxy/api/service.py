"""Serves the routes: finds the model, resolves the options, runs and reports the trajectories."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from proxy.api.choices import ChoiceRunner, Choices
from proxy.api.lengths import LoweredTokens, Resolved, length_limit, resolve_options
from proxy.api.metrics import Metrics
from proxy.api.observers import StreamObserver, TextObserver
from proxy.api.recording import Recording, check_records
from proxy.api.schema import GenerationRequest, ScoreRequest, StreamOptions
from proxy.api.shapes import Head, Kind, completion, scored_text, text_logprobs, trace, usage
from proxy.api.sse import DONE, ChunkWriter, Outbox
from proxy.backends.base import Call, Question, Sampling, Scorer
from proxy.backends.clock import UpstreamClock
from proxy.core.params import SamplingValues
from proxy.core.types import Author
from proxy.engine.admission import Admission, OwnSeats, Seats
from proxy.engine.corrections.answers import AnswerReader, check_corrections, check_reference
from proxy.engine.corrections.candidates import Candidates
from proxy.engine.given_text import TextLogprobs, score_steps, score_tokens
from proxy.engine.model_context import Prompts, with_text
from proxy.engine.outlet import Outlet, WideOutlet
from proxy.engine.pair import Pair
from proxy.engine.runner import TrajectoryRun
from proxy.engine.seeds import seed_of_choice
from proxy.engine.served_model import ServedModel
from proxy.engine.upstream import Upstream
from proxy.engine.usage import Outcome, Usage
from proxy.errors import (
    DeadlineExceeded,
    ModelNotFound,
    RequestError,
    UnsupportedField,
    first_error,
)
from proxy.near_names import did_you_mean
from proxy.options import FIELDS_OF_A_GIVEN_TEXT, Options, merge_layers, values_of
from proxy.server_config import ServerConfig
from proxy.tracing.attributes import of_request, of_trajectory
from proxy.tracing.tracer import NO_TRACER, Tracer
from trajectory_records.appender import Appender

T = TypeVar("T")
_log = logging.getLogger(__name__)
_AUTHORS: tuple[Author, ...] = ("student", "teacher")


@dataclass(frozen=True, slots=True)
class Job:
    """A request, resolved."""

    model: ServedModel
    request: GenerationRequest
    questions: tuple[Question, ...]
    """Each gets `request.n` choices."""
    stops: tuple[str, ...]
    options: Options
    sampling: SamplingValues
    """The student's."""
    head: Head
    request_id: str
    clock: UpstreamClock
    scorer: Scorer | None
    """None if the method does not score."""
    lowered: LoweredTokens | None
    """The `max_tokens` that could not be honoured, if it could not."""
    reader: AnswerReader | None = None
    tracer: Tracer = NO_TRACER
    prompts: dict[int, Prompts] = field(default_factory=lambda: defaultdict(Prompts))
    """The rendered prompts of each question."""

    @property
    def num_choices(self) -> int:
        return len(self.questions) * self.request.n

    def run(self, pair: Pair, index: int, observer: TextObserver, outlet: Outlet) -> TrajectoryRun:
        """The trajectory of choice `index` by the model's pair. Each choice of a question has a
        seed of its own, the same as if the question came alone.
        """
        request = self.request
        asked, number = divmod(index, request.n)
        seed = None if request.seed is None else seed_of_choice(request.seed, number)
        head, method = self.head, self.options.method
        known = of_trajectory(head.kind, head.model, self.request_id, method, request.seed, index)
        run = TrajectoryRun(
            pair=pair,
            question=self.questions[asked],
            params=self.options,
            sampling=Sampling(seed=seed, stop=self.stops, **values_of(self.sampling)),
            call=Call(f"{self.request_id}-{index}", self.clock, span=self.tracer.start(known)),
            observer=observer,
            scorer=self.scorer,
            prompts=self.prompts[asked],
            outlet=outlet,
            streams=request.stream,
            fallbacks=self.model.fallbacks(self.options, self.scorer),
            candidates=Candidates(self.reader, self.options.reference),
        )
        observer.usage = run.usage
        return run

    def recording(self, records: Appender | None) -> Recording:
        """The recording of the trajectories."""
        return Recording(
            records,
            self.head,
            self.request_id,
            self.questions,
            self.request,
            self.options,
            self.model.labels,
        )

    def headers(self) -> dict[str, str]:
        """The answer's additional headers."""
        headers: dict[str, str] = {}
        if self.scorer is not None:
            headers["x-motab-scoring"] = self.scorer.scoring
        if self.lowered is not None:
            headers["x-motab-max-tokens"] = str(self.lowered.allowed)
        return headers


@dataclass(slots=True)
class Service:
    """Everything that outlives a request."""

    config: ServerConfig
    models: Mapping[str, ServedModel]
    metrics: Metrics
    seats: Seats = field(default_factory=OwnSeats)
    records: Appender | None = None
    """None: no trajectory is recorded."""
    tracer: Tracer = NO_TRACER
    reader: AnswerReader | None = None
    """None: there are no several corrections."""
    admission: Admission = field(init=False)
    started_at: float = field(init=False, default_factory=time.time)

    def __post_init__(self) -> None:
        self.admission = Admission(self.config.max_concurrent, self.seats, self.metrics.active.set)

    def upstreams(self) -> list[Upstream]:
        """Every upstream that a model uses, once."""
        pairs = [model.pair for model in self.models.values()]
        every = [u for pair in pairs for u in (pair.student, pair.teacher, pair.scorer)]
        used = [upstream for upstream in every if upstream is not None]
        return list({upstream.name: upstream for upstream in used}.values())

    async def job(
        self,
        request: GenerationRequest,
        kind: Kind,
        request_id: str,
        clock: UpstreamClock,
        *,
        always_full: bool,
    ) -> Job:
        """Resolve a request. Raises `RequestError` or `ModelNotFound`."""
        model = self._model(request.model)
        forced = {"trace": "full"} if always_full else {}
        limit = length_limit(request)
        resolved = self._resolved(model, {**request.motab, **forced}, limit)
        if resolved.options.method == "teacher":  # the only author: the top level is its sampling
            asked = merge_layers({"teacher": request.sampled()}, request.motab, forced)
            resolved = self._resolved(model, asked, limit)
        options = resolved.options
        sampling = model.sampling_with(request.sampled())
        model.check_sampling(options, sampling, request.sampled())
        model.check_method(options)
        await check_corrections(options, request.motab, self.reader)
        scorer = model.scorer_of_method(options, request.motab)
        model.check_temperature(options, sampling.temperature)
        if request.n > self.config.max_n:
            raise RequestError(f"n must be at most {self.config.max_n} here", param="n")
        if request.stream_options and request.stream_options.asks and not request.stream:
            raise RequestError("stream_options needs stream: true", param="stream_options")
        if options.events and not request.stream:
            raise RequestError("events need stream: true", param="motab.events")
        # Refused before anything starts, not by the first trajectory.
        call = Call(request_id, clock)
        await model.check_delimiter(options, scorer, call)
        questions, stops = request.questions(), request.stops()
        check_reference(options, len(questions))
        self._check_number(len(questions), request.n)
        questions = tuple([await _asked(request, q, model.pair, call) for q in questions])
        _log.debug(
            "%s: %s %s n=%d user=%s",
            request_id,
            request.model,
            options.method,
            request.n,
            request.user,
        )
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        head = Head(kind, f"{prefix}-{request_id}", int(time.time()), request.model)
        return Job(
            model,
            request,
            questions,
            stops,
            options,
            sampling,
            head,
            request_id,
            clock,
            scorer,
            resolved.lowered,
            self.reader,
            self.tracer,
        )

    def _check_number(self, num_prompts: int, n: int) -> None:
        total, most = num_prompts * n, self.config.max_concurrent
        if num_prompts > 1 and total > most:
            message = (
                f"{num_prompts} prompts with n = {n} are {total} texts, and this server writes"
                f" {most} at once: send fewer prompts in a request"
            )
            raise RequestError(message, param="prompt")

    def _model(self, name: str) -> ServedModel:
        if name not in self.models:
            message = f"there is no model '{name}'; there are {', '.join(self.models)}"
            raise ModelNotFound(message + did_you_mean(name, self.models), param="model")
        return self.models[name]

    def _resolved(
        self, model: ServedModel, asked: Mapping[str, Any], max_tokens: int | None
    ) -> Resolved:
        return resolve_options(model, asked, max_tokens, self.config.max_total_tokens)

    async def complete(self, job: Job) -> dict[str, Any]:
        """All trajectories of a request, and the whole answer."""
        await check_records(self.records)
        with self.admission.admit(job.num_choices):
            observers = [TextObserver()] * job.num_choices
            choices = await self._run_all(job, observers, WideOutlet())
        return completion(
            job.head, choices, job.request.n, job.options, job.model.labels, job.lowered
        )

    async def stream(self, job: Job, outbox: Outbox) -> None:
        """The same as chunks, sent as they become certain."""
        await check_records(self.records)
        put = outbox.put
        request, options = job.request, job.options
        wanted = request.stream_options or StreamOptions()
        writer = ChunkWriter(
            job.head,
            include_usage=wanted.include_usage,
            continuous_usage=wanted.include_usage and wanted.continuous_usage_stats,
        )
        observers = [
            StreamObserver(index, writer, put, options.events) for index in range(job.num_choices)
        ]

        def finished(index: int, outcome: Outcome) -> None:
            final_trace = None
            if options.trace != "none":
                final_trace = trace(outcome, options, job.model.labels, job.lowered)
            observers[index].begin()
            reason = outcome.trajectory.finish_reason
            put(writer.finish(index, reason, final_trace, outcome.usage))

        with self.admission.admit(job.num_choices):
            choices = await self._run_all(job, observers, outbox, finished)
        for failed in choices.failed:
            put(writer.failed(failed))
        if wanted.include_usage:
            put(writer.usage(usage(choices, request.n, options)))
        put(DONE)

    async def _run_all(
        self,
        job: Job,
        observers: Sequence[TextObserver],
        outlet: Outlet,
        finished: Callable[[int, Outcome], None] = lambda _index, _outcome: None,
    ) -> Choices:
        """All trajectories of a request at once; at the end each finished one is recorded.

        Raises the first error if none is finished.
        """
        recording = job.recording(self.records)
        model, method = job.head.model, job.options.method
        scoring = None if job.scorer is None else job.scorer.scoring
        pair = await self.within_deadline(job.model.pair.under(job.questions[0].template_kwargs))

        def on_finished(index: int, outcome: Outcome) -> None:
            self.metrics.trajectory(model, method, outcome)
            finished(index, outcome)

        runner = ChoiceRunner(
            make=lambda index: job.run(pair, index, observers[index], outlet),
            is_sent=lambda index: observers[index].has_begun,
            on_finished=on_finished,
            on_failed=lambda spent: self.metrics.failed(model, method, spent, scoring),
            keep=recording.add,
            deadline_s=self.config.request_timeout_s,
        )
        choices = await runner.run(len(observers))
        await recording.on_disk()
        if not choices.done:
            error = choices.failed[0].error
            if job.options.trace == "full":  # other clients get OpenAI's shape and nothing else
                error.usage = usage(choices, job.request.n, job.options)
            raise error
        return choices

    async def score(
        self, request: ScoreRequest, request_id: str, clock: UpstreamClock
    ) -> dict[str, Any]:
        """Judge a given text."""
        model = self._model(request.model)
        has_part = {"scoring"} if request.token_logprobs else FIELDS_OF_A_GIVEN_TEXT
        for name in request.motab:
            if name not in has_part:
                raise UnsupportedField(f"{name} does not apply to scoring", param=f"motab.{name}")
        options = self._resolved(model, request.motab, None).options
        with self.tracer.start(of_request("score", request.model, request_id, "score")) as span:
            call = Call(request_id, clock, span=span)
            if request.token_logprobs:
                return await self._token_logprobs(model, request, options, call)
            return await self._scored(model, request, options, call)

    async def _scored(
        self, model: ServedModel, request: ScoreRequest, options: Options, call: Call
    ) -> dict[str, Any]:
        scorer = model.scorer(options, request.motab)
        question = await _asked(request, request.question(), model.pair, call)
        with self.admission.admit(1), call.stay.kept():
            pair = await self.within_deadline(model.pair.under(question.template_kwargs))
            model_context = pair.context(pair.scored_by(scorer), question, call)
            scorers = (scorer, *model.fallbacks(options, scorer))
            work = score_steps(model_context, scorers, request.text, options, call)
            scored = await self.within_deadline(work)
        spent = Usage(
            teacher_scored_tokens=scored.scored_tokens,
            teacher_cached_tokens=scored.cached_tokens,
            score_calls=1,
        )
        self.metrics.usage(request.model, spent, scored.scoring)
        head = Head("text", call.session_id, int(time.time()), request.model)
        return scored_text(head, scored, options, scored.scoring)

    async def _token_logprobs(
        self, model: ServedModel, request: ScoreRequest, options: Options, call: Call
    ) -> dict[str, Any]:
        scorers = {author: model.token_scorer(author, options) for author in _AUTHORS}
        question = await _asked(request, request.question(), model.pair, call)
        prompts = Prompts()

        async def one(author: Author) -> TextLogprobs:
            model_context = pair.context(author, question, call, prompts)
            return await score_tokens(model_context, scorers[author], request.text, call)

        async def both() -> dict[Author, TextLogprobs]:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {author: group.create_task(one(author)) for author in _AUTHORS}
            except BaseExceptionGroup as errors:
                raise first_error(errors) from None
            return {author: task.result() for author, task in tasks.items()}

        with self.admission.admit(1), call.stay.kept():
            pair = await self.within_deadline(model.pair.under(question.template_kwargs))
            found = await self.within_deadline(both())
        scoring = {author: scorer.scoring for author, scorer in scorers.items()}
        of_teacher = Usage(teacher_scored_tokens=len(found["teacher"].ends), score_calls=1)
        self.metrics.usage(request.model, of_teacher, scoring["teacher"])
        head = Head("text", call.session_id, int(time.time()), request.model)
        return text_logprobs(head, found, scoring)

    async def within_deadline(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`. Raises `DeadlineExceeded` if it takes too long."""
        limit = self.config.request_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(f"the request took longer than {limit:g} s") from error


async def _asked(
    request: GenerationRequest | ScoreRequest, question: Question, pair: Pair, call: Call
) -> Question:
    """Return the question with its prompt as text, which only the upstream knows for tokens, and
    with the variables that the request gives to the chat templates.
    """
    if kwargs := request.template_kwargs(question):
        question = replace(question, template_kwargs=kwargs)
    return await with_text(question, pair.visible, call) if question.token_ids else question
