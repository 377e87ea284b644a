"""Classifies the errors that keep a question from its record, by what helps against them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from typing import Final

from proxy.secrets import masked
from synth_client.questions.question import TOP_LEVEL
from trajectory_records.record import Usage

REASONING_APART: Final = "reasoning_kept_apart"
_SECONDS: Final = re.compile(r"\d+(\.\d+)?", re.ASCII)


class Trouble(StrEnum):
    """The classes of errors; each class has its own budget of attempts."""

    TRANSIENT = "transient"
    """No answer, or the server's own failure: the same request may succeed soon."""
    CAPACITY = "capacity"
    """The server is overloaded: the same request will succeed later."""
    PERMANENT = "permanent"
    """The server will never accept this request."""
    CONTENT = "content"
    """An answer arrived but is unusable; another answer may be usable."""


class SynthesisError(Exception):
    """A request did not lead to a trustworthy record. The message hides the keys that were sent.

    `status` is the HTTP status, None if no answer arrived. `message`, `error_type`, `param` and
    `code` are the proxy's error object; a malformed answer has the type "malformed_answer", a
    failed connection "connection_failed". `retry_after_s` is the number of seconds that the server
    asks to be left alone, if it gives one. `spent` is the cost that the answer states, None if it
    states none or there was no answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None,
        error_type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        spent: Usage | None = None,
    ) -> None:
        self.message = masked(message)
        super().__init__(self.message if status is None else f"HTTP {status}: {self.message}")
        self.status = status
        self.error_type = error_type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.spent = spent

    def __reduce__(self) -> tuple[Callable[[str], "SynthesisError"], tuple[str]]:
        # Without this method an exception is unpickled with its text alone.
        fields = ("status", "error_type", "param", "code", "retry_after_s", "spent")
        made = partial(type(self), **{name: getattr(self, name) for name in fields})
        return made, (self.message,)

    @property
    def trouble(self) -> Trouble:
        """The class of the error: as its code says if it is one of the proxy's, else its status.

        A 502 alone does not say whether the server is down or refuses this one question.
        """
        status = self.status
        if self.code in _TROUBLE_OF_CODE and status is not None:
            return _TROUBLE_OF_CODE[self.code]
        if status is None or status in _TRANSIENT_REFUSALS:
            return Trouble.TRANSIENT
        if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            return Trouble.CAPACITY
        if status == HTTPStatus.OK:
            return Trouble.CONTENT
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Trouble.TRANSIENT
        return Trouble.PERMANENT

    @property
    def ends_the_run(self) -> bool:
        """True if the server would answer every other question in the same way."""
        if self.status in _RUN_REFUSALS or self.code == "insufficient_quota":
            return True
        if self.error_type == REASONING_APART:
            return True
        if self.status is not None and HTTPStatus.MULTIPLE_CHOICES <= self.status < 400:
            return True
        if self.status != HTTPStatus.BAD_REQUEST or self.code in _TROUBLE_OF_CODE:
            return False
        # The proxy names the refused field; all fields but the messages belong to the run.
        return (self.param or "").split(".")[0] in _RUN_FIELDS


# The proxy's codes (proxy/errors.py) about one question, which is no outage, whatever their status.
# Not `upstream_denied`: a key that expired is replaced, and then the same questions are answered.
_TROUBLE_OF_CODE: Final = {
    "context_length_exceeded": Trouble.PERMANENT,
    "content_policy_violation": Trouble.PERMANENT,
    "tokenizer_failed": Trouble.PERMANENT,
    "upstream_refused": Trouble.PERMANENT,
    "deadline_exceeded": Trouble.CONTENT,
    "internal_error": Trouble.CONTENT,
    "upstream_malformed": Trouble.CONTENT,
}
_TRANSIENT_REFUSALS: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY}
_RUN_FIELDS: Final = {"motab", "model", "temperature", "top_p", "seed", *TOP_LEVEL}
_RUN_REFUSALS: Final = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.PAYMENT_REQUIRED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
}


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, given as a number or as an HTTP date.

    None if there is no header or it is neither. RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
