"""Checks how a text is scored by its echo beyond the contract."""

import math
from typing import Any

import pytest

from proxy.backends.base import Scores
from proxy.errors import UpstreamMalformed
from tests.support.replay import CALL, Replay, json_reply, replay
from tests.support.scores import entropy_from
from tests.support.servers import openai


async def scores_of(up: Replay, payload: Any, *steps: str, top_k: int = 20) -> Scores:
    up.on("POST", openai.PATH, json_reply(payload))
    prompt = openai.CHAT if steps[0] == openai.EMOJI[0] else openai.PROMPT
    echo = openai.echo(up)
    return await echo.score(
        openai.context(prompt, *steps), len(steps), top_k, CALL, entropy_known=False
    )


async def test_characters_of_several_tokens_count_where_they_end(up: Replay) -> None:
    scores = await scores_of(up, openai.VLLM.body("echo_emoji"), *openai.EMOJI)
    # As vLLM's own prompt_logprobs counted and valued them, by token ids.
    assert [step.num_tokens for step in scores.steps] == [16, 21, 15, 3]
    assert [step.value for step in scores.steps] == pytest.approx(
        [0.13366170667756716, 0.06181197288070086, 0.03355835928795941, 0.01007686456909542],
        rel=1e-9,
    )


async def test_an_entropy_whose_candidates_fell_together_is_unknown(up: Replay) -> None:
    scores = await scores_of(up, openai.VLLM.body("echo_emoji"), *openai.EMOJI)
    # By token ids they were 1.70954, 2.43299, 1.53403 and 2.60155, and 1.18466 after the text: with
    # those that are left, the third would be 2.83510.
    assert [step.entropy for step in scores.steps] == [
        pytest.approx(1.70954, abs=1e-5),
        None,
        None,
        None,
    ]
    assert scores.next_entropy is None


async def test_a_few_lost_candidates_without_weight_leave_the_entropy(up: Replay) -> None:
    payload = openai.VLLM.json("echo_ascii")
    row = {"42": math.log(0.9), "43": math.log(0.099), "\ufffd": math.log(1e-4)}
    payload["choices"][0]["logprobs"]["top_logprobs"][16] = row
    scores = await scores_of(up, payload, *openai.ASCII)
    assert scores.steps[0].entropy == pytest.approx(entropy_from(*row.values()), rel=1e-9)


async def test_scoring_asks_for_an_echo_and_one_token(up: Replay) -> None:
    await scores_of(up, openai.VLLM.body("echo_ascii"), *openai.ASCII)
    (sent,) = up.bodies(openai.PATH)
    assert sent == openai.VLLM.request("echo_ascii")
    assert sent["prompt"] == openai.PROMPT + "".join(openai.ASCII) + "a"
    assert (sent["echo"], sent["logprobs"], sent["max_tokens"]) == (True, 20, 1)


async def test_a_bos_that_the_server_adds_lies_before_the_text(up: Replay) -> None:
    payload = openai.VLLM.json("echo_ascii")
    straight = await scores_of(up, payload, *openai.ASCII)
    told = payload["choices"][0]["logprobs"]
    told["tokens"].insert(0, "<|begin_of_text|>")
    told["token_logprobs"] = [None, -3.0, *told["token_logprobs"][1:]]
    told["top_logprobs"] = [None, {"a": -1.0, "b": -2.0}, *told["top_logprobs"][1:]]
    told["text_offset"] = [0, *told["text_offset"]]
    async with replay() as other:
        assert await scores_of(other, payload, *openai.ASCII) == straight


async def test_special_tokens_without_a_string_stand_for_their_text(up: Replay) -> None:
    payload = openai.VLLM.json("echo_emoji")
    straight = await scores_of(up, payload, *openai.EMOJI)
    told = payload["choices"][0]["logprobs"]
    told["tokens"] = [t if not t.startswith("<|im_") else "" for t in told["tokens"]]
    async with replay() as other:
        assert await scores_of(other, payload, *openai.EMOJI) == straight


async def test_a_generated_token_that_is_left_out_leaves_the_next_entropy_unknown(
    up: Replay,
) -> None:
    payload = openai.VLLM.json("echo_ascii")
    told = payload["choices"][0]["logprobs"]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told[key].pop()
    scores = await scores_of(up, payload, *openai.ASCII)
    assert scores.next_entropy is not None  # of the letter that stands for more text
    without_newline = payload | {}
    text = openai.PROMPT + "".join(openai.ASCII)[:-2]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        del told[key][-3:]
    async with replay() as other:
        other.on("POST", openai.PATH, json_reply(without_newline))
        echo = openai.echo(other)
        cut_short = openai.context(openai.PROMPT, text.removeprefix(openai.PROMPT))
        last = await echo.score(cut_short, 1, 20, CALL, entropy_known=False)
        assert last.next_entropy is None


async def test_fewer_candidates_than_asked_for_say_how_many_would_work(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match=r"20 .* 5 came; entropy_top_k: 5 would work"):
        await scores_of(up, openai.VLLM.body("echo_top5"), openai.ASCII[0])
    async with replay() as other:
        assert (
            await scores_of(other, openai.VLLM.body("echo_top5"), openai.ASCII[0], top_k=5)
        ).steps


async def test_a_cap_is_found_where_candidates_fell_together_too(up: Replay) -> None:
    payload = openai.VLLM.json("echo_top5")
    row = payload["choices"][0]["logprobs"]["top_logprobs"][16]
    row[""] = row.pop(min(row, key=row.__getitem__))
    with pytest.raises(UpstreamMalformed, match=r"entropy_top_k: 5 would work"):
        await scores_of(up, payload, openai.ASCII[0])


async def test_one_candidate_that_is_left_gives_no_entropy(up: Replay) -> None:
    payload = openai.VLLM.json("echo_ascii")
    payload["choices"][0]["logprobs"]["top_logprobs"][16] = {"": -1e-4}
    assert (await scores_of(up, payload, *openai.ASCII)).steps[0].entropy is None


async def test_a_text_that_was_cut_or_changed_is_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="do not spell the text that was sent"):
        await scores_of(up, openai.VLLM.body("echo_ascii"), *openai.ASCII[:2])
    with pytest.raises(UpstreamMalformed, match="do not spell the text that was sent"):
        await scores_of(up, openai.VLLM.body("echo_ascii"), *openai.ASCII, "More.")
    with pytest.raises(UpstreamMalformed, match="do not spell the text that was sent"):
        # Its special tokens are left out of the list.
        await scores_of(up, openai.LLAMA_CPP_PYTHON.body("echo_emoji"), *openai.EMOJI)


async def test_a_server_that_ignores_echo_is_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="did not echo"):
        await scores_of(up, openai.LLAMA_CPP.body("connect_echo"), *openai.ASCII)
    with pytest.raises(UpstreamMalformed, match="did not echo"):
        await scores_of(up, {"choices": [{"text": "x", "logprobs": None}]}, *openai.ASCII)
