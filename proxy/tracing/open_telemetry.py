"""Reports spans by OpenTelemetry's SDK, which is imported only where tracing is switched on.

The SDK's own environment variables say where the spans go. It exports them in a thread of its own,
from a queue that drops what does not fit, so that no trajectory waits for a collector.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.re import parse_env_headers
from opentelemetry.util.types import AttributeValue

from proxy import __version__
from proxy.errors import ConfigError, code_of
from proxy.secrets import hide, secrets_of_url, without_userinfo
from proxy.tracing.attributes import MODEL, OPERATION
from proxy.tracing.tracer import Attributes

_log = logging.getLogger(__name__)

_CLOSE_S: Final = 5.0
"""Seconds in which a collector may take what is left at the end."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_FIELDS: Final = ("traceparent", "tracestate")
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_ONLY: Final = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
}
"""The variables of the SDK for which motab has one value."""


class _Span:
    """A span of the SDK's."""

    def __init__(self, tracer: SdkTracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span
        self.is_recording = span.is_recording()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.set({"error.type": code_of(error)})
            self._span.set_status(Status(StatusCode.ERROR))
        elif error is not None:
            self.set({"motab.cancelled": True})
        self._span.end()

    def child(self, name: str, attributes: Attributes) -> "_Span":
        return _started(self._tracer, name, SpanKind.CLIENT, self._context(), attributes)

    @contextmanager
    def queued(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.set({"motab.queue_seconds": time.monotonic() - began})

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_known(attributes))

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, _known(attributes))

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self._context())
        return carrier

    def _context(self) -> Context:
        return set_span_in_context(self._span)


class OpenTelemetry:
    """Starts spans of a provider's."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("motab", __version__)

    def follow(self, headers: Mapping[bytes, bytes]) -> None:
        given = {name: headers.get(name.encode(), b"").decode("latin-1") for name in _FIELDS}
        # In any case, because the task may have begun in that of the request before.
        attach(_PROPAGATOR.extract(given, Context()))

    def start(self, attributes: Attributes) -> _Span:
        name = f"{attributes[OPERATION]} {attributes[MODEL]}"  # as the conventions want it
        return _started(self._tracer, name, SpanKind.SERVER, None, attributes)


def _started(
    tracer: SdkTracer, name: str, kind: SpanKind, context: Context | None, attributes: Attributes
) -> _Span:
    known = _known(attributes)
    return _Span(tracer, tracer.start_span(name, context, kind, known))


def _known(attributes: Attributes) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}


@asynccontextmanager
async def exporting() -> AsyncIterator[OpenTelemetry]:
    """Export spans as the environment says, until the context ends.

    Raises `ConfigError` if the environment asks for something that motab does not do.
    """
    _check_environment()
    _hide_secrets()
    try:
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:  # of a variable's value
        raise ConfigError(f"server.tracing: {error}") from error
    try:
        yield OpenTelemetry(provider)
    finally:
        await asyncio.to_thread(_close, provider)


def _close(provider: TracerProvider) -> None:
    """Export what is left, unless that takes too long."""
    closing = threading.Thread(target=provider.shutdown, daemon=True, name="traces")
    closing.start()
    closing.join(_CLOSE_S)
    if closing.is_alive():
        _log.warning("the last spans are lost: they could not be exported in %g s", _CLOSE_S)


def _resource() -> Resource:
    """The environment's resource; without a name of a service there, it is motab's."""
    resource = Resource.create({SERVICE_VERSION: __version__})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "motab"}))
    return resource


def _check_environment() -> None:
    for name, only in _ONLY.items():
        given = os.environ.get(name, only).strip()
        if given not in {"", only}:
            message = f"motab exports traces as {only} alone: leave {name} out, or set it to {only}"
            raise ConfigError(f"server.tracing: {name} is '{given}', and {message}")
    for name in _ENDPOINTS:
        url = os.environ.get(name, "")
        if url and urlsplit(url).scheme not in {"http", "https"}:
            shown = without_userinfo(url)
            message = f"{name} must be a URL such as http://localhost:4318, not '{shown}'"
            raise ConfigError(f"server.tracing: {message}")


def _hide_secrets() -> None:
    """Hide what the exporter sends to be let in, because its log lines may quote it."""
    for name in _ENDPOINTS:
        hide(secrets_of_url(os.environ.get(name, "")))
    for name in _HEADERS:
        sent = parse_env_headers(os.environ.get(name, ""), liberal=True)
        for value in sent.values():  # such as "Basic c2VjcmV0"
            hide((value, value.rpartition(" ")[2]))
