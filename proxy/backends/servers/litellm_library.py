"""Loads the litellm library when it is needed, keeps it quiet, and translates its errors."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final
from weakref import WeakSet

import aiohttp

from proxy.backends.transport.refusals import exceeded, refusal_of
from proxy.backends.transport.retry import parse_retry_after
from proxy.errors import (
    ConfigError,
    ContentRefused,
    MotabError,
    UnsupportedField,
    UpstreamUnreachable,
)
from proxy.secrets import excerpt


def load_library() -> Any:  # noqa: ANN401 - a wire library, whose types stay in this file
    """Return the litellm module, kept quiet and from calling anything but the model's API.

    Raises `ConfigError` if it is not installed.
    """
    # Read at its import: it then uses its packaged price list and reads no .env file.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    if (folder := os.environ.get("TIKTOKEN_CACHE_DIR")) is not None:  # litellm sets its own
        os.environ.setdefault("CUSTOM_TIKTOKEN_CACHE_DIR", folder)
    try:
        library: Any = importlib.import_module("litellm")
        # Puts its copies of OpenAI's encodings where tiktoken looks for them.
        importlib.import_module("litellm.litellm_core_utils.default_encoding")
    except ModuleNotFoundError as error:
        cure = "pip install 'motab[litellm]', or an image built with PACKAGES=serve-litellm"
        raise ConfigError(f"kind 'litellm' needs a package: {cure}") from error
    library.telemetry = False
    library.suppress_debug_info = True
    library.disable_streaming_logging = True
    # If a student repeats itself, its teacher judges that.
    library.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize
    # A parameter that an API does not accept raises an error that names it.
    library.drop_params = False
    # It logs every call, also to a handler of its own.
    logging.getLogger("LiteLLM").setLevel(logging.WARNING)
    return library


_users: Final[WeakSet[object]] = WeakSet()
"""The upstreams of this process that use the library's connections, which it keeps in one place."""


def share_connections(user: object) -> None:
    """Keep the library's connections open until `user` has left them."""
    _users.add(user)


async def leave_connections(library: Any, user: object) -> None:  # noqa: ANN401
    """Close the library's connections, unless another user's streams would break."""
    _users.discard(user)
    if not _users:
        await library.close_litellm_async_clients()
        # Otherwise it would keep using the closed clients.
        library.in_memory_llm_clients_cache.flush_cache()


@contextmanager
def translated(library: Any, upstream: str) -> Iterator[None]:  # noqa: ANN401
    """Translate what the library raises in this context into a `MotabError` of `upstream`."""
    openai: Any = importlib.import_module("openai")  # litellm's errors derive from openai's
    import httpx  # noqa: PLC0415 - openai has loaded it; without openai nothing here needs it

    broken = (
        openai.APIConnectionError,
        httpx.TransportError,
        aiohttp.ClientConnectionError,
        aiohttp.ClientPayloadError,
        OSError,
    )
    try:
        yield
    except (openai.OpenAIError, *broken) as error:
        message = excerpt(" ".join(str(error).split()))
        # litellm calls a refused connection an internal server error; only its cause is right.
        if any(isinstance(cause, broken) for cause in _causes(error)):
            raise UpstreamUnreachable(upstream, message) from error
        raise _translation(library, upstream, error, message) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _translation(
    library: Any,  # noqa: ANN401
    upstream: str,
    error: Exception,
    message: str,
) -> MotabError:
    exceptions = library.exceptions
    shown = f"upstream '{upstream}': {message}"
    if isinstance(error, exceptions.ContextWindowExceededError):
        return exceeded(shown, str(error))
    if isinstance(error, exceptions.ContentPolicyViolationError):
        return ContentRefused(shown, param="messages")
    if isinstance(error, exceptions.UnsupportedParamsError):
        return UnsupportedField(shown)
    status = getattr(error, "status_code", None) or HTTPStatus.INTERNAL_SERVER_ERROR
    headers = getattr(error, "litellm_response_headers", None) or {}
    wished_s = parse_retry_after(headers.get("retry-after"))
    return refusal_of(upstream, int(status), str(error), message, retry_after_s=wished_s)
