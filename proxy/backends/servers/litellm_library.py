"""The litellm library itself: loaded when it is needed, kept quiet, its errors made ours."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx

from proxy.backends.transport.retry import parse_retry_after
from proxy.errors import (
    ConfigError,
    ContextExceeded,
    MotabError,
    UnsupportedField,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnreachable,
)

_ERROR_EXCERPT = 500


def load_library() -> Any:  # noqa: ANN401 - a wire library, whose types stay in this file
    """The litellm module, quiet, and asking nothing of anyone but the model's API.

    Raises `ConfigError` where it is not installed.
    """
    # Read when it is imported: its price list is then the packaged one, and no .env file is read.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    if (folder := os.environ.get("TIKTOKEN_CACHE_DIR")) is not None:  # it sets its own
        os.environ.setdefault("CUSTOM_TIKTOKEN_CACHE_DIR", folder)
    try:
        library: Any = importlib.import_module("litellm")
        # Puts its copies of OpenAI's encodings where tiktoken looks for them.
        importlib.import_module("litellm.litellm_core_utils.default_encoding")
    except ModuleNotFoundError as error:
        raise ConfigError("kind 'litellm' needs a package: pip install 'motab[litellm]'") from error
    library.telemetry = False
    library.suppress_debug_info = True
    library.disable_streaming_logging = True
    # A student that repeats itself is for its teacher to judge.
    library.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize
    # A parameter that an API does not take is an error that names it.
    library.drop_params = False
    # It tells of every call, to a handler of its own as well.
    logging.getLogger("LiteLLM").setLevel(logging.WARNING)
    return library


@contextmanager
def translated(library: Any, upstream: str) -> Iterator[None]:  # noqa: ANN401
    """Use the library inside of this: what it raises becomes a `MotabError` of `upstream`."""
    openai: Any = importlib.import_module("openai")  # litellm's errors derive from its
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
        message = " ".join(str(error).split())[:_ERROR_EXCERPT]
        # A refused connection is an internal server error to litellm; its cause tells.
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
    if isinstance(error, library.exceptions.ContextWindowExceededError):
        return ContextExceeded(f"upstream '{upstream}': {message}")
    if isinstance(error, library.exceptions.UnsupportedParamsError):
        return UnsupportedField(f"upstream '{upstream}': {message}")
    status = getattr(error, "status_code", httpx.codes.INTERNAL_SERVER_ERROR)
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
        headers = getattr(error, "litellm_response_headers", None) or {}
        wished_s = parse_retry_after(headers.get("retry-after"))
        return UpstreamFailed(upstream, message, retry_after_s=wished_s)
    return UpstreamRefused(upstream, message)
