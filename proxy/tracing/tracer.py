"""Defines how the proxy reports its work as spans of a trace, and a tracer that reports nothing."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Protocol, Self

Attributes = Mapping[str, str | int | float | Sequence[str] | None]
"""The names and values that a span carries; a value of None is left out. None may hold a part of a
question or an answer, words of a server, or a secret."""


class TraceSpan(Protocol):
    """A piece of work. Use it as a context manager: it ends with the block, and reports the error
    that leaves the block by its code alone, because the message may quote a question.
    """

    @property
    def is_recording(self) -> bool:
        """Return whether anybody wants the attributes."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None: ...

    def child(self, name: str, attributes: Attributes) -> "TraceSpan":
        """Start a span for a call of a server, a part of this work."""
        ...

    def queued(self) -> AbstractContextManager[object]:
        """Count the time of the block as time in the queue for a place at the server."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        ...

    def event(self, name: str, attributes: Attributes) -> None:
        """Add something that happens now."""
        ...

    def headers(self) -> dict[str, str]:
        """Return the headers by which a server continues the trace."""
        ...


class Tracer(Protocol):
    """Starts the spans that are no part of another span of the proxy."""

    def follow(self, headers: Mapping[bytes, bytes]) -> None:
        """Make the trace that a request's headers name the parent of what its task starts."""
        ...

    def start(self, attributes: Attributes) -> TraceSpan:
        """Start a span for a trajectory, or for another request of a client's."""
        ...


class _NoSpan:
    """A span of no trace, which is its own children."""

    is_recording = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        pass

    def child(self, name: str, attributes: Attributes) -> Self:
        del name, attributes
        return self

    def queued(self) -> Self:
        return self

    def set(self, attributes: Attributes) -> None:
        pass

    def event(self, name: str, attributes: Attributes) -> None:
        pass

    def headers(self) -> dict[str, str]:
        return {}


NO_SPAN: Final = _NoSpan()


class _NoTracer:
    def follow(self, headers: Mapping[bytes, bytes]) -> None:
        pass

    def start(self, attributes: Attributes) -> TraceSpan:
        del attributes
        return NO_SPAN


NO_TRACER: Final = _NoTracer()
