"""Decides how many tokens an answer may have, and remembers where that is fewer than were asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.api.schema import GenerationRequest
from proxy.engine.served_model import ServedModel
from proxy.errors import RequestError
from proxy.options import Options, OptionsError, parse_options

_DEFAULT = Options().max_total_tokens


@dataclass(frozen=True, slots=True)
class LoweredTokens:
    """A request's `max_tokens`, and the lower number that it got."""

    asked: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request's options. `lowered` is None if its `max_tokens` is honoured, or if it has none."""

    options: Options
    lowered: LoweredTokens | None


def length_limit(request: GenerationRequest) -> int | None:
    """Return the smaller of OpenAI's two names for the same thing."""
    limits = [x for x in (request.max_tokens, request.max_completion_tokens) if x is not None]
    return min(limits, default=None)


def resolve_options(
    model: ServedModel, asked: Mapping[str, Any], max_tokens: int | None, cap: int
) -> Resolved:
    """Merge the options of the server, the model and the request; `cap` is the server's own.

    `max_tokens` is honoured as far as the cap and the models' limits allow. Raises `RequestError`
    for an option that cannot be used.
    """
    layers = ({"max_total_tokens": min(_DEFAULT, cap)}, model.defaults, asked)
    try:
        options = parse_options(*layers)
        if max_tokens is None:
            _require_within(options, cap)
            return Resolved(options, None)
        wanted = max_tokens
        if "max_total_tokens" in asked:
            wanted = min(wanted, options.max_total_tokens)
        most = model.most_tokens(options.method)
        allowed = min(wanted, cap if most is None else min(cap, most))
        options = parse_options(*layers, {"max_total_tokens": allowed})
    except OptionsError as error:
        raise RequestError(str(error), param=f"motab.{error.field}") from error
    return Resolved(options, LoweredTokens(max_tokens, allowed) if allowed < wanted else None)


def _require_within(options: Options, cap: int) -> None:
    if options.max_total_tokens > cap:
        message = f"max_total_tokens must be at most {cap} here"
        raise RequestError(message, param="motab.max_total_tokens")
