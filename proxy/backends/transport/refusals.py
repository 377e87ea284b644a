"""Reads a server's refusal: whether it is about the client's data, in whatever words it comes."""

import re
from http import HTTPStatus
from typing import Any

import orjson

from proxy.backends.transport.refused_numbers import most_output, prompt_tokens, window_tokens
from proxy.errors import (
    ContentRefused,
    ContextExceeded,
    MotabError,
    RequestError,
    UnknownToken,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamRefused,
)
from proxy.secrets import excerpt

_WINDOW = r"(?:context|conversation)['s]*[ _-]*(?:length|window|size|limit)"
_ASKED = r"(?:prompt|input|request|context|conversation)(?: sequence| text)?"
_MORE = r"greater|larger|longer|more"
_LIMIT = r"max(?:imum|\.)?[ _-]*(?:\w+ ){0,2}(?:model|input|prompt|sequence|seq)[ _-]*len(?:gth)?"
# The sentences of vLLM 0.6 to 0.32, SGLang, llama.cpp, TGI, OpenAI and the hosts that
# tests/unit/backends/test_refusals.py quotes, each cut down to the part that no other error has.
_OVERFLOW = re.compile(
    "|".join(
        (
            r"exceed_context_size|context_length_exceeded|context_window_exceed",
            r"max_context_length|max_model_len|max_seq_len|max_num_tokens",
            rf"max(?:imum)?[ _-]*{_WINDOW}",
            rf"(?:exceed\w*|overflow\w*|{_MORE}|fit|too long|too large)\b.{{0,80}}{_WINDOW}",
            rf"{_WINDOW}.{{0,60}}\b(?:exceed\w*|overflow\w*|only)\b",
            rf"\d (?:\w+ )?tokens\b.{{0,40}}{_WINDOW} (?:is|of)\b",
            _LIMIT,
            r"exceeds the maximum allowed length",
            r"max_tokens must be at least 1, got (?:0|-\d)",
            rf"{_ASKED}(?: is)? (?:is )?too (?:long|large)\b",
            rf"(?:prompt|input) (?:\w+ )?length\b.{{0,40}}\b(?:exceed\w*|{_MORE}|should)",
            r"(?:prompt|input|request)\b.{0,40}\btoo (?:long|large) for",
            r"(?:prompt|input|request|context)\b.{0,40}\btoo many tokens",
            r"too many tokens in (?:the |your )?(?:prompt|input|request|messages?|conversation)\b",
            r"too many (?:input |prompt )?tokens\W{1,3}(?:\d|(?:the )?(?:max|limit|total))",
            rf"\bnumber of tokens\b.{{0,30}}\b(?:exceed\w*|{_MORE})\b",
            r"(?:prompt|input|request) exceed\w* the max\w*.{0,20}\btokens",
            r"(?:prompt|input|request) (?:has|contains) \d+ tokens\b.{0,30}\b(?:limit|max)",
            r"tokens in (?:the )?request (?:is |are )?(?:more|greater) than",
            r"token limit exceeded\W{1,3}\d+ >",
            rf"sequence length\b.{{0,30}}\b(?:exceed\w*|{_MORE})\b",
            r"total (?:number of )?tokens\b.{0,30}\bexceed",
            r"inputs\W{0,3}(?:tokens \+|must have less than)",
            r"(?:token count|tokens in the prompt|input tokens)\b.{0,60}\bexceed",
            rf"number of input tokens\b.{{0,60}}\b(?:{_MORE}) than",
            r"exceed\w* (?:the )?(?:model|context)(?:'s)? token limit",
            r"reduce the length of the (?:messages|prompt|input)",
            r"current length is \d+ while limit is",
            r"range of input length",
            r"sum of prompt length",
        )
    ),
    re.IGNORECASE,
)
# Go's word for a timeout; limits of tokens a minute, which another minute helps against.
_NO_OVERFLOW = re.compile(
    r"context deadline exceeded|tokens per (?:min|day)|\btp[md]\b|rate limit|please wait",
    re.IGNORECASE,
)
# What chat templates raise, and how the servers' own rendering fails for these messages.
_TEMPLATE = re.compile(
    r"roles? must alternate|alternate user/assistant|system (?:role|message)s? (?:is |are )?not"
    r"|only user(?:,| and)|(?:un(?:known|supported|expected)|invalid)\W+(?:message |\w+ )?roles?\b"
    r"|roles? (?:are|is) supported|jinja|chat[ _]template|apply_chat_template|raise_exception"
    r"|templateerror|no user query found",
    re.IGNORECASE,
)
_POLICY = re.compile(
    r"content_policy_violation|responsibleaipolicyviolation|content_filter|content management"
    r"|violat\w+ (?:our|the) (?:usage|content) polic|rejected as a result of our safety",
    re.IGNORECASE,
)
# vLLM, SGLang, llama.cpp, and the tokenizers of their makers.
_NO_TOKEN = re.compile(
    r"\btokens?[ _]ids?\b.{0,60}\bout[ -]of[ -](?:vocab|range)|greater than the vocab"
    r"|prompt contains invalid tokens|piece id is out of range|invalid token[ _]ids?\b",
    re.IGNORECASE,
)
_DENIALS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN}
_ABOUT_DATA = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}


def is_context_overflow(text: str) -> bool:
    """Return whether these words of a server say that its context is too small."""
    return _OVERFLOW.search(text) is not None and _NO_OVERFLOW.search(text) is None


def words_of(content: bytes) -> str:
    """Return what an error's body says itself, without the input that some servers repeat."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content.decode("utf-8", "replace")
    return said_by(body)


def said_by(error: object) -> str:
    """Return an error object's type, code and message, in any of the usual shapes."""
    if isinstance(error, list):
        return "; ".join(map(said_by, error))
    if not isinstance(error, dict):
        return str(error)
    names = ("error", "message", "msg", "detail", "errors", "type", "error_type", "code")
    return " ".join(said_by(error[name]) for name in names if error.get(name) is not None)


def refusal_of(
    upstream: str,
    status: int,
    words: str,
    message: str,
    *,
    retry_after_s: float | None = None,
) -> MotabError:
    """Return the error for an answer with this HTTP status, 400 or more.

    `words` is what the server says, `message` what our client is shown. A refusal of the client's
    own data is a `RequestError`, whatever status the server has for it.
    """
    if (about_client := _about_client(upstream, status, words, message)) is not None:
        return about_client
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return UpstreamFailed(upstream, message, retry_after_s=retry_after_s)
    if status in _DENIALS:
        return UpstreamDenied(upstream, message, status=status)
    return UpstreamRefused(upstream, message, status=status, most_output=most_output(words))


def _about_client(upstream: str, status: int, words: str, message: str) -> MotabError | None:
    """Return the error for a refusal of what the client sent; None if it is no such refusal."""
    about_data = status in _ABOUT_DATA or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    shown = f"upstream '{upstream}': {message}"
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (about_data and is_context_overflow(words)):
        return exceeded(shown, words)
    if status in _ABOUT_DATA and _POLICY.search(words):
        return ContentRefused(shown, param="messages")
    if about_data and _TEMPLATE.search(words):
        return RequestError(shown, param="messages")
    if about_data and _NO_TOKEN.search(words):
        return UnknownToken(upstream, message, status=HTTPStatus.BAD_REQUEST)
    return None


def exceeded(shown: str, words: str) -> ContextExceeded:
    """Return the error for a context that is too small, with the numbers of the server's words."""
    return ContextExceeded(shown, window=window_tokens(words), num_prompt=prompt_tokens(words))


def stream_failure_of(upstream: str, error: object) -> MotabError:
    """Return the error for an error object inside of a stream, by its own status if it has one."""
    words = said_by(error)
    status = status_in(error)
    message = f"the stream failed: {excerpt(str(error))}"
    return refusal_of(upstream, status, words, message)


def status_in(error: object) -> int:
    """Return the HTTP status that an error object names; 500 if it names none."""
    found: Any = None
    if isinstance(error, dict):
        found = next(
            (error[key] for key in ("status_code", "status", "code") if key in error), None
        )
    is_status = isinstance(found, int) and HTTPStatus.BAD_REQUEST <= found < 600
    return found if is_status else HTTPStatus.INTERNAL_SERVER_ERROR
