"""Checks how SGLang's backend connects and encodes beyond the contract."""

from typing import Any

import pytest

from proxy.backends.base import Question
from proxy.backends.servers.sglang import SGLang
from proxy.backends.tokens.detect_thinking import detect_reasoning
from proxy.errors import RouterTokenises, UpstreamError, UpstreamMalformed, UpstreamRefused
from tests.support.replay import CALL, Replay, Reply, json_reply
from tests.support.servers import sglang


async def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused(up: Replay) -> None:
    up.on("POST", sglang.TOKENIZE, json_reply({"tokens": [[29871, 13, 29874], [263]]}))
    with pytest.raises(UpstreamRefused, match=r"every text .* set the upstream's `tok"):
        await SGLang.connect(up.client, sglang.MODEL, None)
    # It does not matter where another tokenizer reads.
    await SGLang.connect(up.client, sglang.MODEL, None, reads=False)


# Answers of sglang-router 0.3.2, which loads a tokenizer of its own, if it can.
_OF_ROUTER = {
    "its own tokenizer": json_reply(
        {"tokens": [[91, 202], [202, 91]], "count": [2, 2], "char_count": [2, 2]}
    ),
    "no tokenizer": json_reply(
        {
            "error": {
                "message": "No tokenizers available. Use POST /v1/tokenizers to add one.",
                "type": "tokenizer_not_found",
            }
        },
        status=400,
    ),
}


@pytest.mark.parametrize("answer", _OF_ROUTER.values(), ids=_OF_ROUTER)
async def test_a_router_that_tokenises_itself_is_refused_and_the_error_says_what_to_set(
    up: Replay, answer: Reply
) -> None:
    up.on("POST", sglang.TOKENIZE, answer)
    with pytest.raises(RouterTokenises, match=r"a router tokenises .* set the upstream's `tok"):
        await SGLang.connect(up.client, sglang.MODEL, None)


@pytest.mark.parametrize("answer", _OF_ROUTER.values(), ids=_OF_ROUTER)
async def test_with_a_tokenizer_here_a_router_is_asked_only_when_it_must_read(
    up: Replay, answer: Reply
) -> None:
    up.on("POST", sglang.TOKENIZE, answer)
    backend = await SGLang.connect(up.client, sglang.MODEL, None, reads=False)
    assert not up.seen
    with pytest.raises(RouterTokenises):
        await backend.render(Question(prompt="Hi"), CALL)
    with pytest.raises(RouterTokenises):
        await backend.encode(["Hi"], CALL)


async def test_with_a_tokenizer_here_the_servers_can_still_be_compared(up: Replay) -> None:
    cuts = json_reply({"tokens": [[198, 81], [81]]})
    up.on("POST", sglang.TOKENIZE, json_reply({"tokens": [[36, 198, 81]]}), cuts)
    backend = await SGLang.connect(up.client, sglang.MODEL, None, reads=False)
    (segment,) = await backend.encode(["a\n"], CALL)
    assert segment.token_ids == (36, 198)


@pytest.mark.parametrize("name", ["qwen", "adapter"])
async def test_another_model_is_refused_and_so_is_an_adapter_of_the_served_one(
    up: Replay, name: str
) -> None:
    up.on("GET", "/v1/models", json_reply(sglang.models_with_adapter()))
    message = f"it serves smollm2, not the configured model '{name}'"
    with pytest.raises(UpstreamRefused, match=message):
        await SGLang(up.client, name, None, sglang.FOLLOWER).check()


async def test_an_odd_list_of_models_is_our_error(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply({"models": []}))
    with pytest.raises(UpstreamError):
        await sglang.backend(up).check()


async def test_a_server_that_cannot_tell_its_prompt_stops_the_start(up: Replay) -> None:
    up.on("POST", sglang.TOKENIZE, json_reply({"tokens": [198, 81]}))
    with pytest.raises(UpstreamRefused, match="/v1/detokenize"):
        await detect_reasoning(sglang.backend(up), CALL)


async def test_all_texts_are_encoded_in_one_request(up: Replay) -> None:
    up.on("POST", sglang.TOKENIZE, sglang.READING.encoding)
    texts = [segment.text for segment in sglang.READING.encoded]
    assert len(await sglang.backend(up).encode(texts, CALL)) == len(texts)
    assert len(up.seen) == 1


@pytest.mark.parametrize("tokens", [[], [[36, 34], [36]], [36], [[198, 198, 30]]])
async def test_tokens_of_fewer_or_more_texts_than_were_sent_are_malformed(
    up: Replay, tokens: Any
) -> None:
    up.on("POST", sglang.TOKENIZE, json_reply({"tokens": tokens}))
    with pytest.raises(UpstreamMalformed):
        await sglang.backend(up).encode([".\n"], CALL)
