"""Requests that meet the limits of models behind OpenAI's routes, which count tokens themselves."""

from typing import Any

import pytest

from proxy.backends.servers.litellm_library import load_library
from proxy.config import Config
from proxy.wiring.models import open_service
from tests.support.proxy.api import CHAT, SCORE, error_in, in_process, payloads
from tests.support.proxy.windows import TextServer, text_server, text_upstream
from tests.support.servers import litellm

pytestmark = litellm.OWN_WARNINGS

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
JUDGED = {"boundary": "static", "base_threshold": 0.3, "scoring": "judge_sample"}
MANY = 10
"""Steps of a text that no window here holds."""


@pytest.fixture(autouse=True)
def _has_tiktokens_encodings() -> None:
    load_library()  # which brings them


def configured(
    student: TextServer, teacher: TextServer, kind: str = "litellm", **teacher_keys: Any
) -> Config:
    upstreams = {
        "s": text_upstream(kind, student),
        "t": text_upstream("litellm", teacher, **teacher_keys),
    }
    pair = {"student": "s", "teacher": "t", "params": JUDGED}
    return Config.model_validate({"upstreams": upstreams, "models": {"m": pair}})


async def asked(config: Config, path: str = CHAT, **fields: Any) -> Any:
    body = {"model": "m", "messages": QUESTION, **fields}
    async with open_service(config) as service, in_process(service) as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize("kind", ["litellm", "openai"])
@pytest.mark.parametrize("tells", [False, True])
async def test_a_default_request_fits_a_small_model(kind: str, tells: bool) -> None:
    small = {"window": 2048, "tells": tells}
    async with text_server(**small) as student, text_server(**small) as teacher:
        for model in ("m", "student/s", "teacher/t"):
            response = await asked(configured(student, teacher, kind), model=model)
            assert response.status_code == 200, response.text
            (choice,) = response.json()["choices"]
            assert choice["finish_reason"] == "stop"
            assert "limited_by" not in choice["motab"]
        text = {"model": "m", "text": "12 + 30 = 42."}
        assert (await asked(configured(student, teacher, kind), SCORE, **text)).status_code == 200
        assert len(student.refused) <= (0 if tells and kind == "litellm" else 2)


@pytest.mark.parametrize("model", ["m", "student/s", "teacher/t"])
async def test_a_hosted_model_is_asked_for_what_it_can_write(model: str) -> None:
    async with text_server(most_output=16384) as student, text_server(most_output=16384) as teacher:
        teacher.mark = "0"
        config = configured(student, teacher)
        async with open_service(config) as service, in_process(service) as client:
            for _ in range(2):
                body = {"model": model, "messages": QUESTION, "max_tokens": 32768}
                response = await client.post(CHAT, json=body)
                assert response.status_code == 200, response.text
        # Each refused once, and its words were remembered.
        assert len(student.refused) <= 1
        assert len(teacher.refused) <= 1
        assert {one.answer for one in student.asked + teacher.asked} <= {1, 16384}


async def test_a_model_of_litellms_list_is_never_asked_for_more() -> None:
    async with text_server(most_output=16384) as student, text_server(most_output=16384) as teacher:
        config = configured(student, teacher, model="openai/gpt-4o")
        response = await asked(config, model="teacher/t", max_tokens=30000)
        assert response.status_code == 200, response.text
        assert teacher.refused == []
        assert teacher.asked[-1].answer == 16384
        assert response.headers["x-motab-max-tokens"] == "16384"
        lowered = {"asked": 30000, "allowed": 16384}
        assert response.json()["choices"][0]["motab"]["max_tokens"] == lowered


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_judge_whose_window_is_full_ends_the_text(tells: bool, stream: bool) -> None:
    async with text_server(num_steps=MANY) as student, text_server(window=190) as teacher:
        teacher.tells = tells
        response = await asked(configured(student, teacher), stream=stream)
        assert response.status_code == 200, response.text
        choice = payloads(response)[-2] if stream else response.json()
        (choice,) = choice["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["motab"]["limited_by"]["model"] == "teacher"
        assert choice["motab"]["limited_by"]["limit"] == "context_tokens"


async def test_a_configured_limit_holds_for_a_hosted_model() -> None:
    async with text_server(num_steps=MANY) as student, text_server(num_steps=MANY) as teacher:
        config = configured(student, teacher, max_output_tokens=20, context_tokens=4096)
        (choice,) = (await asked(config, model="teacher/t")).json()["choices"]
        limited_by = {"model": "teacher", "limit": "max_output_tokens", "tokens": 20}
        assert choice["motab"]["limited_by"] == limited_by
        assert teacher.asked[-1].answer == 20


async def test_a_question_that_is_too_long_for_a_hosted_model_is_the_clients() -> None:
    async with text_server(window=300) as student, text_server() as teacher:
        messages = [{"role": "user", "content": "What is 12 + 30? " * 100}]
        response = await asked(configured(student, teacher), messages=messages)
        error = error_in(response)
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
