"""Parses the `motab` object of requests and of the configuration: the algorithm's parameters, and
the wanted part of the trace. A request's values override the model's, which override the defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError

from proxy.complaints import complaints_of
from proxy.core.params import ParameterError, Params
from proxy.core.types import Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Params):
    """`Params`, the way of scoring, and the wanted part of the trace."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    scoring: Scoring | Literal["auto"] = "auto"
    """The teacher's way of scoring; `auto` takes the best way that its server offers."""
    trace: Literal["none", "summary", "full"] = "summary"
    """The part in answers: nothing, the decisions and spans, or every step as well."""
    events: bool = False
    """Whether streams carry named events (`motab.step`, `motab.breach`) as decisions are made."""


_ADAPTER = TypeAdapter(Options)
_LONG = 1024


class OptionsError(ValueError):
    """An option is unknown, of the wrong type, or out of bounds. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def parse_options(*layers: Mapping[str, Any]) -> Options:
    """Merge the layers into options; later layers override earlier layers.

    Raises `OptionsError` for the first value that cannot be used.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    try:
        # Strict validation takes a dataclass from JSON, but not from a dict.
        return _parsed(_dumped(merged))
    except ValidationError as error:
        first = complaints_of(error)[0]
        if isinstance(first.cause, ParameterError):
            raise OptionsError(first.cause.field, str(first.cause)) from error
        field = str(first.loc[0])
        raise OptionsError(field, first.about(field)) from error


def _dumped(merged: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(merged)
    except TypeError:
        for field, value in merged.items():
            try:
                orjson.dumps({field: value})
            except TypeError as error:
                raise OptionsError(str(field), f"{field}: {error}") from error
        raise


def _parsed(merged: bytes) -> Options:
    """Parse short options only once, because clients send the same options with thousands of
    requests; long options, such as a delimiter of megabytes, are not kept.
    """
    return _remembered(merged) if len(merged) < _LONG else _ADAPTER.validate_json(merged)


@lru_cache(maxsize=256)
def _remembered(merged: bytes) -> Options:
    return _ADAPTER.validate_json(merged)
