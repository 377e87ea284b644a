"""Checks that servers which say who they are get all of their sampling fields."""

from typing import Any

import pytest

from proxy.backends.base import Sampling
from proxy.wiring.models import open_service
from tests.integration.backends.openai.test_connecting import CONNECTING, config_of, recorded
from tests.support.replay import CALL, Recording, Replay, json_reply, stream_reply
from tests.support.servers import openai

CHAT = "/v1/chat/completions"
NEUTRAL: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "mirostat": 0},
}
WARM = Sampling(0.7, top_k=20, min_p=0.1, repetition_penalty=1.2)
WARMED: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.2},
    "sglang": {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.2},
    "llamacpp": {"top_k": 20, "min_p": 0.1, "repeat_penalty": 1.2, "repeat_last_n": -1},
}


def models(*owners: str | None, name: str = openai.MODEL) -> bytes:
    """A list of models of these owners, the first under that name."""
    (entry,) = openai.VLLM.json("models")["data"]
    rows = [
        {key: value for key, value in {**entry, "owned_by": owner}.items() if value is not None}
        | {"id": name if index == 0 else f"other-{index}"}
        for index, owner in enumerate(owners)
    ]
    return json_reply({"object": "list", "data": rows}).chunks[0]


def has(body: dict[str, Any], fields: dict[str, Any]) -> bool:
    return body | fields == body


@pytest.mark.parametrize("owner", NEUTRAL)
async def test_a_known_server_gets_every_field_in_drafts_scores_and_marks(
    up: Replay, owner: str, caplog: pytest.LogCaptureFixture
) -> None:
    mark = Recording("vllm-0.32.0").body("chat_digit_logprobs")
    up.on("GET", "/v1/models", json_reply(models(owner)))
    up.on("POST", openai.PATH, recorded(openai.VLLM, *CONNECTING))
    up.on("POST", CHAT, json_reply(mark))
    async with open_service(config_of(up)) as service:
        pair = service.models["pair"].pair
        asked = up.bodies(openai.PATH)
        assert sum("echo" in body for body in asked) == 2
        assert all(has(body, NEUTRAL[owner]) for body in (*asked, *up.bodies(CHAT)))
        assert "its defaults are not known" not in caplog.text
        for upstream in (pair.of("student"), pair.of("teacher")):
            assert upstream.unsampled == frozenset()
            up.on("POST", openai.PATH, stream_reply(openai.VLLM.body("stream_eos")))
            context = openai.context("Hi")
            async for _ in upstream.writer.write(context, WARM, 8, CALL):
                pass
            assert has(up.bodies(openai.PATH)[-1], WARMED[owner])
        chat = pair.of("student").chat
        assert chat is not None
        await chat.complete({"messages": []}, CALL)
        sent = up.bodies(CHAT)[-1]
        neutral = {name: value for name, value in NEUTRAL[owner].items() if name != "mirostat"}
        assert has(sent, neutral)
        assert not {"samplers", "mirostat"} & sent.keys()


@pytest.mark.parametrize(
    ("listed", "signed"),
    [
        (models("me"), "'me'"),
        (models("openai"), "'openai'"),
        (models(None), "nobody"),
        (models("vllm", "sglang", name="elsewhere"), "nobody"),
        (b'{"data": null}', "nobody"),
    ],
)
async def test_an_unknown_server_gets_openais_fields_and_the_log_says_so(
    up: Replay, listed: bytes, signed: str, caplog: pytest.LogCaptureFixture
) -> None:
    up.on("GET", "/v1/models", json_reply(listed))
    up.on("POST", openai.PATH, recorded(openai.VLLM, *CONNECTING))
    async with open_service(config_of(up)) as service:
        student = service.models["pair"].pair.of("student")
        assert student.unsampled == {"top_k", "min_p", "repetition_penalty"}
    assert not any({"top_k", "min_p"} & body.keys() for body in up.bodies(openai.PATH))
    assert "upstream 'small': its defaults are not known" in caplog.text
    assert f"is signed by {signed}, not by vllm, sglang, llamacpp" in caplog.text


async def test_a_model_that_is_not_listed_is_served_by_the_one_owner_of_the_list(
    up: Replay,
) -> None:
    up.on("GET", "/v1/models", json_reply(models("vllm", "vllm", name="elsewhere")))
    up.on("POST", openai.PATH, recorded(openai.VLLM, *CONNECTING))
    async with open_service(config_of(up)):
        assert all(has(body, NEUTRAL["vllm"]) for body in up.bodies(openai.PATH))
