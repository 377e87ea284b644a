"""Builds the models and the service from a configuration."""

from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from pathlib import Path

from proxy.api.metrics import Metrics
from proxy.api.service import Service
from proxy.backends.base import Call
from proxy.backends.servers.litellm import LiteLLM
from proxy.backends.worker_slots import ALL_SLOTS, WorkerSlots
from proxy.config import Config
from proxy.engine.admission import OwnSeats, Seats
from proxy.engine.corrections.answers import AnswerReader, check_corrections
from proxy.engine.pair import Pair
from proxy.engine.served_model import ServedModel
from proxy.engine.upstream import Upstream, num_revise_tokens
from proxy.errors import ConfigError, RequestError, StartError
from proxy.options import parse_options, parse_sampling
from proxy.remote_config import scorer_name
from proxy.server_config import RecordsConfig
from proxy.tracing.tracer import NO_TRACER, Tracer
from proxy.wiring.own_scorer import open_scorer
from proxy.wiring.upstreams import open_upstream
from trajectory_records.appender import Appender, open_appender
from trajectory_records.record import RecordError
from trajectory_records.record_writer import RecordWriter

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """One process's part of a server; by default the whole server."""

    worker_slots: WorkerSlots = ALL_SLOTS
    metrics: Metrics = field(default_factory=Metrics)
    seats: Seats = field(default_factory=OwnSeats)


@asynccontextmanager
async def open_service(
    config: Config,
    wait_s: float = 0.0,
    resources: WorkerResources | None = None,
    reader: AnswerReader | None = None,
) -> AsyncIterator[Service]:
    """Start everything that `config` names; stop and close it at the end. `reader` reads the
    answers of several corrections; without it there are none.

    Raises the `UpstreamError` of an upstream that does not answer within `wait_s` seconds, and
    `StartError` if the file of records cannot be used.
    """
    resources = resources or WorkerResources()
    async with AsyncExitStack() as stack:
        tracer: Tracer = NO_TRACER
        if config.server.tracing:
            tracer = await stack.enter_async_context(_open_tracer())
        records = None
        if config.server.records is not None:
            records = await _open_records(config.server.records, stack)
        upstreams = {
            name: await stack.enter_async_context(
                open_upstream(name, config, resources.metrics, wait_s, resources.worker_slots)
            )
            for name in config.upstreams
        }
        scorers = {
            name: await stack.enter_async_context(
                open_scorer(name, scorer, resources.metrics, wait_s, resources.worker_slots)
            )
            for name, scorer in config.scorers.items()
        }
        models = _models(config, upstreams, scorers)
        for name, model in models.items():
            await _check_delimiter(name, model)
            await _check_corrections(name, model, reader)
            await _count_revise_token(model)
        yield Service(
            config.server,
            models,
            resources.metrics,
            resources.seats,
            records,
            tracer,
            reader,
        )


def _open_tracer() -> AbstractAsyncContextManager[Tracer]:
    """Import the tracer, with a library that a proxy without traces does not need."""
    try:
        from proxy.tracing.open_telemetry import exporting  # noqa: PLC0415
    except ModuleNotFoundError as error:
        message = f"needs OpenTelemetry: pip install 'motab[otel]' ({error})"
        raise ConfigError(f"server.tracing: {message}") from error
    return exporting()


async def _open_records(config: RecordsConfig, stack: AsyncExitStack) -> Appender:
    max_bytes = None if config.rotate_mb is None else max(1, int(config.rotate_mb * _MB))
    writer = RecordWriter(Path(config.file), max_bytes)
    try:
        return await stack.enter_async_context(open_appender(writer))
    except OSError as error:
        reason = error.strerror or error
        raise StartError(f"server.records: {config.file} cannot be written: {reason}") from error
    except RecordError as error:
        message = f"server.records: {error}; choose another file, or move this one away"
        raise StartError(message) from error


def _models(
    config: Config, upstreams: dict[str, Upstream], scorers: dict[str, Upstream]
) -> dict[str, ServedModel]:
    """The configured pairs, then each upstream alone under each of its roles."""
    models: dict[str, ServedModel] = {}
    for name, model in config.models.items():
        scorer = scorers.get(scorer_name(name))
        pair = Pair(upstreams[model.student], upstreams[model.teacher], scorer=scorer)
        labels = {
            "student": config.upstreams[model.student].model,
            "teacher": config.upstreams[model.teacher].model,
        }
        models[name] = ServedModel(pair, model.options, dict(labels), model.sampling)
        _check_pair(name, models[name])
    for model in config.models.values():
        student, teacher = model.student, model.teacher
        models[f"student/{student}"] = ServedModel(
            Pair(upstreams[student], None),
            {"method": "student"},
            {"student": config.upstreams[student].model, "teacher": None},
        )
        models[f"teacher/{teacher}"] = ServedModel(
            Pair(None, upstreams[teacher]),
            {"method": "teacher"},
            {"student": None, "teacher": config.upstreams[teacher].model},
        )
    return models


async def _count_revise_token(model: ServedModel) -> None:
    """Count the pair's own revise token before a trajectory needs the number.

    Where that fails, the first breach counts again.
    """
    params = parse_options(model.defaults)
    student = model.pair.student
    if params.method == "motab" and params.stitch == "flawed" and student is not None:
        await num_revise_tokens(student, params, Call("connect"))


def _check_pair(name: str, model: ServedModel) -> None:
    """Refuse a pair that would answer every request with a 400.

    Raises `ConfigError`.
    """
    options = parse_options(model.defaults)
    teacher = model.pair.of("teacher")
    if isinstance(teacher.writer, LiteLLM) and teacher.writer.continuation is None:
        message = (
            "must be prefill, continue_final_message or instruct, because litellm's model list "
            f"does not say how '{teacher.name}' continues a text"
        )
        raise ConfigError(f"upstreams.{teacher.name}.continuation: {message}")
    with _as_a_setting(name):
        model.check_method(options)
        model.check_sampling(options, parse_sampling(model.sampling))
        model.scorer_of_method(options, {})


async def _check_delimiter(name: str, model: ServedModel) -> None:
    """Refuse a pair whose teacher's server hides where the pair's own steps end.

    Raises `ConfigError`.
    """
    options = parse_options(model.defaults)
    with _as_a_setting(name):
        scorer = model.scorer_of_method(options, {})
        await model.check_delimiter(options, scorer, Call("connect"))


async def _check_corrections(name: str, model: ServedModel, reader: AnswerReader | None) -> None:
    """Refuse a pair whose own corrections could not be chosen. Raises `ConfigError`."""
    options = parse_options(model.defaults)
    with _as_a_setting(name):
        if options.reference is not None:
            message = "belongs to a request, because each question has its own"
            raise RequestError(f"reference {message}", param="motab.reference")
        await check_corrections(options, model.defaults, reader)


@contextmanager
def _as_a_setting(name: str) -> Iterator[None]:
    """Turn the refusal of a request into one of the model's settings."""
    try:
        yield
    except RequestError as error:
        where = f"models.{name}.params.{str(error.param).removeprefix('motab.')}"
        raise ConfigError(f"{where}: {error}") from error
