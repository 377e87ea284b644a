"""A greedy continuation with its log-probabilities, as each server tells it, and the self-test."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from proxy.backends.base import Context, Decoded, Scores, Segment
from proxy.backends.self_test import TOLERANCE, self_test
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.core.types import StepScore
from proxy.errors import UpstreamMalformed
from tests.support.replay import CALL, Recording, Replay, json_reply
from tests.support.scripted import ScriptedBackend, says, values
from tests.support.servers import llamacpp

VLLM, LLAMACPP = Recording("vllm-0.32.0"), Recording("llamacpp-b11549")
SGLANG = Recording("sglang-0.5.23")
FOLLOWER = 81
Edit = Callable[[Any], object]


def context(ids: list[int]) -> Context:
    return Context(Segment("", tuple(ids)))


async def by_vllm(up: Replay, name: str, edit: Edit = lambda _: None) -> Decoded:
    """Read the recorded answer after an edit; the request must be the recorded one."""
    reply, request = VLLM.json(name), VLLM.request(name)
    edit(reply["choices"][0])
    up.on("POST", "/v1/completions", json_reply(reply))
    backend = Vllm(up.client, "smollm2", None, FOLLOWER)
    decoded = await backend.decode(context(request["prompt"]), request["max_tokens"], CALL)
    added = {"logit_bias", "min_tokens"}
    assert up.seen[-1].body == {k: v for k, v in request.items() if k not in added}
    return decoded


async def by_llamacpp(up: Replay, name: str, edit: Edit = lambda _: None) -> Decoded:
    reply, request = LLAMACPP.json(name), LLAMACPP.request(name)
    edit(reply)
    up.on("POST", "/completion", json_reply(reply))
    backend = LlamaCpp(up.client, None, 1, FOLLOWER)
    decoded = await backend.decode(context(request["prompt"]), request["n_predict"], CALL)
    asked = {k: v for k, v in request.items() if k != "logit_bias"}
    assert up.seen[-1].body == {**asked, **llamacpp.NEUTRAL}
    return decoded


async def by_sglang(up: Replay, name: str, edit: Edit = lambda _: None) -> Decoded:
    reply, request = SGLANG.json(name), SGLANG.request(name)
    edit(reply)
    up.on("POST", "/generate", json_reply(reply))
    backend = SGLang(up.client, "smollm2", None, FOLLOWER)
    max_tokens = request["sampling_params"]["max_new_tokens"]
    decoded = await backend.decode(context(request["input_ids"]), max_tokens, CALL)
    assert up.seen[-1].body == request
    return decoded


def told(decoded: Decoded) -> list[tuple[str, tuple[int, ...], tuple[float, ...]]]:
    return [
        (piece.text, piece.token_ids, tuple(round(x, 4) for x in logprobs))
        for piece, logprobs in zip(decoded.pieces, decoded.logprobs, strict=True)
    ]


async def test_vllm_tells_every_token_it_wrote_with_its_log_probability(up: Replay) -> None:
    decoded = await by_vllm(up, "decode_length")
    assert told(decoded)[:2] == [("1", (33,), (-1.0768,)), (".", (30,), (-0.0613,))]
    assert "".join(piece.text for piece in decoded.pieces) == "1. Boil the egg until it"


async def test_llama_cpp_tells_every_token_it_wrote_with_its_log_probability(up: Replay) -> None:
    decoded = await by_llamacpp(up, "decode_length")
    assert told(decoded)[:2] == [(" nice", (9239,), (-0.1917,)), (".", (30,), (-0.0207,))]
    text = "".join(piece.text for piece in decoded.pieces)
    assert text == " nice.\n\nThe only difference between"


async def test_sglang_tells_every_token_it_wrote_with_its_log_probability(up: Replay) -> None:
    decoded = await by_sglang(up, "decode_eos")
    rows = SGLANG.json("decode_eos")["meta_info"]["output_token_logprobs"]
    expected = [(text, (token,), (round(logprob, 4),)) for logprob, token, text in rows[:-1]]
    assert told(decoded) == expected
    assert expected


async def test_an_end_token_is_no_text(up: Replay) -> None:
    yes = [("Yes", (10539,)), (".", (30,))]
    for decoded in (await by_vllm(up, "decode_eos"), await by_llamacpp(up, "decode_eos")):
        assert [(piece.text, piece.token_ids) for piece in decoded.pieces] == yes


@pytest.mark.parametrize("name", ["decode_emoji", "decode_emoji_cut", "decode_special"])
async def test_a_text_ends_before_half_a_character_and_before_a_special_token(
    up: Replay, name: str
) -> None:
    assert await by_vllm(up, name) == await by_llamacpp(up, name) == Decoded((), ())


async def test_what_comes_before_half_a_character_is_kept(up: Replay) -> None:
    def after_a_word(choice: Any) -> None:
        choice["text"] = "Hi" + choice["text"]
        choice["token_ids"].insert(0, 7)
        choice["logprobs"]["tokens"].insert(0, "Hi")
        choice["logprobs"]["token_logprobs"].insert(0, -0.5)

    assert told(await by_vllm(up, "decode_emoji", after_a_word)) == [("Hi", (7,), (-0.5,))]


@pytest.mark.parametrize(
    ("name", "text"), [("decode_emoji", "So"), ("decode_emoji_cut", "So"), ("decode_special", "\n")]
)
async def test_sglangs_text_ends_before_half_a_character_and_before_a_special_token(
    up: Replay, name: str, text: str
) -> None:
    assert [piece.text for piece in (await by_sglang(up, name)).pieces] == [text]


def vllm_logprobs(change: Callable[[list[Any]], object]) -> Edit:
    return lambda choice: change(choice["logprobs"]["token_logprobs"])


def llamacpp_row(logprob: float | None) -> Edit:
    return lambda reply: reply["completion_probabilities"][1].update(logprob=logprob)


def sglang_row(logprob: float | None) -> Edit:
    def edit(reply: Any) -> None:
        reply["meta_info"]["output_token_logprobs"][1][0] = logprob

    return edit


@pytest.mark.parametrize("logprob", [None, 0.5], ids=["null", "positive"])
async def test_a_missing_or_impossible_log_probability_is_malformed(
    up: Replay, logprob: float | None
) -> None:
    with pytest.raises(UpstreamMalformed, match="written token"):
        await by_vllm(up, "decode_length", vllm_logprobs(lambda x: x.__setitem__(1, logprob)))
    with pytest.raises(UpstreamMalformed, match="written token"):
        await by_llamacpp(up, "decode_length", llamacpp_row(logprob))
    with pytest.raises(UpstreamMalformed, match="written token"):
        await by_sglang(up, "decode_eos", sglang_row(logprob))


def test_nan_is_no_log_probability() -> None:
    with pytest.raises(ValueError, match="written token 'a': log-probability 0"):
        Decoded((Segment("a", (1,)),), ((math.nan,),))


def test_pieces_without_log_probabilities_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="no log-probabilities"):
        Decoded((Segment("a", (1,)),), ((),))
    with pytest.raises(ValueError, match="shorter"):
        Decoded((Segment("a", (1,)),), ())


async def test_fewer_log_probabilities_than_tokens_are_malformed_at_vllm(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="the written answer"):
        await by_vllm(up, "decode_length", vllm_logprobs(lambda logprobs: logprobs.pop()))


@pytest.mark.parametrize("key", ["logprobs", "token_ids", "text"])
async def test_a_vllm_answer_without_what_was_asked_for_is_malformed(up: Replay, key: str) -> None:
    with pytest.raises(UpstreamMalformed, match="the written answer"):
        await by_vllm(up, "decode_length", lambda choice: choice.pop(key))


@pytest.mark.parametrize("key", ["completion_probabilities", "tokens", "content"])
async def test_a_llama_cpp_answer_without_what_was_asked_for_is_malformed(
    up: Replay, key: str
) -> None:
    with pytest.raises(UpstreamMalformed, match="the written answer"):
        await by_llamacpp(up, "decode_length", lambda reply: reply.pop(key))


async def test_a_model_that_computes_nan_has_not_ended_its_text(up: Replay) -> None:
    def nan_happened(reply: Any) -> None:
        reply["meta_info"]["finish_reason"] = {"type": "stop", "matched": "NaN happened"}

    with pytest.raises(UpstreamMalformed, match="NaN happened"):
        await by_sglang(up, "decode_eos", nan_happened)


async def test_a_prompt_that_sglang_cut_is_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="read"):
        await by_sglang(up, "decode_eos", lambda reply: reply["meta_info"].update(prompt_tokens=1))


# The self-test.


def self_test_server(up: Replay, score: Edit = lambda _: None) -> Vllm:
    """vLLM as recorded, with its scoring answer edited."""
    scored = VLLM.json("selftest_score")
    score(scored["choices"][0])

    def completion(seen: Any) -> Any:
        assert seen.body in (VLLM.request("selftest_decode"), VLLM.request("selftest_score"))
        is_scoring = "prompt_logprobs" in seen.body
        return json_reply(scored if is_scoring else VLLM.json("selftest_decode"))

    up.on("POST", "/tokenize", VLLM.answering("selftest_render"))
    up.on("POST", "/v1/completions", completion)
    return Vllm(up.client, "smollm2", None, FOLLOWER)


async def test_a_server_that_reads_as_it_writes_passes_the_self_test(up: Replay) -> None:
    vllm = self_test_server(up)
    test = await self_test(vllm, vllm, vllm, CALL)
    assert (test.passed, test.num_tokens) == (True, 12)
    assert 0 < test.worst < 1e-4


async def test_log_probabilities_one_position_off_fail_the_self_test(up: Replay) -> None:
    def one_off(choice: Any) -> None:
        rows, ids = choice["prompt_logprobs"], VLLM.request("selftest_score")["prompt"]
        numbers = [
            None,
            *[row[str(i)]["logprob"] for row, i in zip(rows[1:], ids[1:], strict=True)],
        ]
        for index in range(2, len(ids)):
            rows[index][str(ids[index])]["logprob"] = numbers[index - 1]

    vllm = self_test_server(up, one_off)
    test = await self_test(vllm, vllm, vllm, CALL)
    assert not test.passed
    assert test.worst > 10 * TOLERANCE


def giving(value: float) -> Callable[[Scores], Scores]:
    return lambda scores: replace(
        scores, steps=tuple(StepScore(value, 0.0, 1) for _ in scores.steps)
    )


@pytest.mark.parametrize("value", [0.0, math.nan, 0.5])
async def test_another_value_than_it_was_written_by_fails_the_self_test(value: float) -> None:
    backend = ScriptedBackend(says("ab"), decode_logprob=-0.1, distort=giving(value))
    assert not (await self_test(backend, backend, backend, CALL)).passed


async def test_the_self_test_allows_for_rounding() -> None:
    near = ScriptedBackend(says("ab"), values({}, otherwise=math.exp(-0.109)), decode_logprob=-0.1)
    test = await self_test(near, near, near, CALL)
    assert test.passed
    assert test.worst == pytest.approx(0.009)


async def test_a_self_test_of_no_token_is_not_passed() -> None:
    silent = ScriptedBackend(says())
    test = await self_test(silent, silent, silent, CALL)
    assert (test.passed, test.num_tokens, test.worst) == (False, 0, math.inf)
