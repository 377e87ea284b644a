"""The limits of models, as the servers name them."""

from typing import Any

import pytest

from proxy.backends.limits import ModelLimits
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.model_list import listed_limits
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from tests.support.replay import Recording, Replay, json_reply
from tests.support.servers import litellm, llamacpp

pytestmark = litellm.OWN_WARNINGS

VLLM, SGLANG = Recording("vllm-0.32.0"), Recording("sglang-0.5.23")
PYTHON = Recording("openai-llama-cpp-python-0.3.36")
LLAMACPP_LIST = Recording("openai-llamacpp-b11549")
MODELS = "/v1/models"


async def test_vllm_names_its_window(up: Replay) -> None:
    up.on("GET", MODELS, json_reply(VLLM.body("models")))
    assert await Vllm(up.client, "smollm2", None, 97).limits() == ModelLimits(2048)


@pytest.mark.parametrize("model", ["smollm2", "adapter"])
async def test_sglang_names_its_window_and_the_first_prompt_that_it_refuses(
    up: Replay, model: str
) -> None:
    up.on("GET", MODELS, json_reply(SGLANG.body("models")))
    up.on("GET", "/server_info", json_reply({"max_req_input_len": 2042}))
    assert await SGLang(up.client, model, None, 97).limits() == ModelLimits(2048, 2041)


async def test_a_server_without_a_page_leaves_its_limit_open(up: Replay) -> None:
    up.on("GET", MODELS, json_reply(SGLANG.body("models")))
    up.on("GET", "/server_info", json_reply({"detail": "Not Found"}, 404))
    assert await SGLang(up.client, "smollm2", None, 97).limits() == ModelLimits(2048)


async def test_llama_cpp_names_a_slots_window(up: Replay) -> None:
    up.on("GET", "/props", json_reply(llamacpp.RECORDED.body("props")))
    up.on("POST", "/tokenize", json_reply(llamacpp.RECORDED.body("tokenize_follower")))
    assert await (await LlamaCpp.connect(up.client, None)).limits() == ModelLimits(2048)


@pytest.mark.parametrize(
    ("entry", "limits"),
    [
        ({"context_length": 32768}, ModelLimits(32768)),
        (
            {"context_window": 131072, "max_completion_tokens": 8192},
            ModelLimits(131072, None, 8192),
        ),
        ({"max_context_length": 4096}, ModelLimits(4096)),
        (
            {"context_length": 9000, "top_provider": {"max_completion_tokens": 700}},
            ModelLimits(9000, None, 700),
        ),
        ({"meta": {"n_ctx": 1024, "n_ctx_train": 8192}}, ModelLimits(1024)),
        ({"context_length": 0}, ModelLimits()),
        ({"context_length": None}, ModelLimits()),
        ({"context_length": "many"}, ModelLimits()),
        ({}, ModelLimits()),
    ],
)
async def test_hosts_name_limits_in_fields_of_their_own(
    up: Replay, entry: dict[str, Any], limits: ModelLimits
) -> None:
    up.on("GET", MODELS, json_reply({"data": [{"id": "other"}, {"id": "m", **entry}]}))
    assert await listed_limits(up.client, "m") == limits


@pytest.mark.parametrize("body", [[], {}, {"data": None}, {"data": ["m"]}, {"data": [{"id": "x"}]}])
async def test_a_list_of_another_shape_names_none(up: Replay, body: Any) -> None:
    up.on("GET", MODELS, json_reply(body))
    assert await listed_limits(up.client, "m") == ModelLimits()


async def test_litellms_own_list_and_the_apis_hold_both(up: Replay) -> None:
    up.on("GET", "/models", json_reply({"data": [{"id": "gpt-4o", "context_length": 1000}]}))
    hosted = litellm.Hosted(up)
    try:
        assert await hosted("openai/gpt-4o").limits() == ModelLimits(1000, None, 16384)
        unlisted = hosted("openai/gpt-4o", lists_models=False)
        assert await unlisted.limits() == ModelLimits(128000, None, 16384)
        assert await hosted("openai/nobodys", lists_models=False).limits() == ModelLimits()
    finally:
        await hosted.aclose()
