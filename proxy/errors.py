"""Defines motab's errors; each class says whose fault it is and whether a retry can help.

Foreign errors (HTTP, JSON, operating system) are translated into these at the boundary where they
arise, with `raise ... from`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from proxy.secrets import masked


class MotabError(Exception):
    """Root of the tree. HTTP clients receive `status`, `type` and `code`.

    The message hides the configuration's secrets, which an upstream may quote.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed if it is repeated."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(masked(message))
        self.param = param
        self.usage: Mapping[str, Any] | None = None
        """What a request that failed has cost, if its answer is to state it."""


class ConfigError(MotabError):
    """The configuration cannot be used; the message names the key and the cure."""


class StartError(MotabError):
    """A server could not be started, or one that motab needs does not answer."""


class TokenizerFailed(MotabError):
    """A tokenizer in this process cannot turn a text into ids that stand for exactly that text."""

    code = "tokenizer_failed"


class RequestError(MotabError):
    """The client's request cannot be served as it is; `param` names the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class BadRequest(RequestError):
    """The bytes on the connection are no request of HTTP."""


class HeadTooLarge(RequestError):
    """The head of a request, or its trailers, are larger than any client's."""

    status = 431


class TooSlow(RequestError):
    """A request did not come as a whole within its time."""

    status = 408
    code = "request_timeout"


class ForeignPage(RequestError):
    """The request comes from a page of the web, or by a name that is not this server's."""

    status = 403
    code = "foreign_page"


class UnsupportedField(RequestError):
    """The request asks for something that motab does not do."""

    code = "unsupported_field"


class ScoringUnavailable(RequestError):
    """The teacher's server does not offer the way of scoring that was asked for."""

    code = "scoring_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="motab.scoring")


class ContextExceeded(RequestError):
    """A model's context window cannot hold the request.

    `window` and `num_prompt` are the tokens that the server's words name: of its window, and of the
    prompt as it counts them.
    """

    code = "context_length_exceeded"

    def __init__(
        self, message: str, *, window: int | None = None, num_prompt: int | None = None
    ) -> None:
        super().__init__(message)
        self.window = window
        self.num_prompt = num_prompt


class ContentRefused(RequestError):
    """A server's content policy refuses the messages."""

    code = "content_policy_violation"


class Unauthorized(MotabError):
    """No API key, or a wrong one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(MotabError):
    """The configuration has no model of that name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class BodyTooLarge(MotabError):
    """The request body is larger than `server.max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class OverCapacity(MotabError):
    """`server.max_concurrent` trajectories are under way."""

    status = 429
    type = "rate_limit_error"
    code = "over_capacity"
    retryable = True
    retry_after_s: ClassVar[int] = 1


class Draining(MotabError):
    """The server is shutting down and takes no new requests."""

    status = 503
    code = "draining"
    retryable = True


class RecordNotWritten(MotabError):
    """The file of records cannot be written, so no trajectory may end, or begin."""

    status = 503
    code = "record_not_written"
    retryable = True


class DeadlineExceeded(MotabError):
    """The request took longer than `server.request_timeout_s`."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    retryable = True


class UpstreamError(MotabError):
    """An upstream server failed. `upstream` is its name in the configuration.

    `num_attempts` is the number of failed attempts at the call; the message includes it if it is
    more than one.
    """

    status = 502
    type = "upstream_error"
    code = "upstream_failed"

    def __init__(self, upstream: str, message: str) -> None:
        super().__init__(f"upstream '{upstream}': {message}")
        self.upstream = upstream
        self.num_attempts = 1

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.num_attempts == 1 else f"{message} ({self.num_attempts} attempts)"


class UpstreamUnreachable(UpstreamError):
    """No connection, or the connection broke, or nothing came over it for too long."""

    code = "upstream_unreachable"
    retryable = True


class UpstreamInterrupted(UpstreamError):
    """A stream of text broke, and cannot be resumed without a change in the text."""

    code = "upstream_interrupted"


class UpstreamFailed(UpstreamError):
    """The server answered with a 5xx, or with 429 although our requests kept to its limit.

    `retry_after_s` is the number of seconds for which it asks us to wait, if it does.
    """

    retryable = True

    def __init__(self, upstream: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(upstream, message)
        self.retry_after_s = retry_after_s


class UpstreamGarbled(UpstreamFailed):
    """The answer is not JSON: some other service answers there, and would again."""

    retryable = False


class UpstreamRefused(UpstreamError):
    """The server answered with another 4xx: it refuses what the configuration expects of it.

    `http_status` is the server's own, if it is known. `most_output` is the number of tokens that
    the model writes at most, if the server refused to write more.
    """

    code = "upstream_refused"

    def __init__(
        self,
        upstream: str,
        message: str,
        *,
        status: int | None = None,
        most_output: int | None = None,
    ) -> None:
        super().__init__(upstream, message)
        self.http_status = status
        self.most_output = most_output


class UpstreamDenied(UpstreamRefused):
    """The server answered with 401, 402 or 403: it lets us in for no request at all."""

    code = "upstream_denied"


class UnknownToken(UpstreamRefused):
    """The server was sent the id of a token that its model does not have."""


class RouterTokenises(UpstreamRefused):
    """A router tokenises in the server's place, and not as the server does."""

    def __init__(self, upstream: str) -> None:
        message = (
            "a router tokenises in the server's place, and leaves out special tokens and chat "
            "templates; set the upstream's `tokenizer` to the model's Hugging Face name or folder"
        )
        super().__init__(upstream, message)


class UpstreamMalformed(UpstreamError):
    """The answer lacks a requested part: log-probabilities are missing, NaN or too few, say."""

    code = "upstream_malformed"


def code_of(error: BaseException | None) -> str:
    """Return how work ended: `ok`, `cancelled`, or the code of the error that ended it."""
    if isinstance(error, MotabError):
        return error.code
    if error is None:
        return "ok"
    return MotabError.code if isinstance(error, Exception) else "cancelled"


def first_error(errors: BaseException) -> BaseException:
    """The first single error in a group of groups, or the error itself."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
