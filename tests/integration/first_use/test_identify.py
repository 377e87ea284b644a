"""Tests how a server is recognised, and what is said about one that cannot be."""

from typing import Any

import pytest

from proxy.errors import StartError
from proxy.probe.identify import Asked, Identity, ServerSettings, identify, settings_of
from tests.support.fake_vllm import MODEL, FakeVllm
from tests.support.replay import Recording, Replay, json_reply, replay

MODELS = "/v1/models"
LLAMA_CPP = Recording("llamacpp-b11549")


def listed(*names: str, **about: Any) -> Any:
    return json_reply({"data": [{"id": name, **about} for name in names]})


async def found(up: Replay, model: str | None = None, wait_s: float = 0.0) -> Identity:
    return await identify(Asked("teacher", up.client.base_url, None, model), wait_s)


async def refusal(up: Replay, model: str | None = None, key: str | None = None) -> str:
    with pytest.raises(StartError) as caught:
        await identify(Asked("teacher", up.client.base_url, key, model))
    return str(caught.value)


async def test_vllm_is_known_by_its_tokens() -> None:
    async with replay() as up:
        FakeVllm().serve(up)
        assert await found(up) == Identity("vllm", MODEL)


async def test_llama_cpp_is_known_by_its_slots() -> None:
    async with replay() as up:
        up.on("GET", MODELS, listed("m.gguf", owned_by="llamacpp"))
        up.on("GET", "/props", json_reply(LLAMA_CPP.body("props")))
        identity = await found(up)
        assert (identity.kind, identity.signed_by) == ("llamacpp", "llamacpp")
        num_slots = LLAMA_CPP.json("props")["total_slots"]
        assert identity.settings == await settings_of("t", up.client.base_url, None)
        assert identity.settings == ServerSettings(num_slots)


async def test_sglang_is_known_by_its_info_and_its_places_are_read() -> None:
    state = {"effective_max_running_requests_per_dp": 48}
    info = {"max_req_input_len": 2042, "internal_states": [state], "max_running_requests": None}
    async with replay() as up:
        up.on("GET", MODELS, listed("m", owned_by="sglang", root="org/m"))
        up.on("GET", "/server_info", json_reply(info))
        identity = await found(up)
        assert identity == Identity("sglang", "m", ServerSettings(48), "org/m", "sglang")
        flags = {"incremental_streaming_output": False, "disable_radix_cache": True}
        up.on("GET", "/server_info", json_reply({**info, **flags}))
        advice = " ".join((await found(up)).settings.advice)
        assert "with --incremental-streaming-output" in advice
        assert "without --disable-radix-cache" in advice


async def test_sglang_behind_a_router_is_known_by_its_signature_and_its_tokens() -> None:
    async with replay() as up:
        up.on("GET", MODELS, listed("m", owned_by="sglang"))
        up.on("POST", "/v1/tokenize", json_reply({"tokens": [1], "max_model_len": 9}))
        assert (await found(up)).kind == "sglang"


async def test_completions_alone_are_kind_openai_and_a_chat_api_is_hosted() -> None:
    async with replay() as up:
        up.on("GET", MODELS, listed("m", owned_by="vllm"))
        up.on("POST", "/v1/completions", json_reply({"choices": [{"text": " three"}]}))
        assert await found(up) == Identity("openai", "m", signed_by="vllm")
        up.on("POST", "/v1/completions", json_reply({"error": {"message": "no"}}, 404))
        assert (await found(up)).kind == "litellm"


async def test_several_models_are_listed_with_the_option_that_chooses() -> None:
    async with replay() as up:
        FakeVllm().serve(up)
        up.on("GET", MODELS, listed("big-model", "mini"))
        said = await refusal(up)
        assert "serves several models: choose with --teacher-model: big-model, mini" in said
        assert (await found(up, "mini")).model == "mini"
        said = await refusal(up, "big-modle")
        assert "serves big-model, mini, not 'big-modle' (--teacher-model)" in said
        assert said.endswith("did you mean 'big-model'?")


async def test_hundreds_of_models_are_not_all_listed() -> None:
    async with replay() as up:
        up.on("GET", MODELS, listed(*(f"m{i}" for i in range(300))))
        assert (await refusal(up)).endswith("m18, m19 and 280 more")


async def test_a_server_that_wants_a_key_is_said_to_and_a_wrong_one_to_be_refused() -> None:
    async with replay() as up:
        up.on("GET", MODELS, json_reply({"error": "no key"}, 401))
        said = await refusal(up)
        assert "wants a key: put it into an environment variable" in said
        assert "--teacher-key-variable NAME" in said
        assert "refuses the key" in await refusal(up, key="wrong-key-of-mine")


async def test_a_key_that_only_the_text_route_wants_is_asked_for_too() -> None:
    async with replay() as up:
        up.on("GET", MODELS, listed("m"))
        up.on("POST", "/v1/completions", json_reply({"error": "no key"}, 401))
        assert "wants a key" in await refusal(up)


async def test_a_server_that_loads_is_waited_for_only_if_asked() -> None:
    loading = json_reply({"error": {"message": "Loading model", "code": 503}}, 503)
    async with replay() as up:
        FakeVllm().serve(up)
        up.on("GET", MODELS, loading)
        said = await refusal(up)
        assert "Loading model" in said
        assert said.endswith("if it is still loading its model, use --wait 300")
        up.on("GET", MODELS, loading, listed(MODEL))
        assert (await found(up, wait_s=20.0)).kind == "vllm"


async def test_nothing_at_the_address_is_said_with_what_to_do() -> None:
    with pytest.raises(
        StartError, match=r"no connection to http://127\.0\.0\.1:9: .* use --wait 300"
    ):
        await identify(Asked("student", "http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (json_reply({"detail": "Not Found"}, 404), "is no server of models"),
        (json_reply(b"<html>hello</html>"), "is no server of models"),
        (json_reply({"data": []}), "lists no models at /v1/models"),
        (json_reply([1, 2]), "lists no models at /v1/models"),
        (json_reply({"data": [{"name": "m"}]}), "lists no models at /v1/models"),
    ],
)
async def test_what_is_no_server_of_models_is_said_to_be_none(reply: Any, said: str) -> None:
    async with replay() as up:
        up.on("GET", MODELS, reply)
        assert said in await refusal(up)


async def test_a_server_that_does_not_say_how_much_it_runs_at_once_has_no_number() -> None:
    async with replay() as up:
        FakeVllm().serve(up)
        assert await settings_of("t", up.client.base_url, None) == ServerSettings()
