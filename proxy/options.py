"""Parses the `motab` object of requests and of the configuration: the algorithm's parameters, and
the wanted part of the trace. A request's values override the model's, which override the defaults.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from proxy.complaints import complaints_of, shortened
from proxy.core.params import ONLY_MOTAB, Delimiters, ParameterError, Params, SamplingValues
from proxy.core.types import Scoring
from proxy.near_names import UNKNOWN_FIELD, did_you_mean

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class StudentSampling(SamplingValues):
    """The student's sampling, as a request and a model's `params` give it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


# Only one of the two is asked what is wrong with a value.
_OBJECT, _TEXT = "literal[object]", "literal[text]"
_Delimiter = Annotated[
    Annotated[Delimiters, Tag(_OBJECT)] | Annotated[str, Tag(_TEXT)],
    Discriminator(lambda value: _OBJECT if isinstance(value, dict | Delimiters) else _TEXT),
]


_LONGEST_REFERENCE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Params):
    """`Params`, the way of scoring, and the wanted part of the trace."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    delimiter: _Delimiter = ".\n\n"
    choose: Literal["auto", "verified", "majority"] = "auto"
    """How one of several corrections is chosen: by the reference, or by what most of them answer;
    `auto`: by the reference if the request has one."""
    reference: Annotated[str, Field(max_length=_LONGEST_REFERENCE)] | None = None
    """The right answer to the request's question."""
    scoring: Scoring | Literal["auto"] = "auto"
    """The teacher's way of scoring; `auto` takes the best way that its server offers."""
    trace: Literal["none", "summary", "full"] = "summary"
    """The part in answers: nothing, the decisions and spans, or every step as well."""
    events: bool = False
    """Whether streams carry named events as decisions are made: `motab.step`, `motab.breach` and
    `motab.chosen`."""


FIELDS_OF_A_GIVEN_TEXT = frozenset(
    {
        "backtrack",
        "base_threshold",
        "boundary",
        "boundary_values",
        "delimiter",
        "entropy_scale",
        "entropy_top_k",
        "scoring",
    }
)
"""The options that decide on a text that is given (`/v1/motab/score`)."""
SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingValues))
"""The values that each author has: the student's are at a request's top level."""


def values_of(sampling: SamplingValues) -> dict[str, Any]:
    """Return the values by name. Not `asdict`, which copies each number in 1 us."""
    return {name: getattr(sampling, name) for name in SAMPLING_FIELDS}


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""The values of OpenAI's `reasoning_effort`, with the servers' own `max`."""

# What motab itself says to a chat template, or what would bypass the template.
_NOT_A_CLIENTS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "messages",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tools",
}
_ADAPTER = TypeAdapter(Options)
_SAMPLING_ADAPTER = TypeAdapter(StudentSampling)
_LONG = 1024
_MOST_FIELDS = 64
_LONGEST_KWARGS = 65536


class OptionsError(ValueError):
    """An option is unknown, of the wrong type, or out of bounds. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def parse_options(*layers: Mapping[str, Any]) -> Options:
    """Merge the layers into options; later layers override earlier layers.

    Raises `OptionsError` for the first value that cannot be used.
    """
    merged = merge_layers(*layers)
    for name in merged:
        if name in SAMPLING_FIELDS:
            message = f"{name} is set at the request's top level, or in teacher for the teacher"
            raise OptionsError(name, message)
    if isinstance(merged.get("reference"), float):  # JSON has null for the value that is no number
        raise OptionsError("reference", "reference: input should be a valid string")
    teacher = merged.get("teacher")
    _bound_fields("teacher", teacher)
    _bound_fields("boundary_values", merged.get("boundary_values"), "values")
    if isinstance(delimiter := merged.get("delimiter"), dict):
        _bound_fields("delimiter", delimiter)
        _bound_fields("delimiter.any", delimiter.get("any"), "texts")
    if isinstance(teacher, dict) and "temperature" in teacher:
        merged["teacher"] = {name: teacher[name] for name in teacher if name != "temperature"}
        merged["teacher_temperature"] = teacher["temperature"]
    try:
        # Strict validation takes a dataclass from JSON, but not from a dict.
        return _parsed(_dumped(merged))
    except ValidationError as error:
        fault = _options_error(error, Options)
        if fault.field == "teacher_temperature" and not any(fault.field in x for x in layers):
            fault = OptionsError("teacher.temperature", str(fault).replace("_", ".", 1))
        raise fault from error


def _bound_fields(name: str, value: object, noun: str = "fields") -> None:
    # Each field that is wrong costs a complaint, though only the first is shown.
    if isinstance(value, dict | list) and len(value) > _MOST_FIELDS:
        raise OptionsError(name, f"{name} has more than {_MOST_FIELDS} {noun}")


def merge_layers(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return one `motab` object; later layers override earlier ones, and so do the values within
    `teacher`. `teacher_temperature` becomes `teacher.temperature`. A layer that asks for another
    method leaves the parameters of `motab` alone behind that earlier layers gave, and a layer that
    chooses another boundary than `quantile` leaves the `boundary_values` behind.

    Raises `OptionsError` if a layer gives both and they differ.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer.get("method", "motab") != "motab":
            merged = {name: value for name, value in merged.items() if name not in ONLY_MOTAB}
        below, teacher = merged.get("teacher"), layer.get("teacher", {})
        if layer.get("boundary", "quantile") != "quantile":
            merged.pop("boundary_values", None)
        merged |= {name: value for name, value in layer.items() if name != "teacher_temperature"}
        if isinstance(teacher, dict):
            below = below if isinstance(below, dict) else {}
            if values := {**below, **teacher, **_short_form(layer, teacher)}:
                merged["teacher"] = values
    return merged


def _short_form(layer: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Any]:
    if "teacher_temperature" not in layer:
        return {}
    short = layer["teacher_temperature"]
    if "temperature" in teacher and teacher["temperature"] != short:
        message = (
            f"teacher_temperature is {_shown(short)} and teacher.temperature"
            f" {_shown(teacher['temperature'])}: they mean the same, so give only one of them"
        )
        raise OptionsError("teacher_temperature", message)
    return {"temperature": short}


def parse_sampling(asked: Mapping[str, Any]) -> StudentSampling:
    """Return the student's sampling. Raises `OptionsError` for a value that cannot be used."""
    try:
        return _remembered_sampling(_dumped(asked))
    except ValidationError as error:
        raise _options_error(error, StudentSampling) from error


@lru_cache(maxsize=256)
def _remembered_sampling(asked: bytes) -> StudentSampling:
    """Parse only once, as options."""
    return _SAMPLING_ADAPTER.validate_json(asked)


def split_sampling(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a model's `params` into the student's sampling and the fields of the `motab` object."""
    sampling = {name: value for name, value in params.items() if name in SAMPLING_FIELDS}
    return sampling, {name: value for name, value in params.items() if name not in sampling}


def template_kwargs(kwargs: Mapping[str, Any], effort: Effort | None) -> dict[str, Any]:
    """Return a chat template's additional variables.

    `reasoning_effort` also switches thinking on or off where that is not given, as vLLM's and
    SGLang's chat routes do. Raises `OptionsError` for a variable that is not the client's.
    """
    field = "chat_template_kwargs"
    if reserved := sorted(_NOT_A_CLIENTS & kwargs.keys()):
        message = f"{field}.{reserved[0]} cannot be set: motab itself decides it"
        raise OptionsError(f"{field}.{reserved[0]}", message)
    if len(_dumped(kwargs)) > _LONGEST_KWARGS:
        raise OptionsError(field, f"{field} has more than {_LONGEST_KWARGS} bytes as JSON")
    if effort is None:
        return dict(kwargs)
    if kwargs.get("reasoning_effort", effort) != effort:
        message = (
            f"reasoning_effort is {effort!r} and {field}.reasoning_effort"
            f" {_shown(kwargs['reasoning_effort'])}: they mean the same, so give only one of them"
        )
        raise OptionsError("reasoning_effort", message)
    return {"enable_thinking": effort != "none", **kwargs, "reasoning_effort": effort}


def _options_error(error: ValidationError, model: type) -> OptionsError:
    """The first of pydantic's complaints, with the field's path."""
    first = complaints_of(error, model)[0]
    path = _dotted(first.loc)
    if isinstance(first.cause, ParameterError):
        path = _dotted([*first.loc, first.cause.field])
        return OptionsError(path, path + str(first.cause).removeprefix(first.cause.field))
    message = first.about(path)
    if first.kind in UNKNOWN_FIELD and not message.endswith("?"):
        # The student's values stand elsewhere, and the teacher's temperature has another name here.
        message += did_you_mean(str(first.loc[-1]), SAMPLING_FIELDS)
    return OptionsError(path, message)


def _shown(value: object) -> str:
    return shortened(repr(value))


def _dotted(loc: Iterable[int | str]) -> str:
    # Pydantic puts the members of a union into the path.
    return shortened(".".join(str(part) for part in loc if not str(part).startswith("literal[")))


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
