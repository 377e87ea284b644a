"""The lengths that clients ask for, and what the answer says where they get less."""

from typing import Any

import pytest

from proxy.config import Config
from tests.support.proxy.api import CHAT, MODEL, answer, chat, payloads, service_of
from tests.support.proxy.configs import FILE, with_value
from tests.support.scripted import ScriptedBackend, says

HEADER = "x-motab-max-tokens"
CAP = 131072


@pytest.mark.parametrize("model", [MODEL, "student/s"])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("num", [1, 32769, 100000, CAP])
async def test_max_tokens_is_honoured_up_to_the_cap(model: str, field: str, num: int) -> None:
    student = ScriptedBackend(says("x"))
    response = await answer(service_of(student), CHAT, {**chat(**{field: num}), "model": model})
    assert student.writes[0].max_tokens == num
    assert HEADER not in response.headers
    assert "max_tokens" not in response.json()["choices"][0]["motab"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_max_tokens_that_is_lowered_is_named(stream: bool) -> None:
    student = ScriptedBackend(says("x"))
    response = await answer(service_of(student), CHAT, chat(max_tokens=CAP + 1, stream=stream))
    assert student.writes[0].max_tokens == CAP
    assert response.headers[HEADER] == str(CAP)
    body = payloads(response)[-2] if stream else response.json()
    lowered = {"asked": CAP + 1, "allowed": CAP}
    assert body["choices"][0]["motab"]["max_tokens"] == lowered


@pytest.mark.parametrize(
    ("defaults", "fields", "num"),
    [
        ({"max_total_tokens": 100}, {"max_tokens": 5000}, 5000),
        ({"max_total_tokens": 100}, {}, 100),
        ({}, {"max_tokens": 5000, "motab": {"max_total_tokens": 200}}, 200),
        ({}, {"max_tokens": 50, "motab": {"max_total_tokens": 200}}, 50),
        ({}, {}, 32768),
    ],
)
async def test_a_request_beats_its_model(
    defaults: dict[str, Any], fields: dict[str, Any], num: int
) -> None:
    student = ScriptedBackend(says("x"))
    response = await answer(service_of(student, None, defaults), CHAT, chat(**fields))
    assert student.writes[0].max_tokens == num
    assert HEADER not in response.headers


@pytest.mark.parametrize(
    ("param", "value", "complaint"),
    [
        ("max_total_tokens", CAP + 1, "131073 is more than server.max_total_tokens allows"),
        ("events", True, "events: true belongs to a request that streams"),
    ],
)
def test_params_that_no_request_could_use_are_errors_at_the_start(
    param: str, value: object, complaint: str
) -> None:
    file = with_value(FILE, ["models", "motab/pair", "params", param], value)
    with pytest.raises(ValueError, match=complaint):
        Config.model_validate(file)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
def test_every_upstream_takes_its_models_limits(kind: str) -> None:
    upstream: dict[str, Any] = {"kind": kind, "base_url": "http://127.0.0.1:1", "model": "m"}
    upstream |= {"context_tokens": 32, "max_output_tokens": 8}
    pair = {"student": "u", "teacher": "u"}
    config = Config.model_validate({"upstreams": {"u": upstream}, "models": {"m": pair}})
    assert config.upstreams["u"].context_tokens == 32
    assert config.upstreams["u"].max_output_tokens == 8
