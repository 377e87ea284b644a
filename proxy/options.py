"""The `motab` object of requests and of the configuration: the algorithm's parameters and how much
of the trace is wanted. A request's beat the model's, which beat the defaults.
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
    """`Params`, how the teacher scores, and what is told about the trajectory."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    scoring: Scoring | Literal["auto"] = "auto"
    """How the teacher scores; `auto` takes the best way that its server offers."""
    trace: Literal["none", "summary", "full"] = "summary"
    """What answers carry of it: nothing, the decisions and spans, or every step as well."""
    events: bool = False
    """Whether streams carry named events (`motab.step`, `motab.breach`) as things are decided."""


_ADAPTER = TypeAdapter(Options)
_LONG = 1024


class OptionsError(ValueError):
    """An option is unknown, of the wrong type, or out of bounds. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def parse_options(*layers: Mapping[str, Any]) -> Options:
    """The options that the layers give, later ones beating earlier ones.

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
    """Clients send the same options with thousands of requests, so those are kept; long ones, by
    a delimiter of megabytes, are not.
    """
    return _remembered(merged) if len(merged) < _LONG else _ADAPTER.validate_json(merged)


@lru_cache(maxsize=256)
def _remembered(merged: bytes) -> Options:
    return _ADAPTER.validate_json(merged)
