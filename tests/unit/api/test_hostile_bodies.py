"""Hostile bodies cost little more than other bodies of their size: the first fault ends each."""

import json
import time
import tracemalloc
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.api.schema import ChatRequest, CompletionRequest, ScoreRequest, parse_body
from proxy.errors import RequestError
from proxy.json_bounds import MAX_NESTED, MAX_VALUES, fault_of_size, misfit_of

NUM_BYTES = 1_000_000
CHAT = '{"model":"m","messages":[{"role":"user","content":"Q"}],%s}'
MESSAGES = '{"model":"m","messages":%s}'
CONTENT = '{"model":"m","messages":[{"role":"user","content":%s}]}'
PROMPT = '{"model":"m","prompt":%s}'
SURROGATE = '"\\ud800"'


def many(item: str, num_bytes: int = NUM_BYTES) -> str:
    return "[" + ",".join([item] * (num_bytes // (len(item) + 1))) + "]"


def keys(num_bytes: int = NUM_BYTES) -> str:
    return ",".join(f'"{i}":1' for i in range(num_bytes // 10))


def deep(inner: str, levels: int = 180) -> str:
    """A list in a list and so on, with as much text at every level."""
    text = "x" * (NUM_BYTES // levels)
    return f'["{text}",' * levels + inner + "]" * levels


BODIES: dict[str, tuple[type[Any], str]] = {
    "numbers for messages": (ChatRequest, MESSAGES % many("1")),
    "lists for messages": (ChatRequest, MESSAGES % many("[]")),
    "objects for messages": (ChatRequest, MESSAGES % many("{}")),
    "objects with a key for messages": (ChatRequest, MESSAGES % many('{"":0}')),
    "numbers for parts": (ChatRequest, CONTENT % many("1")),
    "objects for parts": (ChatRequest, CONTENT % many("{}")),
    "unknown keys": (ChatRequest, CHAT % keys()),
    "unknown keys of a message": (ChatRequest, MESSAGES % f'[{{"role":"user",{keys()}}}]'),
    "unknown keys of motab": (ChatRequest, CHAT % f'"motab":{{{keys()}}}'),
    "keys of logit_bias": (ChatRequest, CHAT % f'"logit_bias":{{{keys()}}}'),
    "numbers for stops": (ChatRequest, CHAT % f'"stop":{many("1")}'),
    "stops": (ChatRequest, CHAT % f'"stop":{many(json.dumps("ab"))}'),
    "a number of digits": (ChatRequest, CHAT % f'"n":{"1" * NUM_BYTES}'),
    "a fraction of digits": (ChatRequest, CHAT % f'"top_p":0.{"1" * NUM_BYTES}'),
    "half a surrogate pair deep within": (ChatRequest, CHAT % f'"motab":{{"a":{deep(SURROGATE)}}}'),
    "lists in lists": (ChatRequest, MESSAGES % ("[" * NUM_BYTES)),
    "closed lists in lists": (ChatRequest, MESSAGES % ("[" * 900 + "]" * 900)),
    "fractions for prompts": (CompletionRequest, PROMPT % many("1.5")),
    "prompts": (CompletionRequest, PROMPT % many('"ab"')),
    "numbers and texts for prompts": (CompletionRequest, PROMPT % many('1,"ab"')),
    "lists of texts for prompts": (CompletionRequest, PROMPT % many('["ab"]')),
    "prompts of one token": (CompletionRequest, PROMPT % many("[1]")),
    "numbers for the messages of a text": (ScoreRequest, MESSAGES % many("1")),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_at_its_first_fault(name: str) -> None:
    model, text = BODIES[name]
    body = text.encode()
    tracemalloc.start()
    seconds = -time.process_time()
    refuse(model, body)
    seconds += time.process_time()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * NUM_BYTES  # orjson reserves 270 bytes a value, and touches few of them
    assert seconds < 3  # tracemalloc slows it, some 10 times


@pytest.mark.parametrize("name", BODIES)
def test_pydantic_makes_few_errors_of_a_hostile_body(name: str) -> None:
    model, text = BODIES[name]
    try:
        model.model_validate_json(text)
    except ValidationError as error:
        assert error.error_count() < 10  # noqa: PT017 - it may be refused later


def refuse(model: type[Any], body: bytes) -> None:
    """Read a body as the routes do, and see that it is refused."""
    if fault_of_size(body):
        return
    if model is ChatRequest and b'"top_p":0.' in body:  # a fraction may be of any precision
        parse_body(model, "application/json", body)
        return
    with pytest.raises(RequestError) as caught:
        parse_body(model, "application/json", body)
    assert len(str(caught.value)) < 500


def test_a_body_has_a_bounded_number_of_values() -> None:
    ids = PROMPT % json.dumps(list(range(10_000)) * 52)
    assert fault_of_size(ids.encode()) is None
    one_more = PROMPT % many("1", 2 * MAX_VALUES + 4)
    assert fault_of_size(one_more.encode()) == f"it has more than {MAX_VALUES} values"


@pytest.mark.parametrize("item", ["[]", "{}", '{"a":1}'])
def test_a_body_has_a_bounded_number_of_objects_lists_and_keys(item: str) -> None:
    held = item.count("[") + item.count("{") + item.count(":")
    within = "[" + ",".join([item] * (MAX_NESTED // held - 1)) + "]"
    assert fault_of_size(within.encode()) is None
    beyond = "[" + ",".join([item] * (MAX_NESTED // held + 1)) + "]"
    assert "objects, lists and keys" in str(fault_of_size(beyond.encode()))


@pytest.mark.parametrize(
    "text", ["{" * NUM_BYTES, "," * NUM_BYTES, '\\",' * 600_000, "[\\\\" * 300_000, '":{' * 100_000]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_signs_in_texts_do_not_count(text: str, encoding: str) -> None:
    body = (CONTENT % json.dumps(text)).encode(encoding)
    tracemalloc.start()
    assert fault_of_size(body) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(text)


def test_a_text_that_is_never_closed_is_read_once() -> None:
    began = time.process_time()
    fault_of_size(b'"' + b'\\",' * 1_000_000)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": ["x", {"b": "\ud800"}]}, ("a", 1, "b")),
        ({"a": {"\ud800": 1}}, ("a",)),
        ([2**63, 2**64], (1,)),
        ([-(2**63), -(2**63) - 1], (1,)),
        ({"a": ["x", 1.5, True, None, 2**64 - 1]}, None),
    ],
)
def test_the_part_that_cannot_be_passed_on_is_found(
    value: object, place: tuple[object, ...] | None
) -> None:
    assert misfit_of(value) == place
