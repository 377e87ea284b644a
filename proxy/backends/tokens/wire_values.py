"""Reads values that servers leave out or write as null: texts, and why a text ended."""

import logging
from functools import cache
from typing import Any

from proxy.core.types import FinishReason, finish_reason_of

_log = logging.getLogger(__name__)

# The server shut down, or failed while it wrote.
_FAILURES = frozenset(
    {"abort", "aborted", "cancelled", "error", "insufficient_system_resource", "network_error"}
)


def text_of(value: object) -> str:
    """Return a text of an answer; null and absent are no text.

    Raises ValueError for anything else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")  # noqa: TRY004 - as all faults of an answer
    return value


def whole_text(value: object) -> str:
    """Return a text that must be there. Raises ValueError if it is not."""
    if value is None:
        raise ValueError("it has no text")
    return text_of(value)


def error_in(row: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the error that an event reports, None if it reports none.

    Older vLLM and SGLang send the error object itself.
    """
    return row if row.get("object") == "error" else row.get("error") or None


def is_failure(reason: object) -> bool:
    """Return whether a text ended because its server failed."""
    return isinstance(reason, str) and reason.lower() in _FAILURES


def end_of(reason: object, upstream: str) -> FinishReason | None:
    """Return why a text ended; None if it has not, for which some servers write "".

    A reason that nobody knows says that the model ended its text, as OpenAI's clients take it.
    """
    if reason is None or reason == "":
        return None
    known = finish_reason_of(str(reason))
    if known is None:
        _report(upstream, str(reason))
    return known or "stop"


@cache
def _report(upstream: str, reason: str) -> None:
    """Log an unknown reason once."""
    _log.warning("upstream '%s': the unknown finish_reason %r counts as 'stop'", upstream, reason)
