"""Checks how vLLM's backend connects and what it knows of a prompt."""

import pytest

from proxy.backends.base import Segment
from proxy.backends.servers.vllm import Vllm
from proxy.errors import UpstreamError, UpstreamRefused
from tests.support.replay import CALL, Replay, json_reply
from tests.support.servers import vllm


async def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused(up: Replay) -> None:
    alone = vllm.RECORDED.json("tokenize_follower_alone") | {"token_strs": ["\u2581a"]}
    up.on(
        "POST", "/tokenize", json_reply(vllm.RECORDED.body("tokenize_follower")), json_reply(alone)
    )
    with pytest.raises(UpstreamRefused, match=r"every text .* set the upstream's `tok"):
        await Vllm.connect(up.client, vllm.MODEL, None)
    # It does not matter where another tokenizer reads.
    await Vllm.connect(up.client, vllm.MODEL, None, reads=False)


async def test_another_served_model_is_refused_and_both_are_named(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(vllm.RECORDED.body("models")))
    with pytest.raises(UpstreamRefused, match="serves smollm2, not the configured model 'qwen'"):
        await Vllm(up.client, "qwen", None, vllm.FOLLOWER).check()


async def test_an_odd_list_of_models_is_our_error(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply({"models": []}))
    with pytest.raises(UpstreamError):
        await vllm.backend(up).check()


async def test_the_rendered_prompt_can_be_read_as_text(up: Replay) -> None:
    up.on("POST", "/detokenize", vllm.RECORDED.answering("detokenize"))
    rendered = Segment("", tuple(vllm.SCORED_IDS[: vllm.NUM_PROMPT]))
    text = await vllm.backend(up).prompt_text(rendered, CALL)
    assert text.endswith("What is 7+5?<|im_end|>\n<|im_start|>assistant\n")


async def test_a_prompt_rendered_here_is_known_as_text(up: Replay) -> None:
    assert await vllm.backend(up).prompt_text(Segment("Hi", (5,)), CALL) == "Hi"
    assert not up.seen


def test_the_steps_that_the_contract_encodes_are_those_of_the_scored_prompt() -> None:
    ids = [token for step in vllm.READING.encoded[:2] for token in step.token_ids]
    assert ids == vllm.SCORED_IDS[vllm.NUM_PROMPT :]
