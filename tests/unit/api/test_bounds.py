"""Every field of a request has bounds: a hostile value is refused, or lies within them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import pytest

from proxy.api.schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    MotabRequest,
    ScoreRequest,
    StreamOptions,
    TextPart,
    parse_body,
)
from proxy.core.params import TeacherSampling
from proxy.errors import RequestError
from proxy.options import Options, OptionsError, parse_options, parse_sampling

INT64 = 2**63 - 1
LONG = 100_000
HOSTILE: tuple[object, ...] = (
    -1,
    0,
    -0.0,
    0.5,
    2**31,
    INT64,
    -INT64 - 1,
    INT64 + 1,
    10**19,
    10**400,
    5e-324,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    True,
    "",
    "1",
    "x" * LONG,
    [],
    [1] * 5000,
    ["x"] * 5000,
    ["x" * LONG],
    [[1]] * 5000,
    [[]] * 5000,
    {},
    {f"k{i}": i for i in range(5000)},
)


class Bounds(Protocol):
    def holds(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Number:
    least: float
    most: float

    def holds(self, value: object) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.least <= value <= self.most  # type: ignore[operator]


@dataclass(frozen=True)
class Text:
    """A text or, with `most_items`, a list as well."""

    longest: int
    most_items: int = 0

    def holds(self, value: object) -> bool:
        if isinstance(value, list):
            return len(value) <= self.most_items and all(map(self.holds, value))
        return isinstance(value, str) and len(value) <= self.longest


@dataclass(frozen=True)
class Whole:
    """A text as long as the body may be, or a list of at most that many parts."""

    most_items: int = 0

    def holds(self, value: object) -> bool:
        are_ids = isinstance(value, list) and all(isinstance(item, int) for item in value)
        is_short = isinstance(value, list) and len(value) <= self.most_items
        return isinstance(value, str) or are_ids or is_short


@dataclass(frozen=True)
class Choice:
    """One of a few values, or an object of a few keys."""

    most_keys: int = 0

    def holds(self, value: object) -> bool:
        if isinstance(value, dict):
            return len(value) <= self.most_keys
        return isinstance(value, bool) or (isinstance(value, str) and len(value) < 100)


@dataclass(frozen=True)
class Numbers:
    """A list of at most that many numbers."""

    each: Number
    most_items: int

    def holds(self, value: object) -> bool:
        are_numbers = isinstance(value, list | tuple) and all(map(self.each.holds, value))
        return are_numbers and len(value) <= self.most_items  # type: ignore[arg-type]


LENGTH, SEED, NAME, FLAG = Number(1, INT64), Number(-INT64 - 1, INT64), Text(1000), Choice()
OF_SAMPLING: dict[str, Bounds] = {
    "top_k": Number(-1, 2**30),
    "min_p": Number(0, 1),
    "top_p": Number(5e-324, 1),
    "presence_penalty": Number(-2, 2),
    "frequency_penalty": Number(-2, 2),
    "repetition_penalty": Number(5e-324, 2),
}
OF_REQUESTS: dict[str, Bounds] = {
    **OF_SAMPLING,
    "chat_template_kwargs": Choice(64),
    "reasoning_effort": FLAG,
    "model": NAME,
    "user": NAME,
    "motab": Choice(64),
    "temperature": Number(0, 2),
    "seed": SEED,
    "n": LENGTH,
    "max_tokens": LENGTH,
    "max_completion_tokens": LENGTH,
    "stop": Text(1000, 16),
    "stream": FLAG,
    "stream_options": Choice(),
    "continue_final_message": FLAG,
    "add_generation_prompt": FLAG,
    "messages": Whole(4096),
    "prompt": Whole(4096),
    "text": Text(1_000_000),
    "token_logprobs": FLAG,
}
OF_STREAM_OPTIONS: dict[str, Bounds] = {"include_usage": FLAG, "continuous_usage_stats": FLAG}
OF_MESSAGES: dict[str, Bounds] = {
    "role": FLAG,
    "content": Whole(4096),
    "reasoning_content": Whole(),
    "reasoning": Whole(),
    "prefix": FLAG,
}
OF_PARTS: dict[str, Bounds] = {"type": FLAG, "text": Whole()}
TOKENS = Number(1, 2**31 - 1)
OF_OPTIONS: dict[str, Bounds] = {
    "method": FLAG,
    "base_threshold": Number(0, 1),
    "entropy_scale": Number(0, 1000),
    "entropy_top_k": Number(2, 1000),
    "delimiter": Text(1000),
    "max_step_tokens": TOKENS,
    "max_total_tokens": TOKENS,
    "max_lookahead_tokens": TOKENS,
    "revise": Text(1000),
    "boundary": FLAG,
    "boundary_values": Numbers(Number(0, 1), 64),
    "backtrack": FLAG,
    "stitch": FLAG,
    "rounds": TOKENS,
    "correction_steps": TOKENS,
    "corrections": Number(1, 64),
    "choose": FLAG,
    "reference": Text(100_000),
    "gamma": Number(5e-324, 1000),
    "beta": Number(0, 1),
    "teacher_temperature": Number(0, 2),
    "teacher": Choice(64),
    "scoring": FLAG,
    "trace": FLAG,
    "events": FLAG,
}
MESSAGES = [{"role": "user", "content": "Q"}]
REQUESTS: dict[type[ChatRequest | CompletionRequest | MotabRequest | ScoreRequest], Any] = {
    ChatRequest: {"model": "m", "messages": MESSAGES},
    CompletionRequest: {"model": "m", "prompt": "Q"},
    MotabRequest: {"model": "m", "messages": MESSAGES},
    ScoreRequest: {"model": "m", "messages": MESSAGES, "text": "A"},
}


def shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:20] if value != 10**400 else '10^400'}"


@pytest.mark.parametrize(
    ("has_bounds", "names"),
    [
        (OF_REQUESTS, {name for model in REQUESTS for name in model.model_fields}),
        (OF_STREAM_OPTIONS, StreamOptions.model_fields),
        (OF_MESSAGES, ChatMessage.model_fields),
        (OF_PARTS, TextPart.model_fields),
        (OF_SAMPLING, {field.name for field in fields(TeacherSampling)}),
        (OF_OPTIONS, {field.name for field in fields(Options)}),
    ],
)
def test_each_field_has_bounds_here(has_bounds: dict[str, Any], names: Iterable[str]) -> None:
    assert set(has_bounds) == set(names)


@pytest.mark.parametrize("value", HOSTILE, ids=shown)
@pytest.mark.parametrize("model", REQUESTS)
def test_a_request_takes_values_within_the_bounds_only(model: Any, value: object) -> None:
    for name in model.model_fields:
        if isinstance(value, str) and name in {"text", "prompt"}:
            continue
        accepted = taken(model, REQUESTS[model] | {name: value})
        if accepted is None:
            continue
        found = getattr(accepted, name)
        assert OF_REQUESTS[name].holds(value), f"{name} takes {shown(value)} as {shown(found)}"


@pytest.mark.parametrize("value", HOSTILE, ids=shown)
@pytest.mark.parametrize("name", OF_STREAM_OPTIONS)
def test_stream_options_take_values_within_the_bounds_only(name: str, value: object) -> None:
    body = REQUESTS[ChatRequest] | {"stream": True, "stream_options": {name: value}}
    assert taken(ChatRequest, body) is None or OF_STREAM_OPTIONS[name].holds(value)


@pytest.mark.parametrize("value", HOSTILE, ids=shown)
def test_messages_and_their_parts_take_values_within_the_bounds_only(value: object) -> None:
    for name, bounds in OF_MESSAGES.items():
        body = REQUESTS[ChatRequest] | {"messages": [MESSAGES[0] | {name: value}]}
        assert taken(ChatRequest, body) is None or bounds.holds(value), name
    for name, bounds in OF_PARTS.items():
        part = {"type": "text", "text": "Q"} | {name: value}
        body = REQUESTS[ChatRequest] | {"messages": [{"role": "user", "content": [part]}]}
        assert taken(ChatRequest, body) is None or bounds.holds(value), name


@pytest.mark.parametrize("value", HOSTILE, ids=shown)
@pytest.mark.parametrize("name", OF_OPTIONS)
def test_options_take_values_within_the_bounds_only(name: str, value: object) -> None:
    options = chosen(name, {name: value})
    if name == "teacher" and options is not None:
        assert value == {}
    else:
        assert options is None or OF_OPTIONS[name].holds(getattr(options, name))


@pytest.mark.parametrize("value", HOSTILE, ids=shown)
def test_a_boundary_by_step_takes_values_within_the_bounds_only(value: object) -> None:
    for values in (value, [value], [0.1, value]):
        asked = {"boundary": "quantile", "boundary_values": values}
        options = chosen("boundary_values", asked)
        assert options is None or OF_OPTIONS["boundary_values"].holds(values)
        assert options is None or options.boundary_values


# Requests with integers beyond 64 bits are refused before their options are read.
@pytest.mark.parametrize("value", [one for one in HOSTILE if one != 10**400], ids=shown)
@pytest.mark.parametrize("name", [*OF_SAMPLING, "temperature"])
def test_the_teachers_sampling_takes_values_within_the_bounds_only(
    name: str, value: object
) -> None:
    options = chosen(f"teacher.{name}", {"teacher": {name: value}})
    if name == "temperature":
        assert options is None or OF_OPTIONS["teacher_temperature"].holds(value)
    else:
        assert options is None or OF_SAMPLING[name].holds(value)


@pytest.mark.parametrize("value", HOSTILE, ids=shown)
@pytest.mark.parametrize("name", ["any", "keep_code"])
def test_several_delimiters_take_values_within_the_bounds_only(name: str, value: object) -> None:
    options = chosen("delimiter", {"delimiter": {"any": ["."], name: value}})
    assert options is None or (name == "keep_code" and isinstance(value, bool))
    options = chosen("delimiter", {"delimiter": {"any": [".", value]}})
    assert options is None or Text(1000).holds(value)


@pytest.mark.parametrize("name", ["x" * LONG, "temperature"])
def test_a_refusal_of_options_is_short(name: str) -> None:
    for options in ({name: 1}, {"teacher": {name: "x" * LONG}, "teacher_temperature": 0}):
        with pytest.raises(OptionsError) as caught:
            parse_options(options)
        assert len(str(caught.value)) < 500
        assert len(caught.value.field) < 500


def chosen(field: str, options: dict[str, Any]) -> Options | None:
    """Return the options; None if they are refused, with a sentence that names the field."""
    try:
        return parse_options(options)
    except OptionsError as error:
        has_parts = isinstance(options.get(field), dict | list)
        is_within = has_parts and error.field.startswith(f"{field}.")
        assert error.field == field or is_within, error  # noqa: PT017 - it may be taken as well
        assert len(str(error)) < 500  # noqa: PT017
        return None


def taken(model: type[Any], body: dict[str, Any]) -> GenerationRequest | ScoreRequest | None:
    """Return the request; None if it is refused, with a sentence that names the field."""
    try:
        parsed: Any = parse_body(model, "application/json", json.dumps(body).encode())
        if isinstance(parsed, GenerationRequest):
            parse_sampling(parsed.sampled())
    except (RequestError, OptionsError) as error:
        assert error.param if isinstance(error, RequestError) else error.field  # noqa: PT017
        assert len(str(error)) < 500  # noqa: PT017
        return None
    else:
        return parsed  # type: ignore[no-any-return]
